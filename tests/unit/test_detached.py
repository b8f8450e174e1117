"""``synplug hold`` as a sequence: what happens in which order, and when nothing may stay held."""

from __future__ import annotations

import pytest

from synplug.errors import DrainError, KernelError, LockError, UnsupportedError
from synplug.handover.detached import hold, release
from synplug.handover.plan import DrainPlan, HoldPlan, ReadyPlan
from synplug.model import Endpoint, HoldSpec, OnDrainTimeout, Outcome, ReleaseReason
from tests.unit.fakes import HTTP, FakeHold, FakeProbe, Restart

HTTPS = Endpoint(port=443)


@pytest.fixture
def restart() -> Restart:
    return Restart()


def plan(**drain: object) -> HoldPlan:
    spec = HoldSpec(endpoints=(HTTP, HTTPS), run_id="0123abcd", name="web", max_hold_s=5.0)
    return HoldPlan(spec=spec, drain=DrainPlan(**drain))  # type: ignore[arg-type]


def test_it_is_left_to_its_keeper_when_the_old_listener_has_run_empty(restart: Restart) -> None:
    restart.sockets.requests = 1
    restart.world.after(0.2, lambda: setattr(restart.sockets, "requests", 0))
    begun = hold(plan(), restart.tools())
    log = restart.world.log
    steps = ["lock", "recover", "arm", "walk all connections", "hold", "detach", "close", "unlock"]
    assert [log.index(step) for step in steps] == sorted(log.index(step) for step in steps)
    assert restart.world.now_s >= 1000.2
    assert begun.drain is not None
    assert begun.drain.empty
    assert begun.keeper == 4711
    assert "release" not in log


def test_it_knows_who_listened(restart: Restart) -> None:
    hold(plan(), restart.tools())
    assert restart.hold.left == (restart.old,)


def test_what_cannot_be_armed_is_an_error_and_unlocked(restart: Restart) -> None:
    restart.prepare = lambda made: setattr(made, "arm_error", UnsupportedError("no queues"))
    with pytest.raises(UnsupportedError):
        hold(plan(), restart.tools())
    assert restart.hold.closed
    assert not restart.locks.taken


def test_what_cannot_begin_is_an_error_and_closed(restart: Restart) -> None:
    restart.prepare = lambda made: setattr(made, "hold_error", KernelError("add the rule", 12))
    with pytest.raises(KernelError):
        hold(plan(), restart.tools())
    assert restart.hold.closed
    assert restart.hold.left is None


def test_a_lock_of_another_run(restart: Restart) -> None:
    restart.locks.error = LockError("a hold named 'web' is in force")
    with pytest.raises(LockError):
        hold(plan(), restart.tools())
    assert restart.holds == []


def test_a_stuck_queue_is_named_and_the_hold_stays(restart: Restart) -> None:
    restart.sockets.requests = 3
    begun = hold(plan(timeout_s=0.5), restart.tools())
    assert begun.warnings == ("3 connections are still in the old listener's queues",)
    assert restart.hold.left is not None


def test_a_stuck_queue_with_abort_is_closed(restart: Restart) -> None:
    restart.sockets.requests = 3
    with pytest.raises(DrainError):
        hold(plan(timeout_s=0.5, on_timeout=OnDrainTimeout.ABORT), restart.tools())
    assert restart.hold.closed
    assert restart.hold.left is None


def test_a_hold_that_ends_while_draining_is_an_error(restart: Restart) -> None:
    restart.sockets.requests = 3
    restart.prepare = lambda made: restart.world.after(
        0.2, lambda: setattr(made, "ended_because", ReleaseReason.SIGNAL)
    )
    with pytest.raises(DrainError, match="before the old listener"):
        hold(plan(), restart.tools())
    assert restart.hold.left is None


class LeftHold(FakeHold):
    """A hold that somebody else has left to its keeper; all stand up again after it."""

    def __init__(self, restart: Restart) -> None:
        super().__init__(restart.world, plan().spec)
        self.spec = plan().spec
        self.old = (restart.old,)
        self.is_releasing = False
        self.hold()


def test_a_probe_that_passes_because_the_hold_has_ended_is_no_release(restart: Restart) -> None:
    kept = LeftHold(restart)

    class Behind(FakeProbe):
        @property
        def passed(self) -> bool:
            kept.ended_because = ReleaseReason.DEADLINE
            return True

        @passed.setter
        def passed(self, value: bool) -> None:
            """It decides for itself."""

    restart.probe = Behind(restart.world)
    restart.listen(restart.new)
    report = release(kept, ReadyPlan(), restart.tools())  # type: ignore[arg-type]
    assert (report.exit_code, report.outcome) == (124, Outcome.DEADLINE)
    assert any("only when the hold had ended" in warning for warning in report.warnings)
