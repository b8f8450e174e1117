"""The sequence of ``synplug wrap``: what comes before what, and that every way out releases."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from synplug.errors import (
    CommandError,
    KeeperError,
    KernelError,
    LockError,
    PrivilegeError,
    ReleaseError,
    UnsupportedError,
)
from synplug.handover.plan import DrainPlan, ReadyPlan, WrapPlan
from synplug.handover.wrap import wrap
from synplug.model import (
    Endpoint,
    Flow,
    OnDrainTimeout,
    Outcome,
    Process,
    ReleaseReason,
    Report,
)
from tests.unit.fakes import FakeCommand, FakeHold, FakeProbe, Restart, connection, listener


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """No terminal sends our signals to the command as well."""
    monkeypatch.setattr("synplug.handover.wrap.reached_the_command_too", lambda *_: False)


@pytest.fixture
def restart() -> Restart:
    return Restart()


def run(restart: Restart, plan: WrapPlan | None = None) -> Report:
    """Run it, and see that nothing is held or locked afterwards."""
    report = wrap(plan or restart.plan(), restart.tools())
    assert_nothing_is_left(restart)
    return report


def assert_nothing_is_left(restart: Restart) -> None:
    for hold in restart.holds:
        assert hold.closed
        assert not hold.is_holding
    assert not restart.locks.taken
    assert restart.locks.drops >= 1


# --- the order of effects


def test_check_lock_arm_hold_drain_spawn_release_in_this_order(restart: Restart) -> None:
    report = run(restart, restart.plan(check=("app", "--check")))
    assert restart.world.log == [
        "check",
        "lock",
        "recover",
        "arm",
        "observe",
        "walk all connections",
        "who has begun",
        "hold",
        "spawn",
        "listeners: 0",
        "listeners: 1",
        "release",
        "the command ends with 0",
        "close",
        "unlock",
    ]
    assert report.ok
    assert report.exit_code == 0


def test_the_report_tells_what_happened(restart: Restart) -> None:
    restart.processes.inodes = {77: {restart.old.inode}, 78: {restart.new.inode}}
    restart.processes.names = {77: "old", 78: "new"}
    restart.recovered = ["run 00000000 had died; cleaned up after it"]
    restart.prepare = lambda hold: setattr(hold, "result_warnings", ("2 SYNs were dropped",))
    report = run(restart)
    assert report.run_id == "0123abcd"
    assert report.outcome is Outcome.READY
    assert report.endpoints == (Endpoint(port=80),)
    assert report.started_at == 1_700_000_000.5
    assert report.command.argv == ("restart", "it")
    assert (report.command.ran, report.command.pid, report.command.status) == (True, 4242, 0)
    assert report.hold is not None
    assert report.hold.reason is ReleaseReason.ASKED
    assert report.drain is not None
    assert report.drain.empty
    assert report.drain.quiet
    (old,), (new,) = report.old_listeners, report.new_listeners
    assert (old.listener, old.owners) == (restart.old, (Process(pid=77, name="old"),))
    assert (new.listener, new.owners) == (restart.new, (Process(pid=78, name="new"),))
    assert report.gap_s == pytest.approx(0.15, abs=0.005)
    assert report.readiness == "replaced"
    assert report.warnings == (
        "run 00000000 had died; cleaned up after it",
        "2 SYNs were dropped",
    )
    assert (report.error, report.remedy) == ("", "")


def test_the_phases_have_their_starts_and_durations(restart: Restart) -> None:
    report = run(restart, restart.plan(check=("app", "--check")))
    phases = {phase.name: phase for phase in report.phases}
    assert set(phases) == {
        "check",
        "arm",
        "look-ahead",
        "hold",
        "drain",
        "ready",
        "command",
        "release",
        "clean-up",
    }
    assert phases["check"].start_s == 0
    assert phases["check"].duration_s == pytest.approx(0.1)
    assert phases["hold"].start_s == pytest.approx(0.101)  # a moment after it began to observe
    assert phases["hold"].duration_s == pytest.approx(0.2, abs=0.01)
    assert phases["command"].duration_s == pytest.approx(0.3, abs=0.01)
    starts = [phase.start_s for phase in report.phases]
    assert starts == sorted(starts)


def test_an_endpoint_that_nobody_listened_on_is_a_warning(restart: Restart) -> None:
    plan = restart.plan(endpoints=(Endpoint(port=80), Endpoint(port=81)))

    def both(command: FakeCommand) -> None:
        restart.listen(restart.new, listener(3, port=81))
        command.end(0)

    restart.script = both
    report = run(restart, plan)
    assert report.warnings == ("nobody listened on *:81 before the command",)


def test_a_lingering_table_is_a_warning(restart: Restart) -> None:
    restart.prepare = lambda hold: setattr(hold, "lingering", "queue 5 holds somebody's packets")
    (warning,) = run(restart).warnings
    assert "stays for a while" in warning
    assert "queue 5 holds" in warning


# --- nothing runs, nothing is held


def assert_untouched(restart: Restart, report: Report) -> None:
    assert "spawn" not in restart.world.log
    assert "hold" not in restart.world.log
    assert not report.command.ran
    assert report.command.status is None
    assert report.hold is None
    assert report.outcome is Outcome.ERROR
    assert not report.ok


def test_a_failed_check_stops_everything(restart: Restart) -> None:
    restart.check_status = 3
    restart.check_output = "line 1\nbad directive in line 7"
    report = run(restart, restart.plan(check=("app", "--check")))
    assert_untouched(restart, report)
    assert "arm" not in restart.world.log
    assert "lock" not in restart.world.log
    assert report.exit_code == 125
    assert report.error == "--check ended with status 3: bad directive in line 7"


@pytest.mark.parametrize("missing", ["restart", "app", "probe"])
def test_a_command_that_is_not_there_stops_everything(restart: Restart, missing: str) -> None:
    restart.missing = {missing}
    plan = restart.plan(check=("app",), ready=ReadyPlan(command=("probe",)))
    report = run(restart, plan)
    assert_untouched(restart, report)
    assert "check" not in restart.world.log
    assert report.exit_code == 127
    assert f"{missing}: command not found" in report.error


def test_a_command_that_is_not_executable_stops_everything(restart: Restart) -> None:
    restart.not_executable["restart"] = CommandError("restart cannot be executed")
    report = run(restart)
    assert_untouched(restart, report)
    assert report.exit_code == 126


def test_a_lock_of_another_run_stops_everything(restart: Restart) -> None:
    restart.locks.error = LockError("another run has port 80", remedy="wait")
    report = run(restart)
    assert_untouched(restart, report)
    assert "arm" not in restart.world.log
    assert (report.exit_code, report.error, report.remedy) == (
        125,
        "another run has port 80",
        "wait",
    )


def test_a_hold_that_cannot_be_armed_stops_everything(restart: Restart) -> None:
    error = UnsupportedError("no nf_tables", remedy="load it")
    restart.prepare = lambda hold: setattr(hold, "arm_error", error)
    report = run(restart)
    assert_untouched(restart, report)
    assert (report.exit_code, report.error, report.remedy) == (125, "no nf_tables", "load it")


def test_a_hold_that_fails_to_begin_never_runs_the_command(restart: Restart) -> None:
    restart.prepare = lambda hold: setattr(hold, "hold_error", KernelError("add the rule", 12))
    report = run(restart)
    assert "spawn" not in restart.world.log
    assert report.exit_code == 125
    assert "add the rule" in report.error


# --- best effort


@pytest.mark.parametrize("stage", ["lock", "arm", "observe", "hold"])
def test_best_effort_runs_the_command_without_a_hold(restart: Restart, stage: str) -> None:
    error = PrivilegeError("no right", capability="CAP_NET_ADMIN")
    if stage == "lock":
        restart.locks.error = error
    else:
        restart.prepare = lambda hold: setattr(hold, f"{stage}_error", error)
    report = run(restart, restart.plan(best_effort=True))
    assert report.command.ran
    assert report.exit_code == 0
    assert report.hold is None
    (warning,) = report.warnings
    assert warning.startswith("nothing is held (--best-effort): no right")
    assert stage == "lock" or restart.hold.closed
    assert all(hold.held_at_s is None for hold in restart.holds)


def test_best_effort_passes_the_status_of_the_command(restart: Restart) -> None:
    restart.prepare = lambda hold: setattr(hold, "arm_error", UnsupportedError("no"))
    restart.script = lambda command: restart.world.after(0.1, lambda: command.end(9))
    report = run(restart, restart.plan(best_effort=True))
    assert (report.exit_code, report.outcome) == (9, Outcome.COMMAND_FAILED)


def test_best_effort_does_not_excuse_a_failed_check(restart: Restart) -> None:
    restart.check_status = 1
    report = run(restart, restart.plan(check=("app",), best_effort=True))
    assert_untouched(restart, report)


# --- the command's end


def test_a_command_that_fails_releases_at_once_and_its_status_passes(restart: Restart) -> None:
    restart.script = lambda command: restart.world.after(0.1, lambda: command.end(42))
    report = run(restart)
    assert (report.exit_code, report.outcome) == (42, Outcome.COMMAND_FAILED)
    hold = restart.hold
    assert hold.released_at_s is not None
    assert hold.held_at_s is not None
    assert hold.released_at_s - hold.held_at_s == pytest.approx(0.1, abs=0.01)


def test_a_foreground_command_is_released_as_soon_as_it_listens(restart: Restart) -> None:
    def foreground(command: FakeCommand) -> None:
        restart.world.after(0.1, lambda: restart.listen(restart.new))
        restart.world.after(500.0, lambda: command.end(0))

    restart.script = foreground
    report = run(restart)
    log = restart.world.log
    assert log.index("release") < log.index("the command ends with 0")
    assert report.hold is not None
    assert report.hold.opened_at_s - report.hold.held_at_s < 0.2
    assert report.ok
    (command,) = [phase for phase in report.phases if phase.name == "command"]
    assert command.duration_s == pytest.approx(500, abs=0.1)


def test_a_foreground_command_that_fails_after_the_release_fails_the_run(restart: Restart) -> None:
    def foreground(command: FakeCommand) -> None:
        restart.listen(restart.new)
        restart.world.after(60.0, lambda: command.end(3))

    restart.script = foreground
    report = run(restart)
    assert (report.exit_code, report.outcome) == (3, Outcome.COMMAND_FAILED)
    assert not report.ok


def test_a_command_that_cannot_be_started_is_released(restart: Restart) -> None:
    restart.spawn_error = CommandError("it: Exec format error")
    report = run(restart)
    assert (report.exit_code, report.outcome) == (126, Outcome.ERROR)
    assert not report.command.ran
    assert restart.hold.released_at_s is not None


def test_a_reload_that_keeps_its_listener_is_released_once_it_has_settled(
    restart: Restart,
) -> None:
    restart.script = lambda command: restart.world.after(0.1, lambda: command.end(0))
    report = run(restart, restart.plan(ready=ReadyPlan(settle_s=0.3)))
    assert report.ok
    assert report.hold is not None
    assert report.hold.opened_at_s - report.hold.held_at_s == pytest.approx(0.4, abs=0.02)


def test_a_reload_waits_for_processes_that_still_change(restart: Restart) -> None:
    def reload(command: FakeCommand) -> None:
        command.end(0)
        restart.world.after(0.25, lambda: restart.processes.children.update({77: {78}}))

    restart.script = reload
    report = run(restart, restart.plan(ready=ReadyPlan(settle_s=0.3)))
    assert report.hold is not None
    assert report.hold.opened_at_s - report.hold.held_at_s == pytest.approx(0.56, abs=0.02)


# --- the deadline


def test_a_service_that_never_listens_ends_at_the_deadline(restart: Restart) -> None:
    restart.script = restart.nobody_listens
    report = run(restart, restart.plan(max_hold_s=2.0))
    assert (report.exit_code, report.outcome) == (124, Outcome.DEADLINE)
    assert report.hold is not None
    assert report.hold.reason is ReleaseReason.DEADLINE
    assert any("no listener" in warning for warning in report.warnings)
    assert not report.ok


def test_the_command_is_seen_to_its_end_after_the_deadline_and_its_failure_wins(
    restart: Restart,
) -> None:
    restart.script = lambda command: restart.world.after(30.0, lambda: command.end(6))
    report = run(restart, restart.plan(max_hold_s=1.0))
    assert (report.exit_code, report.outcome) == (6, Outcome.DEADLINE)
    assert report.command.status == 6


def test_ready_timeout_ends_the_hold_before_its_deadline(restart: Restart) -> None:
    restart.script = restart.nobody_listens
    report = run(restart, restart.plan(max_hold_s=60.0, ready=ReadyPlan(timeout_s=1.0)))
    assert (report.exit_code, report.outcome) == (124, Outcome.DEADLINE)
    assert report.hold is not None
    assert report.hold.reason is ReleaseReason.ASKED
    assert report.hold.opened_at_s - report.hold.held_at_s == pytest.approx(1.0, abs=0.01)


def test_a_hold_that_was_ended_early_is_no_success(restart: Restart) -> None:
    def interfere(command: FakeCommand) -> None:
        restart.usual(command)
        restart.world.after(
            0.1, lambda: setattr(restart.hold, "ended_because", ReleaseReason.SIGNAL)
        )

    restart.script = interfere
    report = run(restart)
    assert (report.exit_code, report.outcome) == (125, Outcome.ERROR)
    assert "ended early (signal)" in report.error
    assert report.command.status == 0


@pytest.mark.parametrize("tells_the_last", [True, False])
@pytest.mark.parametrize("is_seen", [True, False])
def test_a_configuration_test_of_the_command_is_no_new_listener(
    restart: Restart, *, is_seen: bool, tells_the_last: bool
) -> None:
    """`kill -QUIT; nginx -t; nginx`: found while it listens, or ending already."""
    tested = listener(7)
    restart.processes.tells_the_last = tells_the_last
    restart.processes.command_lines[4300] = []
    if is_seen:
        restart.processes.children[4242] = {4300}
        restart.processes.inodes[4300] = {tested.inode}
        restart.processes.command_lines[4300] = ["/usr/sbin/nginx", "-c", "/t.conf", "-qt"]

    def script(command: FakeCommand) -> None:
        restart.world.after(0.05, lambda: restart.listen(tested))
        restart.world.after(0.058, restart.listen)
        restart.world.after(0.20, lambda: restart.listen(restart.new))
        restart.world.after(9.0, lambda: command.end(0))

    restart.script = script
    report = run(restart)
    assert report.ok
    assert report.hold is not None
    assert report.hold.opened_at_s - report.hold.held_at_s == pytest.approx(0.2, abs=0.003)


@pytest.mark.parametrize("tells_the_last", [True, False])
@pytest.mark.parametrize(
    ("words", "at_s"), [(["nginx"], 0.2), (["nginx", "-t"], 0.5), ([], 0.5)], ids=str
)
def test_a_listener_of_a_daemon_is_one(
    restart: Restart, words: list[str], at_s: float, *, tells_the_last: bool
) -> None:
    """It is none of the command's children any more; while it ends, it has no words."""
    restart.processes.tells_the_last = tells_the_last
    restart.processes.inodes[4242] = set()
    restart.processes.inodes[4300] = {restart.new.inode}
    restart.processes.command_lines[4300] = words

    def script(command: FakeCommand) -> None:
        restart.world.after(0.05, restart.listen)
        restart.world.after(0.20, lambda: restart.listen(restart.new))
        restart.world.after(0.5, lambda: command.end(0))

    restart.script = script
    report = run(restart)
    assert report.ok
    assert report.hold is not None
    assert report.hold.opened_at_s - report.hold.held_at_s == pytest.approx(at_s, abs=0.003)


