"""A run that holds with a plug is struck at each of its steps: nobody may meet a black hole.

The steps are those of the fault matrix (``tests/integration/fault_points.py``), enumerated from the
code; what a plug does not come to is named here, so that a new step without a case fails.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from netlab.program import wait_until
from netlab.topology import ClientServer
from tests.guest.plug import PLUG
from tests.guest.plug_fault_oracle import Run, lies
from tests.integration import shell
from tests.integration.conftest import SimpleService
from tests.integration.connect import connects_within
from tests.integration.fault_points import (
    AFTER_THE_RELEASE,
    POINTS,
    Fault,
    Party,
    Point,
)
from tests.integration.fault_run import LAUNCHER
from tests.integration.plug_fault_points import IN_PARTS, PARTS, PLUG_POINTS

pytestmark = pytest.mark.guests_only

#: Steps of a run that a plug does not come to, and why.
ELSEWHERE = {
    "Backend.release_next": "it opens as a whole",
    "Backend.observe": "it cannot tell whose SYNs pass",
    "Backend.let_through": "only the run's own connections; test_plug.py of tests/unit",
    "Backend.waiting_by_port": "it opens as a whole",
    "Pacer.step": "it opens as a whole",
    "Backend.obstacle": "asked only of who flushes queues",
    "Backend.clean_up_after_death": "the watcher's, or recover's; test_plug.py",
    "FlushGuard.check": "only of who uses queues",
    "FlushGuard.share": "only of who uses queues",
    "FlushGuard.leave": "only of who uses queues",
    "FlushGuard.try_alone": "only of who uses queues",
}
#: Those that it comes to.
STEPS = [
    point for point in POINTS.values() if not point.is_detached and point.name not in ELSEWHERE
]
#: Struck on every kernel.
ON_EVERY_KERNEL = ("Backend.arm", "Backend.hold", "Backend.open", "Backend.remove")
#: Where the keeper gets the signals, too, that leave it alive: a step of each part of its life.
SIGNALLED = (*ON_EVERY_KERNEL, "Backend.check_for_loss")
#: Struck in every run of the tests: holding, and letting go.
ALWAYS = (
    ("Backend.check_for_loss", Fault.SIGKILL),
    ("Backend.check_for_loss", Fault.SIGTERM),
    ("Backend.open", Fault.SIGSTOP),
    ("Backend.open", Fault.EXCEPTION),
)
#: Calls that a plain run need not come to.
NOT_CALLED = {
    "Changes.take": "only when something changes",
    "TrafficControl.addresses": "only where an address is named",
}
#: Refused in every run of the tests.
REFUSED_ALWAYS = (
    ("answer TrafficControl.add_filter after Backend.arm", Fault.ENOBUFS),
    ("answer TrafficControl.open_plug after Backend.open", Fault.ENOBUFS),
    ("TrafficControl.close_plug after Backend.hold", Fault.EPERM),
    ("TrafficControl.remove_filter after Backend.open", Fault.EPERM),
    ("TrafficControl.remove_device after Backend.remove", Fault.ENOBUFS),
    ("Ledger.write holding", Fault.ENOSPC),
    ("Backend.hold", Fault.EMFILE),
    ("Backend.open", Fault.ENOBUFS),  # no file is opened from there on
)
_FORKED = LAUNCHER.with_name("forked_synplug.py")
#: Of a keeper that is stopped; others end by themselves.
_SHORT = ["--max-hold", "5s"]
_ACCIDENTS = (
    (Party.KEEPER, Fault.SIGKILL),
    (Party.KEEPER, Fault.SIGTERM),
    (Party.KEEPER, Fault.SIGSTOP),
    (Party.KEEPER, Fault.EXCEPTION),
    (Party.ORCHESTRATOR, Fault.SIGKILL),
    (Party.BOTH, Fault.SIGKILL),
)


def _cases() -> Iterator[object]:
    for point in STEPS:
        for party, fault in _ACCIDENTS:
            if not point.keeper_lives and party is Party.BOTH:
                continue
            if party is not Party.BOTH and party is not point.process:
                continue
            if fault in (Fault.SIGTERM, Fault.SIGSTOP) and point.name not in SIGNALLED:
                continue
            chosen = point.name in ON_EVERY_KERNEL and party is Party.KEEPER
            marks = [pytest.mark.kernels if chosen else pytest.mark.faults]
            if party is Party.KEEPER and (point.name, fault) in ALWAYS:
                marks = []
            name = "-".join((point.name, party.value, fault.value)).replace(" ", "_")
            yield pytest.param(point, party, fault, id=name, marks=marks)


def test_what_is_elsewhere_is_a_step() -> None:
    assert set(ELSEWHERE) <= set(POINTS)


@pytest.mark.parametrize(("point", "party", "fault"), list(_cases()))
def test_new_connections_pass_and_nothing_is_left(
    lab: ClientServer,
    simple: SimpleService,
    tmp_path: Path,
    point: Point,
    party: Party,
    fault: Fault,
) -> None:
    """The lab looks at what is left; where there was a keeper, nobody calls ``recover``."""
    facts = tmp_path / "facts"
    accident = [point.name, party.value, fault.value, str(facts)]
    argv = [sys.executable, str(LAUNCHER), *accident, "wrap", *PLUG, "-p", "8080"]
    argv += [*point.options, *(_SHORT if fault is Fault.SIGSTOP else []), "--"]
    done = lab.server.run([*argv, *simple.restart_argv()], check=False, timeout_s=120)
    assert "fault" in facts.read_text(), "it struck"
    if fault is Fault.SIGSTOP:
        _let_go_on(int(facts.read_text().split()[3]))
    if party is not Party.KEEPER and fault is Fault.SIGKILL:
        assert done.returncode == -signal.SIGKILL, done
    else:
        is_late = point.name in AFTER_THE_RELEASE
        is_late |= fault is Fault.SIGTERM and point.name == "Backend.open"  # it does so anyway
        assert done.returncode == 125 or is_late, done
    # A command whose run was killed goes on, and has the service down for a moment more.
    target = (lab.server_ipv4, 8080)
    try:
        wait_until(lambda: connects_within(lab.client, target, 30), 60, "the service is reached")
    except subprocess.TimeoutExpired:
        pytest.fail("a black hole")
    wait_until(simple.listens, 30, "the service listens")
    if party is not Party.KEEPER:  # files may be left, and what was made before a keeper was there
        assert shell.run(lab.server, "recover").status == 0


def _let_go_on(keeper: int) -> None:
    """One that was stopped when nothing was held any more: it may still be there."""
    with suppress(ProcessLookupError):
        os.kill(keeper, signal.SIGCONT)


# --- calls that the kernel refuses


class Runs:
    """Runs of synplug in the server's namespace, one after the other, by one process.

    To start one that has pyroute2 costs a guest seconds.
    """

    def __init__(self, lab: ClientServer, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        self._process = lab.server.popen(
            [sys.executable, str(_FORKED)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self) -> Runs:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=30)

    def run(self, point: Point | None, fault: Fault | None) -> Run:
        """One that has the accident; None: none, and what it comes to is noted."""
        self._number += 1
        folder = self._folder / str(self._number)
        folder.mkdir()
        words = ["wrap", "--backend", "plug", "--max-hold", "5s", "-p", "8080"]
        words += ["--json", str(folder / "report"), *(point.options if point else ())]
        case = {
            "point": point.name if point else "",
            "party": point.process.value if point else "",
            "fault": fault.value if fault else "",
            "facts": str(folder / "facts"),
            "words": [*words, "--", "touch", str(folder / "ran")],
            "said": str(folder / "said"),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(case), file=self._process.stdin, flush=True)
        status = int(self._process.stdout.readline())
        texts = {
            name: (folder / name).read_text() if (folder / name).exists() else ""
            for name in ("facts", "said", "report")
        }
        return Run(
            status=status,
            facts=texts["facts"].splitlines(),
            said=texts["said"],
            report=json.loads(texts["report"]) if texts["report"] else None,
            ran=(folder / "ran").exists(),
        )


def _strike(lab: ClientServer, runs: Runs, cases: Iterable[tuple[Point, Fault]]) -> None:
    """Who comes afterwards is served at once; what is left in the kernel, the lab looks at."""
    found = []
    for point, fault in cases:
        run = runs.run(point, fault)
        what = f"{point.name} {fault.value}"
        found += [f"{what}: not true: {rule}; {run}" for rule in lies(run, point, fault)]
        if not connects_within(lab.client, (lab.server_ipv4, 8080), 1.0):
            found.append(f"{what}: the next client waits; {run}")
        wait_until(lambda: not Path("/run/synplug").exists(), 20, f"{what}: nothing is left")
    assert not found, "\n".join(found)


def _calls_in(part: str, runs: Runs) -> list[tuple[Point, Fault]]:
    """The requests, and what answers them."""
    seen = runs.run(None, None)
    assert seen.status == 0, seen
    names = {fact.removeprefix("passed ") for fact in seen.facts}
    passed = {name.partition(" ")[0] for name in names}
    made = {f"{point.owner.partition(':')[2]}.{point.method}" for point in IN_PARTS.values()}
    assert passed >= made - set(NOT_CALLED), "each of them is called somewhere"
    return [
        (PLUG_POINTS[prefix + name], fault)
        for name in sorted(names)
        if name.endswith(part)
        for prefix, fault in (("", Fault.EPERM), ("answer ", Fault.ENOBUFS))
    ]


@pytest.mark.kernels
@pytest.mark.parametrize("part", PARTS)
def test_a_call_of_the_plug_is_refused(
    lab: ClientServer, simple: SimpleService, tmp_path: Path, part: str
) -> None:
    """Whatever it asks the kernel for, in each part of a hold's life: found by a run that does."""
    with Runs(lab, tmp_path) as runs:
        _strike(lab, runs, _calls_in(part, runs))


@pytest.mark.faults
@pytest.mark.parametrize("owner", sorted({point.owner for point in STEPS}))
def test_a_call_of_a_step_is_refused(
    lab: ClientServer, simple: SimpleService, tmp_path: Path, owner: str
) -> None:
    points = [point for point in STEPS if point.owner == owner]
    with Runs(lab, tmp_path) as runs:
        _strike(lab, runs, [(point, fault) for point in points for fault in Fault if fault.errno])


def test_some_calls_are_refused(lab: ClientServer, simple: SimpleService, tmp_path: Path) -> None:
    with Runs(lab, tmp_path) as runs:
        _strike(lab, runs, [(PLUG_POINTS[name], fault) for name, fault in REFUSED_ALWAYS])
