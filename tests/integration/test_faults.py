"""Whatever strikes whomever, whenever: clients get on, nothing is left, and the truth is told.

``make test`` runs every point with every fault; ``make faults`` the full product with who is struck
and each backend.
"""

from __future__ import annotations

import itertools
import operator
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from netlab.topology import ClientServer
from synplug.handover.timeline import Step
from tests.integration import shell
from tests.integration.conftest import SimpleService
from tests.integration.connect import connects_within
from tests.integration.fault_cases import (
    KNOWN,
    SIGNALLED,
    Case,
    CommandPoint,
    backends_of,
    every_case,
    selected_cases,
)
from tests.integration.fault_labs import Labs
from tests.integration.fault_machine import Machine
from tests.integration.fault_oracle import violations
from tests.integration.fault_points import KEPT, POINTS, STEPS, WITHOUT_CASES, Fault, Party
from tests.integration.fault_run import Observation

#: Labs at the same time: most of a case is waiting.
_LABS = 5

_SELECTED = selected_cases()


def _marks(case: Case) -> list[pytest.MarkDecorator]:
    known = KNOWN.get(str(case))
    return [
        *([] if case in _SELECTED else [pytest.mark.faults]),
        *([pytest.mark.xfail(reason=known, strict=True)] if known else []),
    ]


_PARAMETERS = [pytest.param(case, id=str(case), marks=_marks(case)) for case in every_case()]


@pytest.fixture(scope="module")
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Case, Future[Observation]]]:
    """The cases that were asked for, several at the same time."""
    labs = Labs(tmp_path_factory.mktemp("faults"), _LABS, Machine())
    wanted = [
        case
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.originalname == test_a_fault.__name__
        for case in item.callspec.params.values()
        if isinstance(case, Case)
    ]
    pool = ThreadPoolExecutor(_LABS)
    try:
        yield {case: pool.submit(labs.observe, case) for case in wanted}
    finally:
        pool.shutdown(cancel_futures=True)
        labs.close()


@pytest.mark.parametrize("case", _PARAMETERS)
def test_a_fault(case: Case, running: dict[Case, Future[Observation]]) -> None:
    seen = running[case].result()
    wrong = violations(case, seen)
    assert not wrong, "\n".join([*wrong, seen.stderr, str(seen.report)])


# --- that no step is without its cases


def test_every_step_of_the_orchestrator_is_struck() -> None:
    assert set(STEPS) == set(Step)
    assert {step.value for step in Step} <= {case.point for case in every_case()}


def test_every_step_of_the_keeper_is_struck() -> None:
    """One that a run does not come to fails its cases, which see that it was struck."""
    steps = {f"{cls.__name__}.{method}" for cls, method in KEPT.methods()}
    steps |= {f"{module.rpartition('.')[2]}.{name}" for module, name in KEPT.functions}
    assert steps - set(WITHOUT_CASES) <= {case.point for case in every_case()}
    known = {"Backend.hold", "Ledger.write", "FlushGuard.share", "Deadman.set", "Audience.say"}
    assert known | {"Deadman.__init__", "keeper.limit", "SocketDiagnostics.listeners"} <= steps


@pytest.mark.parametrize("point", POINTS)
def test_every_point_is_a_method_that_is_there(point: str) -> None:
    assert POINTS[point].owners


def test_the_matrix_is_whole() -> None:
    every = every_case()
    for point in POINTS.values():
        signals = [fault for fault in Fault if fault.is_signal]
        parties = set(SIGNALLED) if point.keeper_lives else {point.process}
        for backend in backends_of(point.name):
            here = {
                (c.party, c.fault) for c in every if (c.point, c.backend) == (point.name, backend)
            }
            assert here >= {(party, fault) for party in parties for fault in signals}
            assert here >= {(point.process, fault) for fault in Fault}
    command = {(c.point, c.fault) for c in every if c.party is Party.COMMAND}
    assert command == {(p.value, f) for p in CommandPoint for f in Fault if not f.errno}


def test_the_selection_has_every_pair() -> None:
    full, chosen = set(every_case()), selected_cases()
    assert chosen <= full
    for one, other in itertools.combinations(("point", "party", "fault", "backend"), 2):
        pair = operator.attrgetter(one, other)
        missing = set(map(pair, full)) - set(map(pair, chosen))
        assert not missing, (one, other)


# --- a full disk, for real


_ON_A_FULL_DISK = """
mkdir -p /run/synplug
mount -t tmpfs -o size=4k,mode=0700 tmpfs /run/synplug
dd if=/dev/zero of=/run/synplug/full bs=4096 count=1 status=none
exec "$@"
"""


def test_a_ledger_that_cannot_be_written(
    lab: ClientServer, simple: SimpleService, tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    words = ["wrap", "-p", "8080", "--", "touch", str(mark)]
    done = subprocess.run(
        lab.server.command(
            ["unshare", "-m", "sh", "-c", _ON_A_FULL_DISK, "sh", *shell.SYNPLUG, *words]
        ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 125
    assert "cannot write /run/synplug/" in done.stderr
    assert "No space left on device" in done.stderr
    assert not mark.exists(), "nothing is held, so the command does not run"
    assert connects_within(lab.client, (lab.server_ipv4, 8080), 0.5)