def test_a_daemon_is_there_before_its_parent_ends(restart: Restart) -> None:
    """Both have the listener; the parent has lost its words already."""
    restart.processes.command_lines[4242] = []
    restart.processes.inodes[4300] = {restart.new.inode}
    restart.processes.children[4242] = {4300}
    report = run(restart)
    assert report.hold is not None
    assert report.hold.opened_at_s - report.hold.held_at_s == pytest.approx(0.2, abs=0.003)


@pytest.mark.parametrize(
    ("tells_the_last", "is_ending", "at_s"),
    [(True, True, 0.21), (True, False, 0.2), (False, False, 0.21)],
)
def test_a_new_listener_of_nobody_we_know_is_looked_at_again(
    restart: Restart, *, tells_the_last: bool, is_ending: bool, at_s: float
) -> None:
    """A process that ends has lost its descriptors before its listeners go; a daemon stays.

    Where no process that is there can be one that ends, there is nothing to wait for.
    """
    restart.processes.tells_the_last = tells_the_last
    restart.processes.inodes[4242] = set()
    if is_ending:
        restart.processes.command_lines[4300] = []
    report = run(restart)
    assert report.ok
    assert report.hold is not None
    assert report.hold.opened_at_s - report.hold.held_at_s == pytest.approx(at_s, abs=0.003)


