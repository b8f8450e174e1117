"""Strike at every step of ``release --name``: what waits is let go, at the deadline at the latest.

``make test`` strikes each step once; ``make faults`` does the rest.
"""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from netlab.load import Load
from netlab.program import wait_until
from netlab.topology import ClientServer
from synplug.handover import detached
from tests.integration import shell
from tests.integration.conftest import SimpleService
from tests.integration.connect import connects_within, holds_in_force
from tests.integration.fault_machine import LAUNCHER
from tests.integration.fault_points import Fault, Party
from tests.integration.supervise_fault_points import RELEASE_POINTS, RELEASE_STEPS

RATE_PER_S = 100
MAX_HOLD_S = 2.0
#: New connections work so long after the deadline, at the latest.
FREE_AFTER_S = 1.0
NO_SUCH_HOLD, DEADLINE = 3, 124
#: From here on the hold has ended, or is about to by itself.
AFTER_THE_RELEASE = ("finish", "close", "report")
#: Each of the others is done once, and needs nothing more from the system at its end.
ENDS = ("close", "report")
STRUCK = [
    *((Party.ORCHESTRATOR, fault) for fault in Fault),
    (Party.KEEPER, Fault.SIGKILL),
    (Party.KEEPER, Fault.SIGTERM),
    (Party.KEEPER, Fault.SIGSTOP),
    (Party.BOTH, Fault.SIGKILL),
]


def _cases() -> Iterator[object]:
    for number, step in enumerate(RELEASE_STEPS):
        for place, (party, fault) in enumerate(STRUCK):
            is_chosen = place == (5 * number) % len(STRUCK)
            marks = [] if is_chosen else [pytest.mark.faults]
            name = f"{step}-{party.value}-{fault.value}"
            yield pytest.param(step, party, fault, id=name, marks=marks)


def test_every_step_is_struck() -> None:
    """Its public methods; ``fail`` is where it goes when one of the others was."""
    public = {name for name in vars(detached._Release) if not name.startswith("_")}
    assert public - {"fail"} <= set(RELEASE_STEPS)
    asked = {"begin_release", "open_now", "ended", "finish", "close"}
    source = inspect.getsource(detached._Release)
    called = {word.split("(")[0] for word in source.split("self._kept.")[1:] if "(" in word[:20]}
    assert called == asked, "open_now is asked for with --now"
    assert all(point.owners for point in RELEASE_POINTS.values())


@pytest.mark.parametrize(("step", "party", "fault"), list(_cases()))
def test_what_waits_is_let_go_and_the_truth_is_told(
    lab: ClientServer,
    simple: SimpleService,
    tmp_path: Path,
    step: str,
    party: Party,
    fault: Fault,
) -> None:
    with Load(lab.client, simple.targets(lab), rate_per_s=RATE_PER_S) as load:
        words = ["-p", "8080", "--name", "web", "--max-hold", f"{MAX_HOLD_S:g}s"]
        assert shell.run(lab.server, "hold", *words).status == 0
        (held,) = holds_in_force(lab.server)
        lab.server.run(simple.restart_argv())
        status, said = _release(lab, tmp_path, (f"release {step}", party.value, fault.value), held)
        left_s = max(0.5, held["deadline_s"] + FREE_AFTER_S - time.monotonic())
        wait_until(lambda: not holds_in_force(lab.server), left_s, "nothing is held any more")
        assert connects_within(lab.client, simple.targets(lab)[0], 0.9)
        result = load.stop()
    facts = (tmp_path / "facts").read_text() if (tmp_path / "facts").exists() else ""
    assert "fault" in facts, "it struck"
    assert "Traceback" not in said
    assert result.failures == 0, (result.summary(), said)
    _is_true(tmp_path, status, said, party, fault, step)
    assert shell.run(lab.server, "recover").status == 0


def _is_true(folder: Path, status: int, said: str, party: Party, fault: Fault, step: str) -> None:
    """The exit code and the report."""
    text = (folder / "report").read_text() if (folder / "report").exists() else ""
    report = json.loads(text) if text else None
    kills = party is not Party.KEEPER and fault in (Fault.SIGKILL, Fault.SIGTERM)
    if kills:
        assert status == -signal.Signals[fault.value], said
        return
    assert status in (0, NO_SUCH_HOLD, DEADLINE, 125), said
    if report is None:
        assert status in (NO_SUCH_HOLD, 125), said
        assert "synplug: " in said
        return
    assert report["exit_code"] == status
    assert (report["outcome"] == "ready") == (status == 0)
    assert bool(report["error"]) == (report["outcome"] == "error")
    if fault.errno and report["error"] and "refused" in (folder / "facts").read_text():
        words = (os.strerror(fault.errno), fault.value, "not permitted")
        assert any(word in str(report) for word in words), report
    if party is Party.KEEPER and step not in (*AFTER_THE_RELEASE, "ended", "begin_release"):
        assert status, "somebody else has ended it"


def _release(
    lab: ClientServer, folder: Path, accident: tuple[str, str, str], held: dict[str, object]
) -> tuple[int, str]:
    """Run it with the accident; what was stopped goes on a while after the deadline."""
    argv = [sys.executable, str(LAUNCHER), *accident, str(folder / "facts"), "release"]
    argv += ["--name", "web", "--json", str(folder / "report")]
    with (folder / "said").open("w") as file:
        child = subprocess.Popen(
            lab.server.command(argv),
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "FAULT_KEEPER": str(held["keeper"])},
        )
        if accident[2] == Fault.SIGSTOP.value:
            left_s = float(str(held["deadline_s"])) + FREE_AFTER_S - time.monotonic()
            time.sleep(left_s)
            for pid in (child.pid, int(str(held["keeper"]))):
                try:
                    os.kill(pid, signal.SIGCONT)
                except ProcessLookupError:
                    continue
        return child.wait(30), (folder / "said").read_text()
