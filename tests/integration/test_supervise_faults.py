"""Strike at every step of a supervisor's reload: somebody serves, and the next reload works.

``make test`` runs some; ``make faults`` does the rest.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from signal import Signals

import pytest

from netlab.load import Load
from netlab.program import wait_until
from netlab.topology import ClientServer
from synplug.handover.supervise import Surroundings
from tests.integration import shell
from tests.integration.connect import connects_within, holds_in_force
from tests.integration.fault_machine import LAUNCHER
from tests.integration.fault_points import Fault, Party, Point
from tests.integration.supervise_fault_points import SUPERVISE_POINTS, SUPERVISE_STEPS
from tests.integration.supervised import Supervised, supervised
from tests.integration.swap_fault_points import SWAP_STEPS
from tests.integration.test_swap_faults import WITHOUT_KEEPER

RATE_PER_S = 100
#: In every run of the tests: what once ended those who served.
SELECTED = (
    ("supervise publish", Fault.EXCEPTION),
    ("supervise tell", Fault.EXCEPTION),
    ("supervise forget", Fault.EPERM),
    ("supervise swap clean-up", Fault.EMFILE),
    ("supervise swap linger", Fault.EXCEPTION),
)
#: At these a keeper can be struck.
_WITH_KEEPER = {f"supervise swap {step.value}" for step in SWAP_STEPS if step not in WITHOUT_KEEPER}
_STRUCK = [
    (Party.ORCHESTRATOR, Fault.SIGKILL),
    (Party.ORCHESTRATOR, Fault.EXCEPTION),
    (Party.ORCHESTRATOR, Fault.EMFILE),
    (Party.ORCHESTRATOR, Fault.EPERM),
    (Party.KEEPER, Fault.SIGKILL),
    (Party.KEEPER, Fault.SIGTERM),
    (Party.BOTH, Fault.SIGKILL),
]


def _cases() -> Iterator[object]:
    for point in SUPERVISE_POINTS.values():
        for party, fault in _STRUCK:
            if party is not Party.ORCHESTRATOR and point.name not in _WITH_KEEPER:
                continue
            name = "-".join((point.name, party.value, fault.value)).replace(" ", "_")
            marks = [] if (point.name, fault) in SELECTED else [pytest.mark.faults]
            yield pytest.param(point, party, fault, id=name, marks=marks)


@pytest.fixture
def app(lab: ClientServer, tmp_path: Path) -> Iterator[Supervised]:
    with supervised(lab, tmp_path) as made:
        yield made


def test_every_step_is_struck() -> None:
    """``complain`` is where it goes when the first generation does not come up."""
    parts = set(Surroundings.__annotations__)
    assert parts - {"complain"} <= set(SUPERVISE_STEPS)
    assert {f"supervise swap {step.value}" for step in SWAP_STEPS} <= set(SUPERVISE_POINTS)
    assert all(point.owners for point in SUPERVISE_POINTS.values())


@pytest.mark.parametrize(("point", "party", "fault"), list(_cases()))
def test_somebody_serves_and_the_next_reload_works(
    app: Supervised, point: Point, party: Party, fault: Fault
) -> None:
    lab, facts = app.lab, app.directory / "facts"
    targets = [(address, 8080) for address in lab.server_addresses]
    accident = [point.name, party.value, fault.value, str(facts)]
    options = ["--linger", "1s", "--max-hold", "2s", "--ready-timeout", "5s", "--check", "true"]
    is_killed = party is not Party.KEEPER and fault is Fault.SIGKILL
    with app.start(*options, synplug=[sys.executable, str(LAUNCHER), *accident]) as program:
        with Load(lab.client, targets, rate_per_s=RATE_PER_S) as load:
            first = app.reload()
            wait_until(facts.exists, 10, "it struck")
            if is_killed:
                assert program.wait() == -signal.SIGKILL
                wait_until(lambda: not holds_in_force(lab.server), 5, "nothing is held")
            else:
                assert program.returncode is None, program.output
                _is_true(first, app)
                _reloads_again(app, facts, fault)
            assert connects_within(lab.client, targets[0], 1.0)
            result = load.stop()
        assert "Traceback" not in program.output
        if party is Party.ORCHESTRATOR:  # without a keeper nobody holds while listeners close
            assert result.failures == 0, (result.summary(), program.output)
        if is_killed:
            assert app.generations(), "somebody serves"
            for pid in app.generations():
                os.kill(pid, signal.SIGTERM)
            wait_until(lambda: not app.generations(), 10, "they have ended")
        else:
            wait_until(lambda: len(app.generations()) == 1, 10, "the old ones have ended")
            assert program.end(Signals.SIGTERM) == 0, program.output
    assert shell.run(lab.server, "recover").status == 0


def _reloads_again(app: Supervised, facts: Path, fault: Fault) -> None:
    """Once the call that is refused has been: that may be one of the next reload's."""
    for _ in range(3):
        is_over = not fault.errno or "refused" in facts.read_text()
        again = app.reload()
        assert app.program.returncode is None, app.program.output
        if is_over:
            break
    assert again.status == 0, (again, app.program.output)


def _is_true(first: shell.Outcome, app: Supervised) -> None:
    """What the reload has said: a new generation serves, or the old one serves on."""
    if first.status:
        assert first.status == 125, first
        assert "serves on: " in first.stderr, first
        assert app.pid(1) in app.generations()
    else:
        assert app.pid(2) in app.generations()