@pytest.mark.parametrize(
    ("reason", "status", "outcome"),
    [
        (ReleaseReason.DEADLINE, 124, Outcome.DEADLINE),
        (ReleaseReason.SIGNAL, 125, Outcome.ERROR),
    ],
)
def test_a_probe_that_passes_because_the_hold_has_ended_is_no_success(
    restart: Restart, reason: ReleaseReason, status: int, outcome: Outcome
) -> None:
    """It waited behind the hold, whose end comes between two looks of ours."""

    class Behind(FakeProbe):
        @property
        def passed(self) -> bool:
            if restart.world.now_s < 1001.0:
                return False
            restart.hold.ended_because = reason
            return True

        @passed.setter
        def passed(self, value: bool) -> None:
            """It decides for itself."""

    restart.probe = Behind(restart.world)
    report = run(restart)
    assert (report.exit_code, report.outcome) == (status, outcome)
    assert report.hold is not None
    assert report.hold.reason is reason
    if outcome is Outcome.DEADLINE:
        late, itself = report.warnings
        assert "only when the hold had ended" in late
        assert "waited for itself" in itself


# --- signals


def test_a_signal_before_the_command_means_it_never_runs(restart: Restart) -> None:
    restart.sockets.requests = 1  # the drain would take a second
    restart.world.after(0.2, lambda: restart.signals.arrive(signal.SIGTERM))
    report = run(restart)
    assert "spawn" not in restart.world.log
    assert not report.command.ran
    assert (report.exit_code, report.outcome) == (128 + 15, Outcome.INTERRUPTED)
    assert restart.hold.released_at_s == pytest.approx(restart.world.now_s)
    assert restart.world.now_s - 1000.0 == pytest.approx(0.2, abs=0.01)


