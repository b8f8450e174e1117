"""Strike at every step of a swap: somebody serves all the time, and nothing is held afterwards.

``make test`` kills the run and refuses it descriptors at each step, and strikes each thing that it
calls besides once; ``make faults`` does the rest.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from netlab.load import Load
from netlab.program import Program, wait_until
from netlab.topology import ClientServer
from synplug.handover.timeline import Step, SwapStep
from tests.integration import shell
from tests.integration.conftest import SERVER
from tests.integration.connect import connects_within, holds_in_force, is_refused
from tests.integration.fault_points import LAST_CALLS, Fault, Party
from tests.integration.swap_fault_points import (
    SWAP_PART_POINTS,
    SWAP_POINTS,
    SWAP_STEPS,
    unknown_parts,
)

LAUNCHER = Path(__file__).with_name("programs") / "faulty_synplug.py"
RATE_PER_S = 200
MAX_HOLD_S = 2.0
#: New connections work so long after the deadline, at the latest.
FREE_AFTER_S = 1.0
#: A keeper that is stopped in its removal is ended after so long (``holding/lingering.py``).
REMOVAL_S = 5.0
#: Steps at which there is no keeper that could be struck: before it is forked, and after its end.
WITHOUT_KEEPER = (Step.CHECK, Step.ARM, SwapStep.LINGER)
#: The same of the new generation.
WITHOUT_NEW = (Step.CHECK, Step.ARM, Step.COMMAND)
SELECTED = {(Party.ORCHESTRATOR, Fault.SIGKILL), (Party.ORCHESTRATOR, Fault.EMFILE)}
#: What is selected besides: the others who can be struck, where it matters most.
ALSO_SELECTED = {
    (f"swap {Step.DRAIN.value}", Party.OLD, Fault.SIGKILL),
    (f"swap {Step.HOLD.value}", Party.NEW, Fault.SIGKILL),
    ("Backend.open", Party.KEEPER, Fault.ENOBUFS),
}
#: Once the new pid is published nothing is written any more: nothing that takes room is refused.
NOTHING_IS_WRITTEN = {
    *(f"swap {cls}" for cls in ("Pidfile.close", "RunLocks.drop", "OptionalMigration.end")),
    *("swap Lineage.forget_dead_keepers", "swap Generation.may_live", "swap linger"),
    "swap Retirement.see_out",
}
#: Whoever ends here may do so when the swap has looked at the new generation for the last time.
AFTER_THE_LAST_LOOK = (f"swap {SwapStep.LINGER.value}",)
#: Called as the report is made: of its own failure it can say nothing.
OF_THE_REPORT = "swap Generation.may_live"
_SIGNALS = [fault for fault in Fault if fault.is_signal]
#: At what a swap calls besides its steps; other signals do not depend on the place so much.
AT_PARTS = [fault for fault in Fault if fault not in (Fault.SIGTERM, Fault.SIGSTOP)]
#: Of the keeper's own steps, the first of each part of its life; all of them are in test_faults.py.
KEPT = ("Backend.arm", "Backend.hold", "Backend.open", "Backend.remove")


def _accidents() -> Iterator[tuple[str, Party, Fault]]:
    for step in SWAP_STEPS:
        parties = [Party.ORCHESTRATOR, Party.OLD]
        parties += [] if step in WITHOUT_KEEPER else [Party.KEEPER, Party.BOTH]
        parties += [] if step in WITHOUT_NEW else [Party.NEW]
        for party in parties:
            for fault in Fault if party is Party.ORCHESTRATOR else _SIGNALS:
                yield f"swap {step.value}", party, fault
    for point in SWAP_PART_POINTS:
        for fault in AT_PARTS:
            yield point, Party.ORCHESTRATOR, fault
    for point in KEPT:
        for fault in Fault:
            if not fault.is_signal:
                yield point, Party.KEEPER, fault


def _cases() -> Iterator[object]:
    chosen = {(point, *struck) for point in SWAP_POINTS for struck in SELECTED} | ALSO_SELECTED
    for number, point in enumerate(SWAP_PART_POINTS):
        chosen.add((point, Party.ORCHESTRATOR, AT_PARTS[number % len(AT_PARTS)]))
    for point, party, fault in _accidents():
        name = "-".join((point.removeprefix("swap "), party.value, fault.value)).replace(" ", "_")
        marks = [] if (point, party, fault) in chosen else [pytest.mark.faults]
        yield pytest.param(point, party, fault, id=name, marks=marks)


def server() -> list[str]:
    return [sys.executable, str(SERVER), "8080", "--reuseport", "--backlog", "4096"]


@pytest.fixture
def old(lab: ClientServer) -> Iterator[Program]:
    """The generation that is to be replaced; whatever is left of others ends with it."""
    with Program(lab.server, server(), listens_on=[("::", 8080)]) as program:
        yield program
        for pid in _servers(lab):
            os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not _servers(lab), 10, "all servers have ended")


def test_every_step_is_struck() -> None:
    """Also what a swap calls besides; its parts' methods are read from its source."""
    assert set(SWAP_STEPS) == {*Step, *SwapStep}
    assert not unknown_parts()
    assert {"swap Closing.collect", "swap RunLocks.drop"} <= set(SWAP_PART_POINTS)
    assert all(point.owners for point in (*SWAP_POINTS.values(), *SWAP_PART_POINTS.values()))
    assert set(_accidents()) >= ALSO_SELECTED
    assert set(SWAP_POINTS) | set(SWAP_PART_POINTS) >= NOTHING_IS_WRITTEN


