"""Strike at every step of a swap: somebody serves all the time, and nothing is held afterwards.

``make test`` kills the run and refuses it descriptors; ``make faults`` does the rest.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from netlab.load import Load
from netlab.program import Program, wait_until
from netlab.topology import ClientServer
from synplug.handover.timeline import Step, SwapStep
from tests.integration import shell
from tests.integration.conftest import SERVER
from tests.integration.connect import connects_within, holds_in_force
from tests.integration.fault_points import Fault, Party
from tests.integration.swap_fault_points import SWAP_POINTS, SWAP_STEPS

LAUNCHER = Path(__file__).with_name("programs") / "faulty_synplug.py"
RATE_PER_S = 200
MAX_HOLD = "2s"
#: Steps at which there is no keeper that could be struck: before it is forked, and after its end.
WITHOUT_KEEPER = (Step.CHECK, Step.ARM, SwapStep.LINGER)
SELECTED = {(Party.ORCHESTRATOR, Fault.SIGKILL), (Party.ORCHESTRATOR, Fault.EMFILE)}
STRUCK = [
    *((Party.ORCHESTRATOR, fault) for fault in Fault if fault is not Fault.SIGSTOP),
    (Party.KEEPER, Fault.SIGKILL),
    (Party.KEEPER, Fault.SIGTERM),
    (Party.BOTH, Fault.SIGKILL),
]
CASES = [
    pytest.param(
        step,
        party,
        fault,
        id=f"{step.value}-{party.value}-{fault.value}",
        marks=[] if (party, fault) in SELECTED else [pytest.mark.faults],
    )
    for step in SWAP_STEPS
    for party, fault in STRUCK
    if party is Party.ORCHESTRATOR or step not in WITHOUT_KEEPER
]


def server() -> list[str]:
    return [sys.executable, str(SERVER), "8080", "--reuseport"]


@pytest.fixture
def old(lab: ClientServer) -> Iterator[Program]:
    """The generation that is to be replaced; whatever is left of others ends with it."""
    with Program(lab.server, server(), listens_on=[("::", 8080)]) as program:
        yield program
        for pid in _servers(lab):
            os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not _servers(lab), 10, "all servers have ended")


def test_every_step_is_struck() -> None:
    assert set(SWAP_STEPS) == {*Step, *SwapStep}
    assert all(point.owners for point in SWAP_POINTS.values())


@pytest.mark.parametrize(("step", "party", "fault"), CASES)
def test_somebody_serves_whatever_strikes(
    lab: ClientServer,
    old: Program,
    tmp_path: Path,
    step: Step | SwapStep,
    party: Party,
    fault: Fault,
) -> None:
    targets = [(address, 8080) for address in lab.server_addresses]
    with Load(lab.client, targets, rate_per_s=RATE_PER_S) as load:
        status, said = _swap(lab, old, tmp_path, (f"swap {step.value}", party.value, fault.value))
        wait_until(lambda: not holds_in_force(lab.server), 5, "nothing is held")
        result = load.stop()
    assert (tmp_path / "facts").exists(), "the fault did not strike"
    assert "Traceback" not in said
    if party is Party.ORCHESTRATOR:  # without a keeper nobody holds while listeners close
        assert result.failures == 0, (result.summary(), said)
    assert connects_within(lab.client, targets[0], 1.0)
    new = _servers(lab) - {old.pid}
    if old.returncode is None:
        assert status != 0, said
        assert not new or fault is Fault.SIGKILL, "a new generation beside the old one"
    else:
        assert len(new) == 1, "the old one was stopped: the new one serves"
    assert shell.run(lab.server, "recover").status == 0


def _swap(
    lab: ClientServer, old: Program, folder: Path, accident: tuple[str, str, str]
) -> tuple[int, str]:
    """Run it with the accident; its status, and what it said."""
    argv = [sys.executable, str(LAUNCHER), *accident, str(folder / "facts")]
    argv += ["swap", "--old-pid", str(old.pid), "--max-hold", MAX_HOLD, "--ready-timeout", "5s"]
    with (folder / "said").open("w") as file:
        child = subprocess.Popen(
            lab.server.command([*argv, "--check", "true", "--", *server()]),
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
        )
        return child.wait(30), (folder / "said").read_text()


def _servers(lab: ClientServer) -> set[int]:
    """Living servers: one that has ended, and that nobody has collected, has no words."""
    found = set()
    for pid in lab.server.pids():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if len(words) > 1 and words[1] == str(SERVER).encode():
            found.add(pid)
    return found