def test_a_signal_while_waiting_for_a_lock_ends_the_wait(restart: Restart) -> None:
    restart.locks.error = LockError("another run has port 80")
    restart.world.after(0.2, lambda: restart.signals.arrive(signal.SIGTERM))
    report = run(restart, restart.plan(lock_timeout_s=60.0))
    assert restart.world.now_s - 1000.0 == pytest.approx(0.2)
    assert not report.command.ran
    assert "arm" not in restart.world.log
    assert (report.exit_code, report.outcome) == (128 + 15, Outcome.INTERRUPTED)


def test_a_signal_that_came_while_arming_means_that_nothing_is_held(restart: Restart) -> None:
    restart.prepare = lambda hold: restart.signals.arrive(signal.SIGTERM)
    report = run(restart)
    assert "hold" not in restart.world.log
    assert not report.command.ran
    assert (report.exit_code, report.outcome) == (128 + 15, Outcome.INTERRUPTED)


def test_a_signal_while_draining_is_no_drain_timeout(restart: Restart) -> None:
    restart.sockets.requests = 1
    restart.world.after(0.2, lambda: restart.signals.arrive(signal.SIGTERM))
    report = run(restart, restart.plan(drain=DrainPlan(on_timeout=OnDrainTimeout.ABORT)))
    assert not report.command.ran
    assert (report.exit_code, report.outcome) == (128 + 15, Outcome.INTERRUPTED)


