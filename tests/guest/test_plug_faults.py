"""A run that holds with a plug is struck at each of its steps: nobody may meet a black hole.

The steps are those of the fault matrix (``tests/integration/fault_points.py``), enumerated from the
code; what a plug does not come to is named here, so that a new step without a case fails.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from netlab.program import wait_until
from netlab.topology import ClientServer
from synplug.model import BackendName
from tests.guest.plug_fault_oracle import Run, lies
from tests.integration.conftest import SimpleService
from tests.integration.connect import connects_within
from tests.integration.fault_cases import Case, CommandPoint, accidents, every_case
from tests.integration.fault_labs import Labs
from tests.integration.fault_machine import Machine, forked_launcher
from tests.integration.fault_oracle import violations
from tests.integration.fault_points import HEALTH_CHECK, POINTS, Fault, Party, Point
from tests.integration.plug_fault_points import IN_PARTS, PARTS, PLUG_POINTS

pytestmark = pytest.mark.guests_only

#: Steps of a run that a plug does not come to, and why.
ELSEWHERE = {
    "Backend.release_next": "it opens as a whole",
    "Backend.observe": "it cannot tell whose SYNs pass",
    "Backend.waiting_by_lane": "it opens as a whole",
    "Pacer.step": "it opens as a whole",
    "Fitting.has_room": "it opens as a whole",
    "Backend.obstacle": "asked only of who flushes queues",
    "FlushGuard.check": "only of who uses queues",
    "FlushGuard.share": "only of who uses queues",
    "FlushGuard.leave": "only of who uses queues",
    "FlushGuard.try_alone": "only of who uses queues",
}
#: Struck on every kernel.
ON_EVERY_KERNEL = ("Backend.arm", "Backend.hold", "Backend.open", "Backend.remove")
#: Struck in every run of the tests: holding, and letting go; who, and what happens.
ALWAYS = (
    ("Backend.check_for_loss", Party.KEEPER, Fault.SIGKILL),
    ("Backend.check_for_loss", Party.BOTH, Fault.SIGSTOP),
    ("Backend.open", Party.KEEPER, Fault.SIGSTOP),
    ("Backend.open", Party.KEEPER, Fault.EXCEPTION),
    ("Backend.open", Party.ORCHESTRATOR, Fault.SIGKILL),
    (CommandPoint.STOPPED.value, Party.COMMAND, Fault.SIGKILL),
)
#: Calls that a plain run need not come to.
NOT_CALLED = {
    "Changes.take": "only when something changes",
    "TrafficControl.addresses": "only where an address is named",
    "TrafficControl.has_index": "only where a device could not have its filters",
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
#: To answer takes the one processor of a guest so much more than a machine. What it takes to wake
#: up what ends a hold, and have it do that, is measured: other guests may run beside it.
_SLOW_S = 0.5
#: What a run with a refused call may take, so that it tells of the call and not of a guest that
#: stood still for some seconds: none of them is there to be ended by its deadline.
_MAX_HOLD = "20s"
#: What the cases run on: a Python takes longer to start, too.
_GUEST = Machine(
    max_hold_s=3.0,
    max_hold_checked_s=10.0,
    slow_s=_SLOW_S,
    still_s=15.0,
    patience_s=60.0,
    every_s=0.05,
)

#: Those whose calls are refused to a run that wraps a command, without a health check: that takes
#: no lab.
_WRAPPED = {
    name: point
    for name, point in POINTS.items()
    if name not in ELSEWHERE
    and not (point.is_detached or point.needs_dead_keeper or HEALTH_CHECK in point.options)
}

CASES = [
    Case(point=point, party=party, fault=fault, backend=BackendName.PLUG)
    for point, party, fault in accidents()
    if point not in ELSEWHERE and not (fault.errno and point in _WRAPPED)
]


def _marks(case: Case) -> list[pytest.MarkDecorator]:
    if (case.point, case.party, case.fault) in ALWAYS:
        return []
    is_for_all = case.point in ON_EVERY_KERNEL and case.party is Party.KEEPER
    return [pytest.mark.kernels if is_for_all else pytest.mark.faults]


_PARAMETERS = [pytest.param(case, id=str(case), marks=_marks(case)) for case in CASES]


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ...]]:
    """Starts synplug with an accident."""
    with forked_launcher(tmp_path_factory.mktemp("launcher") / "server") as argv:
        yield argv


@pytest.fixture(scope="module")
def labs(launcher: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Labs]:
    """One: a case has the processor to itself."""
    plain = (*launcher, "", Party.COMMAND.value, "none", "")
    machine = replace(_GUEST, launcher=launcher, synplug=plain)
    made = Labs(tmp_path_factory.mktemp("faults"), 1, machine)
    yield made
    made.close()


@pytest.mark.parametrize("case", _PARAMETERS)
def test_a_fault(case: Case, labs: Labs) -> None:
    """As on the other backends."""
    seen = labs.observe(case)
    wrong = violations(case, seen)
    assert not wrong, "\n".join([*wrong, seen.stderr, str(seen.report)])


def test_what_is_elsewhere_is_a_step() -> None:
    assert set(ELSEWHERE) <= set(POINTS)


def test_the_plug_has_the_cases_of_the_others() -> None:
    others = {(case.point, case.party, case.fault) for case in every_case()}
    assert {(case.point, case.party, case.fault) for case in CASES} == {
        (point, party, fault)
        for point, party, fault in others
        if point not in ELSEWHERE and not (fault.errno and point in _WRAPPED)
    }
    assert set(ALWAYS) <= {(case.point, case.party, case.fault) for case in CASES}


# --- calls that the kernel refuses


class Runs:
    """Runs of synplug in the server's namespace, one after the other."""

    def __init__(self, lab: ClientServer, folder: Path, launcher: tuple[str, ...]) -> None:
        self._lab = lab
        self._folder = folder
        self._launcher = launcher
        self._number = 0

    def run(self, point: Point | None, fault: Fault | None) -> Run:
        """One that has the accident; None: none, and what it comes to is noted."""
        self._number += 1
        folder = self._folder / str(self._number)
        folder.mkdir()
        accident = ["", "", ""]
        if point is not None and fault is not None:
            accident = [point.name, point.process.value, fault.value]
        words = ["wrap", "--backend", "plug", "--max-hold", _MAX_HOLD, "-p", "8080"]
        words += ["--json", str(folder / "report"), *(point.options if point else ())]
        words += ["--", "touch", str(folder / "ran")]
        with (folder / "said").open("a") as said:
            argv = [*self._launcher, *accident, str(folder / "facts"), *words]
            status = self._lab.server.popen(argv, stdout=said, stderr=said).wait(60)
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


@pytest.fixture
def runs(
    lab: ClientServer, simple: SimpleService, tmp_path: Path, launcher: tuple[str, ...]
) -> Runs:
    """With a service."""
    return Runs(lab, tmp_path, launcher)


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
def test_a_call_of_the_plug_is_refused(lab: ClientServer, runs: Runs, part: str) -> None:
    """Whatever it asks the kernel for, in each part of a hold's life: found by a run that does."""
    _strike(lab, runs, _calls_in(part, runs))


@pytest.mark.faults
@pytest.mark.parametrize("owner", sorted({point.owner for point in _WRAPPED.values()}))
def test_a_call_of_a_step_is_refused(lab: ClientServer, runs: Runs, owner: str) -> None:
    points = [point for point in _WRAPPED.values() if point.owner == owner]
    _strike(lab, runs, [(point, fault) for point in points for fault in Fault if fault.errno])


def test_some_calls_are_refused(lab: ClientServer, runs: Runs) -> None:
    _strike(lab, runs, [(PLUG_POINTS[name], fault) for name, fault in REFUSED_ALWAYS])