@pytest.mark.parametrize(("point", "party", "fault"), list(_cases()))
def test_somebody_serves_whatever_strikes(
    lab: ClientServer,
    old: Program,
    tmp_path: Path,
    point: str,
    party: Party,
    fault: Fault,
) -> None:
    targets = [(address, 8080) for address in lab.server_addresses]
    with Load(lab.client, targets, rate_per_s=RATE_PER_S) as load:
        status, said = _swap(lab, old, tmp_path, (point, party.value, fault.value))
        wait_until(lambda: not holds_in_force(lab.server), 5, "nothing is held")
        result = load.stop()
    facts = _facts(tmp_path)
    assert facts, "the fault did not strike"
    assert not fault.errno or "refused" in facts or _may_pass_by(point, fault)
    assert "Traceback" not in said
    if party is Party.ORCHESTRATOR:  # without a keeper nobody holds while listeners close
        assert result.failures == 0, (result.summary(), said)
    _is_true(lab, old, (point, party, fault), status, said)
    is_killed = fault is Fault.SIGKILL and party in (Party.ORCHESTRATOR, Party.BOTH)
    assert (status == -signal.SIGKILL) is is_killed, (status, said)
    if not is_killed:
        lies = _lies_of_the_report(tmp_path, (point, fault), status, said)
        assert not lies, (lies, status, said)
    assert shell.run(lab.server, "recover").status == 0


def _may_pass_by(point: str, fault: Fault) -> bool:
    return point in LAST_CALLS[fault] or (fault is Fault.ENOSPC and point in NOTHING_IS_WRITTEN)


def _is_true(
    lab: ClientServer,
    old: Program,
    accident: tuple[str, Party, Fault],
    status: int,
    said: str,
) -> None:
    """One generation serves, and the exit code tells of any other end than the new one serving."""
    point, party, fault = accident
    target = (lab.server_ipv4, 8080)
    new = _servers(lab) - {old.pid}
    if old.returncode is None:
        assert status != 0, said
        assert not new or fault is Fault.SIGKILL, "a new generation beside the old one"
    elif party in (Party.NEW, Party.OLD) and not new:
        assert status != 0 or point in AFTER_THE_LAST_LOOK, said
        assert is_refused(lab.client, target), "a black hole"
        return
    else:
        assert len(new) == 1, "the old one was stopped: the new one serves"
    assert connects_within(lab.client, target, 1.0)


def _lies_of_the_report(
    folder: Path, accident: tuple[str, Fault], status: int, said: str
) -> list[str]:
    """What the report says and is not so; where there is none, people are told."""
    path = folder / "report"
    if not path.exists() or not path.read_text():
        is_told = "JSON report could not be written" in said
        is_told |= accident == (OF_THE_REPORT, Fault.EXCEPTION) and "an injected fault" in said
        return [] if is_told and status == 125 else ["there is no report"]
    report = json.loads(path.read_text())
    outcome, error = report["outcome"], report["error"]
    rules = {
        "the exit code is the report's": status == report["exit_code"],
        "ready and 0 go together": (outcome == "ready") == (status == 0),
        "an error is named, and only then": bool(error) == (outcome == "error"),
        "people are told the same": error in said,
    }
    return [f"not true: {rule} ({report})" for rule, is_so in rules.items() if not is_so]


def _swap(
    lab: ClientServer, old: Program, folder: Path, accident: tuple[str, str, str]
) -> tuple[int, str]:
    """Run it with the accident; its status, and what it said."""
    argv = [sys.executable, str(LAUNCHER), *accident, str(folder / "facts")]
    argv += ["swap", "--old-pid", str(old.pid), "--max-hold", f"{MAX_HOLD_S:g}s"]
    argv += ["--ready-timeout", "5s", "--new-pidfile", str(folder / "new.pid")]
    argv += ["--json", str(folder / "report")]
    with (folder / "said").open("w") as file:
        child = subprocess.Popen(
            lab.server.command([*argv, "--check", "true", "--", *server()]),
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
        )
        if accident[2] == Fault.SIGSTOP.value:
            _let_go_on(lab, folder, child, accident)
        return child.wait(60), (folder / "said").read_text()


def _let_go_on(
    lab: ClientServer,
    folder: Path,
    child: subprocess.Popen[bytes],
    accident: tuple[str, str, str],
) -> None:
    """Who was stopped goes on when nothing is held any more; a generation, when the swap has ended.

    New connections pass, although nobody has let them.
    """
    wait_until(lambda: "struck" in _facts(folder), 20, "it struck")
    (line,) = [line for line in _facts(folder).splitlines() if line.startswith("struck")]
    point, party, _ = accident
    if party in (Party.NEW.value, Party.OLD.value):
        child.wait(60)
    longest_s = MAX_HOLD_S + FREE_AFTER_S
    if point == f"swap {Step.CLEAN_UP.value}":  # it holds nothing, but its entry says so until then
        assert connects_within(lab.client, (lab.server_ipv4, 8080), 1.0), "a black hole"
        longest_s += REMOVAL_S
    wait_until(lambda: not holds_in_force(lab.server), longest_s, "nothing is held any more")
    assert connects_within(lab.client, (lab.server_ipv4, 8080), 1.0), "a black hole"
    for pid in map(int, line.split()[1:]):
        with suppress(ProcessLookupError):  # a keeper is ended by the kernel
            os.kill(pid, signal.SIGCONT)


def _facts(folder: Path) -> str:
    return (folder / "facts").read_text() if (folder / "facts").exists() else ""


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