def test_a_signal_after_the_spawn_is_passed_on_and_releases(restart: Restart) -> None:
    def interrupted(command: FakeCommand) -> None:
        restart.listen()
        restart.world.after(0.1, lambda: restart.signals.arrive(signal.SIGTERM))
        restart.world.after(0.5, lambda: command.end(143))

    restart.script = interrupted
    report = run(restart)
    assert restart.command.got == [signal.SIGTERM]
    log = restart.world.log
    assert log.index("release") < log.index("the command ends with 143")
    assert (report.exit_code, report.outcome) == (143, Outcome.INTERRUPTED)


def test_a_signal_while_releasing_is_passed_on_and_ends_a_release_that_gets_nowhere(
    restart: Restart,
) -> None:
    began_s = restart.world.now_s

    def interrupted(command: FakeCommand) -> None:
        restart.listen(restart.new)
        restart.world.after(1.0, lambda: restart.signals.arrive(signal.SIGTERM))
        restart.world.after(2.0, lambda: command.end(143))

    restart.script = interrupted
    restart.prepare = lambda hold: setattr(hold, "pace_s", None)
    report = run(restart)
    log = restart.world.log
    assert restart.command.got == [signal.SIGTERM]
    assert log.index("signal 15 to the command") < log.index("open now")
    assert restart.hold.released_at_s is not None
    assert restart.hold.released_at_s - began_s == pytest.approx(1.5, abs=0.06)
    assert report.exit_code == 143


def test_a_signal_does_not_hurry_a_release_that_is_about_to_end(restart: Restart) -> None:
    def interrupted(command: FakeCommand) -> None:
        restart.usual(command)
        restart.world.after(0.3, lambda: restart.signals.arrive(signal.SIGHUP))

    restart.script = interrupted
    restart.prepare = lambda hold: setattr(hold, "pace_s", 0.4)
    run(restart)
    assert "open now" not in restart.world.log


def test_a_command_that_survives_the_signal_has_its_own_status(restart: Restart) -> None:
    def stubborn(command: FakeCommand) -> None:
        restart.world.after(0.1, lambda: restart.signals.arrive(signal.SIGHUP))
        restart.world.after(0.5, lambda: command.end(0))

    restart.script = stubborn
    report = run(restart)
    assert (report.exit_code, report.outcome) == (0, Outcome.INTERRUPTED)
    assert not report.ok


def test_signals_reach_a_foreground_command_after_the_release(restart: Restart) -> None:
    def foreground(command: FakeCommand) -> None:
        restart.listen(restart.new)
        restart.world.after(10.0, lambda: restart.signals.arrive(signal.SIGHUP))
        restart.world.after(20.0, lambda: restart.signals.arrive(signal.SIGTERM))
        restart.world.after(20.1, lambda: command.end(0))

    restart.script = foreground
    report = run(restart)
    assert restart.command.got == [signal.SIGHUP, signal.SIGTERM]
    assert report.exit_code == 0


def test_a_signal_that_the_terminal_sent_to_the_command_is_not_sent_twice(
    restart: Restart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synplug.handover.wrap.reached_the_command_too", lambda *_: True)

    def interrupted(command: FakeCommand) -> None:
        restart.world.after(0.01, lambda: restart.signals.arrive(signal.SIGINT))
        restart.world.after(0.1, lambda: command.end(130))

    restart.script = interrupted
    report = run(restart)
    assert restart.command.got == []
    assert report.exit_code == 130


# --- the keeper


def test_a_lost_keeper_fails_the_run_but_the_command_is_seen_to_its_end(
    restart: Restart,
) -> None:
    def lose(command: FakeCommand) -> None:
        restart.listen()
        restart.world.after(0.1, lambda: setattr(restart.hold, "is_lost", True))
        restart.world.after(9.0, lambda: restart.listen(restart.new))
        restart.world.after(9.1, lambda: command.end(0))

    restart.script = lose
    report = run(restart)
    assert (report.exit_code, report.outcome) == (125, Outcome.ERROR)
    assert report.error == "the keeper died"
    assert report.command.status == 0
    assert restart.world.log[-4:] == [
        "close",
        "listeners: 1",
        "the command ends with 0",
        "unlock",
    ]


def test_a_lost_keeper_does_not_hide_the_status_of_the_command(restart: Restart) -> None:
    def lose(command: FakeCommand) -> None:
        restart.world.after(0.1, lambda: setattr(restart.hold, "is_lost", True))
        restart.world.after(1.0, lambda: command.end(5))

    restart.listen()
    restart.script = lose
    report = run(restart)
    assert report.exit_code == 5
    assert report.error == "the keeper died"
    assert report.hold is not None
    assert report.hold.reason is ReleaseReason.KEEPER_LOST


def test_a_failed_release_is_loud(restart: Restart) -> None:
    error = ReleaseError("3 packets still wait", remedy="synplug recover")
    restart.prepare = lambda hold: setattr(hold, "release_error", error)
    report = run(restart)
    assert (report.exit_code, report.outcome) == (125, Outcome.ERROR)
    assert (report.error, report.remedy) == ("3 packets still wait", "synplug recover")
    assert report.command.status == 0


# --- draining


def test_a_full_queue_is_a_warning_after_the_drain_timeout(restart: Restart) -> None:
    restart.sockets.requests = 4
    report = run(restart, restart.plan(drain=DrainPlan(timeout_s=0.5)))
    assert report.drain is not None
    assert (report.drain.empty, report.drain.left) == (False, 4)
    assert report.warnings == ("4 connections were still in the old listener's queues",)
    assert report.exit_code == 0
    (drain,) = [phase for phase in report.phases if phase.name == "drain"]
    assert drain.duration_s == pytest.approx(0.5, abs=0.01)


def test_a_full_queue_with_abort_never_runs_the_command(restart: Restart) -> None:
    restart.sockets.requests = 4
    plan = restart.plan(drain=DrainPlan(timeout_s=0.5, on_timeout=OnDrainTimeout.ABORT))
    report = run(restart, plan)
    assert "spawn" not in restart.world.log
    assert not report.command.ran
    assert (report.exit_code, report.outcome) == (125, Outcome.ERROR)
    assert "4 connections were still in the old listener's queues" in report.error
    assert restart.hold.released_at_s is not None


def test_busy_connections_delay_the_command_no_longer_than_quiesce(restart: Restart) -> None:
    restart.sockets.established = [connection(unread=1)]
    report = run(restart, restart.plan(drain=DrainPlan(quiesce_s=0.25)))
    assert report.drain is not None
    assert (report.drain.quiet, report.drain.busy) == (False, 1)
    (drain,) = [phase for phase in report.phases if phase.name == "drain"]
    assert drain.duration_s == pytest.approx(0.25, abs=0.01)
    assert report.exit_code == 0


def test_a_hold_that_ended_while_draining_never_runs_the_command(restart: Restart) -> None:
    restart.sockets.requests = 4
    plan = restart.plan(max_hold_s=1.0, drain=DrainPlan(timeout_s=20.0))
    report = run(restart, plan)
    assert not report.command.ran


# --- readiness checks


def test_a_probe_is_waited_for_and_stopped(restart: Restart) -> None:
    probe = FakeProbe(restart.world)
    restart.probe = probe
    restart.world.after(0.8, lambda: setattr(probe, "passed", True))
    report = run(restart)
    assert not probe.running
    assert report.hold is not None
    assert report.hold.opened_at_s - report.hold.held_at_s == pytest.approx(0.8, abs=0.01)
    log = restart.world.log
    assert log.index("listeners: 1") < log.index("probe") < log.index("release")


def test_a_probe_that_never_passes_says_why(restart: Restart) -> None:
    probe = FakeProbe(restart.world)
    probe.complaint = "http://x/ answered 503"
    restart.probe = probe
    report = run(restart, restart.plan(max_hold_s=1.0))
    assert report.exit_code == 124
    assert not probe.running
    assert any("http://x/ answered 503" in warning for warning in report.warnings)


def test_the_commands_own_connections_are_let_through(restart: Restart) -> None:
    flow = Flow(b"f" * 12)
    restart.processes.inodes[4242] = {5555}
    restart.sockets.syn_sent = [(5555, flow), (6666, Flow(b"g" * 12))]
    run(restart)
    assert restart.hold.passed == [flow]


# --- every way out


def _hold_raises(restart: Restart, error: BaseException) -> None:
    restart.prepare = lambda hold: setattr(hold, "hold_error", error)


def _spawn_raises(restart: Restart, error: BaseException) -> None:
    restart.spawn_error = error


def _arm_raises(restart: Restart, error: BaseException) -> None:
    restart.prepare = lambda hold: setattr(hold, "arm_error", error)


def _waiting_raises(restart: Restart, error: BaseException) -> None:
    def script(command: FakeCommand) -> None:
        restart.usual(command)
        restart.world.after(0.1, lambda: setattr(restart.sockets, "error", error))

    restart.script = script


def _draining_raises(restart: Restart, error: BaseException) -> None:
    def raises() -> None:
        raise error

    restart.sockets.requests = 1
    restart.world.after(0.1, raises)


def _the_commands_end_raises(restart: Restart, error: BaseException) -> None:
    def raises() -> None:
        raise error

    def script(command: FakeCommand) -> None:
        restart.listen(restart.new)
        restart.world.after(30.0, raises)

    restart.script = script


_BREAKS = [
    _arm_raises,
    _hold_raises,
    _draining_raises,
    _spawn_raises,
    _waiting_raises,
    _the_commands_end_raises,
]


@pytest.mark.parametrize("breaks", _BREAKS)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_whatever_is_raised_nothing_stays_held_or_locked(
    restart: Restart, breaks: Callable[[Restart, BaseException], None], error: BaseException
) -> None:
    breaks(restart, error)
    with pytest.raises(type(error)):
        wrap(restart.plan(), restart.tools())
    assert_nothing_is_left(restart)


@pytest.mark.parametrize("breaks", _BREAKS)
@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError(24, "Too many open files")])
def test_what_nobody_foresaw_is_told_in_the_report(
    restart: Restart, breaks: Callable[[Restart, BaseException], None], error: Exception
) -> None:
    breaks(restart, error)

    def end() -> None:  # a command that runs is seen to its end
        for command in restart.commands:
            command.end(0)

    restart.world.after(60.0, end)
    report = wrap(restart.plan(), restart.tools())
    assert report.exit_code == 125
    assert report.outcome is Outcome.ERROR
    assert str(error) in report.error
    assert_nothing_is_left(restart)


def test_a_release_that_breaks_still_closes_and_unlocks(restart: Restart) -> None:
    restart.prepare = lambda hold: setattr(hold, "release_error", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        wrap(restart.plan(), restart.tools())
    assert_nothing_is_left(restart)


def test_a_defect_in_the_release_is_told_in_the_report(restart: Restart) -> None:
    restart.prepare = lambda hold: setattr(hold, "release_error", RuntimeError("a bug"))
    report = run(restart)
    assert report.exit_code == 125
    assert "a bug" in report.error
    assert_nothing_is_left(restart)


def test_a_keeper_lost_at_the_release_is_an_error(restart: Restart) -> None:
    def lose(hold: FakeHold) -> None:
        hold.release_error = KeeperError("the keeper died")

    restart.prepare = lose
    report = run(restart)
    assert report.exit_code == 125
    assert report.command.status == 0


def test_a_signal_after_the_commands_end_is_not_taken_for_success(restart: Restart) -> None:
    """The command has succeeded, the service is not there yet, and nobody got the signal."""

    def quick(command: FakeCommand) -> None:
        command.end(0)
        restart.sockets.now = []
        restart.world.after(0.4, lambda: restart.signals.arrive(signal.SIGTERM))

    restart.script = quick
    report = run(restart)
    assert (report.exit_code, report.outcome) == (128 + 15, Outcome.INTERRUPTED)


def test_a_system_that_refuses_everything_is_an_error_with_a_report(restart: Restart) -> None:
    restart.prepare = lambda hold: setattr(hold, "arm_error", OSError(24, "Too many open files"))
    report = run(restart)
    assert_untouched(restart, report)
    assert report.exit_code == 125
    assert "Too many open files" in report.error


def test_a_signal_during_a_check_that_survives_it_is_no_success(restart: Restart) -> None:
    restart.world.after(0.05, lambda: restart.signals.arrive(signal.SIGTERM))
    report = run(restart, restart.plan(check=("app", "--check")))
    assert not report.command.ran
    assert (report.exit_code, report.outcome) == (128 + 15, Outcome.INTERRUPTED)


def test_what_is_known_not_to_be_held_runs_all_the_same(restart: Restart) -> None:
    """As with --best-effort and a stale pidfile."""
    plan = restart.plan(best_effort=True, endpoints=(), unheld="pidfile x: there is no process 9")
    report = run(restart, plan)
    assert report.command.ran
    assert report.exit_code == 0
    assert report.warnings == ("nothing is held (--best-effort): pidfile x: there is no process 9",)
    assert restart.holds == []
