"""The sequence of ``synplug swap``: what comes before what; one generation always serves."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from synplug.errors import CommandError, KernelError, LockError, UnsupportedError
from synplug.fate import Fate
from synplug.handover.generation import Generation, Lineage
from synplug.handover.plan import DrainPlan, ReadyPlan, RetirePlan, StopMethod, SwapPlan
from synplug.handover.swap import swap
from synplug.handover.tools import REFUSED
from synplug.kernel.sock_diag import Connection
from synplug.model import Endpoint, OnDrainTimeout, Outcome, ReleaseReason, Report
from synplug.record import replace
from tests.unit.fakes import FakeCommand, FakeHold, FakeProbe, Restart, connection, listener

OLD, NEW, WE, KEEPER = 77, 4242, 500, 4711
POST = StopMethod(post="unix:/run/admin-{generation}.sock:/drain")


class Service(Restart):
    """A service of two generations: 77 listens; the new one, 4242, comes up after 100 ms.

    A signal ends the old one 5 ms later; a POST closes its listeners only.
    """

    def __init__(self) -> None:
        super().__init__()
        self.processes.children = {WE: {KEEPER, NEW}}
        self.processes.sessions = {WE: WE}
        self.script = self.comes_up
        self.on_signal = self.obeys
        self.on_post = self.drains

    def comes_up(self, command: FakeCommand) -> None:
        """The new one listens beside whoever does."""
        self.world.after(0.1, self.stands)

    def stands(self) -> None:
        if NEW in self.processes.dead:
            return
        self.world.note("the new one stands")
        self.processes.inodes[NEW] = {self.new.inode}
        self.sockets.now.append(self.new)

    def obeys(self, pid: int, number: int) -> None:
        """It ends at once, its listeners with it."""
        self.world.after(0.005, lambda: self.ends(pid, number))

    def ends(self, pid: int, number: int) -> None:
        if pid in self.processes.dead:
            return
        gone = self.processes.inodes.pop(pid, set())
        self.sockets.now = [own for own in self.sockets.now if own.inode not in gone]
        self.processes.dead.add(pid)
        self.world.note(f"{pid} is gone")
        if pid == NEW:
            self.command.status = 128 + number

    def drains(self, command: FakeCommand) -> None:
        self.world.after(0.002, lambda: self.sockets.now.remove(self.old))
        command.end(0)

    def swap_plan(self, **changes: object) -> SwapPlan:
        of_hold = {name: changes.pop(name) for name in {"max_hold_s"} & changes.keys()}
        spec = self.plan(**of_hold).spec
        values: dict[str, object] = {"ready": ReadyPlan(timeout_s=10.0)}
        return SwapPlan(argv=("serve", "it"), spec=spec, **(values | changes))  # type: ignore[arg-type]


@pytest.fixture
def service() -> Service:
    return Service()


def run(service: Service, **changes: object) -> Report:
    """Swap, and see that nothing is held or locked afterwards, and somebody serves."""
    tools = service.tools()
    report = swap(
        service.swap_plan(**changes),
        tools,
        old=Generation(OLD, tools=tools),
        lineage=Lineage(service.processes, WE),
    )
    for hold in service.holds:
        assert hold.closed
        assert not hold.is_holding
    assert not service.locks.taken
    assert service.sockets.now, "nobody serves"
    return report


def assert_the_old_one_serves(service: Service, report: Report) -> None:
    assert service.sockets.now == [service.old]
    assert OLD not in service.processes.dead
    assert report.old_generation is not None
    assert report.old_generation.fate is Fate.SERVING
    assert not service.commands or NEW in service.processes.dead


# --- the order of effects


def test_start_ready_hold_drain_stop_gone_release_in_this_order(service: Service) -> None:
    report = run(service, check=("serve", "--check"))
    assert service.world.log == [
        "check",
        "lock",
        "recover",
        "arm",
        "spawn",
        "the new one stands",
        "observe",
        "walk all connections",
        "who has begun",
        "hold",
        "signal 15 to 77",
        "77 is gone",
        "release",
        "close",
        "unlock",
    ]
    assert (report.outcome, report.exit_code) == (Outcome.READY, 0)
    assert service.sockets.now == [service.new]


def test_the_report_tells_what_happened(service: Service) -> None:
    report = run(service)
    assert report.ok
    assert report.command.argv == ("serve", "it")
    assert (report.command.ran, report.command.pid, report.command.status) == (True, NEW, None)
    assert report.hold is not None
    assert report.hold.reason is ReleaseReason.ASKED
    assert report.hold.opened_at_s - report.hold.held_at_s < 0.02, "held longer than needed"
    assert report.drain is not None
    assert report.drain.empty
    assert report.readiness == "replaced"
    old = report.old_generation
    assert old is not None
    assert (old.pid, old.fate, old.stop) == (OLD, Fate.ENDED, "SIGTERM")
    assert [own.listener for own in report.old_listeners] == [service.old]
    assert [own.listener for own in report.new_listeners] == [service.new]
    assert {phase.name for phase in report.phases} == {
        "arm", "ready", "look-ahead", "hold", "drain", "stop", "release", "clean-up", "linger",
    }  # fmt: skip


def test_nothing_is_held_while_the_new_one_comes_up(service: Service) -> None:
    seen = []
    service.world.after(0.05, lambda: seen.append(service.hold.is_holding))
    run(service)
    assert seen == [False]


def test_somebody_elses_listener_on_the_port_is_not_the_new_one(service: Service) -> None:
    """SO_REUSEPORT: a third one stands there, too."""

    def third(command: FakeCommand) -> None:
        service.processes.inodes[99] = {listener(9).inode}
        service.sockets.now.append(listener(9))

    service.script = third
    report = run(service, ready=ReadyPlan(timeout_s=1.0))
    assert report.exit_code == 124
    assert service.hold.held_at_s is None


def test_every_endpoint_of_the_old_one_must_be_served(service: Service) -> None:
    other = listener(3, port=81)
    service.sockets.now.append(other)
    service.processes.inodes[OLD].add(other.inode)
    spec = replace(service.plan().spec, endpoints=(Endpoint(port=80), Endpoint(port=81)))
    tools = service.tools()
    plan = replace(service.swap_plan(ready=ReadyPlan(timeout_s=1.0)), spec=spec)
    report = swap(
        plan,
        tools,
        old=Generation(OLD, tools=tools),
        lineage=Lineage(service.processes, WE),
    )
    assert report.exit_code == 124
    assert "0.0.0.0:81" in " ".join(report.warnings)
    assert set(map(str, service.sockets.now)) == {"0.0.0.0:80", "0.0.0.0:81"}


def test_a_daemon_is_found_although_its_first_process_has_ended(service: Service) -> None:
    def daemonizes(command: FakeCommand) -> None:
        command.end(0)
        service.processes.dead.add(NEW)
        service.processes.children[WE] = {KEEPER, 4300}
        service.processes.inodes[4300] = {service.new.inode}
        service.sockets.now.append(service.new)

    service.script = daemonizes
    assert run(service).exit_code == 0


def test_the_probe_must_pass_before_anything_is_held(service: Service) -> None:
    probe = service.probe = FakeProbe(service.world)
    service.world.after(0.5, lambda: setattr(probe, "passed", True))
    report = run(service)
    assert report.exit_code == 0
    assert service.hold.held_at_s is not None
    assert service.hold.held_at_s >= 1000.5
    assert not probe.running


# --- stop methods


def test_a_post_closes_listeners_and_sigterm_follows_when_it_has_no_connection(
    service: Service,
) -> None:
    report = run(service, stop=POST)
    assert "POST unix:/run/admin-0.sock:/drain" in service.world.log
    log = service.world.log
    assert log.index("release") < log.index("signal 15 to 77")
    assert report.old_generation is not None
    assert report.old_generation.fate is Fate.TERMINATED


def test_established_connections_are_given_the_linger_time(service: Service) -> None:
    service.processes.inodes[OLD].add(9000)
    service.sockets.established = [connection(inode=9000)]
    report = run(service, stop=POST, retire=RetirePlan(linger_s=3.0), drain=DrainPlan(quiesce_s=0))
    assert report.old_generation is not None
    assert report.old_generation.took_s == pytest.approx(3.0, abs=0.2)


def test_connections_of_the_new_generation_are_not_waited_for(service: Service) -> None:
    service.processes.inodes[NEW] = {9001}
    service.sockets.established = [connection(inode=9001, since_received_ms=0, since_sent_ms=5)]
    report = run(service)
    assert report.drain is not None
    assert report.drain.quiet
    assert report.hold is not None
    assert report.hold.opened_at_s - report.hold.held_at_s < 0.1


def test_one_that_does_not_end_is_killed(service: Service) -> None:
    service.on_signal = lambda pid, number: (
        service.obeys(pid, number) if number == signal.SIGKILL else None
    )
    report = run(service, stop=POST, retire=RetirePlan(linger_s=1.0, kill_after_s=2.0))
    assert report.exit_code == 0
    old = report.old_generation
    assert old is not None
    assert old.fate is Fate.KILLED
    assert old.took_s == pytest.approx(2.2, abs=0.3)


def test_a_stop_that_does_nothing_is_followed_by_force_under_the_hold(service: Service) -> None:
    service.on_post = lambda command: command.end(0)
    report = run(service, stop=POST)
    assert report.exit_code == 0
    log = service.world.log
    assert log.index("signal 15 to 77") < log.index("release")
    assert report.old_generation is not None
    assert report.old_generation.fate is Fate.TERMINATED
    assert "not gone 2 s after POST" in " ".join(report.warnings)


def test_a_stop_that_is_refused_leaves_the_old_one_serving(service: Service) -> None:
    def answers_404(command: FakeCommand) -> None:
        command.pid = 0
        command.end(REFUSED)

    service.on_post = answers_404
    report = run(service, stop=POST)
    assert (report.outcome, report.exit_code) == (Outcome.ERROR, 125)
    assert "failed with status 1" in report.error
    assert_the_old_one_serves(service, report)


def test_a_stop_that_fails_without_an_answer_is_no_way_back(service: Service) -> None:
    """It may be heard all the same, or later; with the new one ended nobody would serve then."""
    service.on_post = lambda command: command.end(28)
    report = run(service, stop=POST)
    assert report.exit_code == 0
    assert report.old_generation is not None
    assert report.old_generation.fate is Fate.TERMINATED
    assert "failed with status 28" in " ".join(report.warnings)
    assert NEW not in service.processes.dead


def test_shared_listeners_stay_and_are_told(service: Service) -> None:
    """Nginx's USR2: the new generation has the very same sockets open."""

    def inherits(command: FakeCommand) -> None:
        service.processes.inodes[NEW] = {service.old.inode}

    service.script = inherits
    service.on_signal = lambda pid, number: service.processes.dead.add(pid)
    report = run(service)
    assert report.exit_code == 0
    assert "same listeners" in " ".join(report.warnings)


# --- failures before the old one was stopped


def dies(service: Service, status: int) -> Callable[[FakeCommand], None]:
    def script(command: FakeCommand) -> None:
        service.processes.dead.add(NEW)
        command.end(status)

    return script


@pytest.mark.parametrize(("status", "code"), [(3, 3), (139, 139), (0, 125)])
def test_a_new_one_that_dies_ends_the_swap_with_its_status(
    service: Service, status: int, code: int
) -> None:
    service.script = dies(service, status)
    report = run(service)
    assert (report.outcome, report.exit_code) == (Outcome.COMMAND_FAILED, code)
    assert service.hold.held_at_s is None
    assert_the_old_one_serves(service, report)


def test_a_new_one_that_is_not_ready_in_time_is_ended(service: Service) -> None:
    service.script = lambda command: None
    report = run(service, ready=ReadyPlan(timeout_s=2.0))
    assert (report.outcome, report.exit_code) == (Outcome.DEADLINE, 124)
    assert service.hold.held_at_s is None
    assert_the_old_one_serves(service, report)


def test_a_new_one_that_stands_but_is_not_ready_leaves_under_a_hold(service: Service) -> None:
    """It has been given its share of the clients, and they are served before it goes."""
    service.probe = FakeProbe(service.world)
    report = run(service, ready=ReadyPlan(timeout_s=2.0))
    assert report.exit_code == 124
    log = service.world.log
    assert log.index("hold") < log.index("signal 15 to 4242") < log.index("release")
    assert_the_old_one_serves(service, report)


@pytest.mark.parametrize("later_s", [0.05, 0.25])
def test_a_new_one_that_listens_and_then_dies_ends_the_swap(
    service: Service, later_s: float
) -> None:
    """A worker that cannot load its application, say."""

    def falls(command: FakeCommand) -> None:
        service.comes_up(command)
        service.world.after(0.1 + later_s, lambda: service.ends(NEW, 3 - 128))

    service.script = falls
    report = run(service)
    assert (report.outcome, report.exit_code) == (Outcome.COMMAND_FAILED, 3)
    assert service.hold.held_at_s is None
    assert_the_old_one_serves(service, report)


def test_one_whose_workers_come_and_go_is_not_ready(service: Service) -> None:
    def crashes_again_and_again(command: FakeCommand) -> None:
        service.comes_up(command)
        for number in range(40):
            service.world.after(0.1 * number, lambda pid=5000 + number: replaces(pid))  # type: ignore[misc]

    def replaces(pid: int) -> None:
        service.processes.dead.add(pid - 1)
        service.processes.children[NEW] = {pid}
        service.processes.inodes[pid] = {service.new.inode}

    service.script = crashes_again_and_again
    report = run(service, ready=ReadyPlan(timeout_s=2.0))
    assert (report.outcome, report.exit_code) == (Outcome.DEADLINE, 124)
    assert "--settle" in " ".join(report.warnings)


def test_one_that_falls_while_the_old_one_drains_takes_nothing_along(service: Service) -> None:
    """The old one has not been told yet."""
    service.prepare = lambda hold: service.world.after(0.6, lambda: service.ends(NEW, 11))
    service.sockets.requests = 1
    report = run(service, drain=DrainPlan(timeout_s=0.5))
    assert service.hold.held_at_s is not None
    assert (report.outcome, report.exit_code) == (Outcome.COMMAND_FAILED, 139)
    assert "any more" in " ".join(report.warnings)
    assert "signal 15 to 77" not in service.world.log
    assert_the_old_one_serves(service, report)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_before_the_stop_ends_the_new_one(service: Service, number: int) -> None:
    service.world.after(0.05, lambda: service.signals.arrive(number))
    report = run(service)
    assert (report.outcome, report.exit_code) == (Outcome.INTERRUPTED, 128 + number)
    assert_the_old_one_serves(service, report)


def deaf_until_killed(service: Service, *, stands: bool) -> None:
    """The new one never becomes ready, and ignores SIGTERM."""
    service.on_signal = lambda pid, number: (
        service.obeys(pid, number) if number == signal.SIGKILL else None
    )
    service.probe = FakeProbe(service.world)
    if not stands:
        service.script = lambda command: None


@pytest.mark.parametrize(("stands", "signal_s"), [(False, 0.2), (True, 0.2), (False, 2.5)], ids=str)
def test_a_signal_waits_for_no_deaf_new_one(
    service: Service, stands: bool, signal_s: float
) -> None:
    """Also one that comes while it is being ended: not ready in time, say."""
    deaf_until_killed(service, stands=stands)
    began_s = service.world.now_s
    service.world.after(signal_s, lambda: service.signals.arrive(signal.SIGTERM))
    report = run(service, ready=ReadyPlan(timeout_s=2.0), retire=RetirePlan(kill_after_s=60.0))
    assert_the_old_one_serves(service, report)
    assert service.world.now_s - began_s == pytest.approx(signal_s + 1.0, abs=0.3)


@pytest.mark.parametrize("stands", [False, True])
def test_without_a_signal_a_deaf_new_one_has_all_of_kill_after(
    service: Service, stands: bool
) -> None:
    """The control."""
    deaf_until_killed(service, stands=stands)
    began_s = service.world.now_s
    report = run(service, ready=ReadyPlan(timeout_s=2.0), retire=RetirePlan(kill_after_s=60.0))
    assert_the_old_one_serves(service, report)
    assert service.world.now_s - began_s == pytest.approx(62.0, abs=0.3)


def test_a_new_one_that_ends_by_sigterm_has_the_time_for_it(service: Service) -> None:
    service.on_signal = lambda pid, number: service.world.after(
        0.7, lambda: service.ends(pid, number)
    )
    service.script = lambda command: None
    service.world.after(0.2, lambda: service.signals.arrive(signal.SIGTERM))
    run(service, retire=RetirePlan(kill_after_s=60.0))
    assert f"signal {signal.SIGKILL} to {NEW}" not in service.world.log


def test_a_signal_after_the_stop_cannot_turn_back(service: Service) -> None:
    def drains(command: FakeCommand) -> None:
        service.drains(command)
        service.world.after(0.001, lambda: service.signals.arrive(signal.SIGTERM))

    service.on_post = drains
    service.processes.inodes[OLD].add(9000)
    service.sockets.established = [connection(inode=9000)]
    report = run(service, stop=POST, drain=DrainPlan(quiesce_s=0))
    assert report.exit_code == 0
    assert service.sockets.now == [service.new]


def test_a_signal_while_it_lingers_ends_the_old_one_at_once(service: Service) -> None:
    service.processes.inodes[OLD].add(9000)
    service.sockets.established = [connection(inode=9000)]
    service.world.after(2.4, lambda: service.signals.arrive(signal.SIGTERM))
    report = run(service, stop=POST, drain=DrainPlan(quiesce_s=0))
    assert report.exit_code == 0
    assert report.old_generation is not None
    assert report.old_generation.took_s == pytest.approx(2.0, abs=0.2)


def test_an_old_one_that_cannot_be_ended_is_told(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's, and no CAP_KILL."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    service.processes.inodes[OLD].add(9000)
    service.sockets.established = [connection(inode=9000)]
    monkeypatch.setattr(Generation, "send", refuse)
    report = run(service, stop=POST, retire=RetirePlan(linger_s=1.0), drain=DrainPlan(quiesce_s=0))
    assert report.exit_code == 125
    assert "not permitted" in report.error
    assert report.old_generation is not None
    assert report.old_generation.fate is Fate.FINISHING
    assert service.sockets.now == [service.new]


@pytest.mark.parametrize("error", [None, KernelError("release", 1)], ids=["well", "failing"])
@pytest.mark.parametrize("step", ["hold", "drain", "stop", "release"])
def test_migration_ends_with_the_swap_wherever_that_fails(
    service: Service, step: str, error: KernelError | None
) -> None:
    def breaks(hold: FakeHold) -> None:
        hold.hold_error = error if step == "hold" else None
        hold.release_error = error if step == "release" else None

    def fails(*_: object, **__: object) -> list[Connection]:
        raise error or AssertionError

    def refuses(command: FakeCommand) -> None:
        command.pid = 0
        command.end(REFUSED)

    service.prepare = breaks
    if error is not None and step == "drain":
        service.sockets.inbound = fails  # type: ignore[method-assign]
    if error is not None and step == "stop":
        service.on_post = refuses
    report = run(service, migrate=True, stop=POST if step == "stop" else StopMethod())
    assert bool(report.error) == (error is not None)
    assert report.migrated
    assert not service.migration.is_set


def break_lock(service: Service) -> None:
    service.locks.error = LockError("taken")


def break_arm(service: Service) -> None:
    service.prepare = lambda hold: setattr(hold, "arm_error", UnsupportedError("no"))


def break_hold(service: Service) -> None:
    service.prepare = lambda hold: setattr(hold, "hold_error", KernelError("hold", 1))


def break_spawn(service: Service) -> None:
    service.spawn_error = OSError(12, "no memory")


def break_check(service: Service) -> None:
    service.check_status = 1


@pytest.mark.parametrize("breaks", [break_lock, break_arm, break_hold, break_spawn, break_check])
def test_whatever_fails_before_the_stop_the_old_one_serves_on(
    service: Service, breaks: Callable[[Service], None]
) -> None:
    breaks(service)
    report = run(service, check=("serve", "--check"))
    assert (report.outcome, report.exit_code) == (Outcome.ERROR, 125)
    assert "signal 15 to 77" not in service.world.log
    assert_the_old_one_serves(service, report)


def test_a_command_that_cannot_be_executed(service: Service) -> None:
    service.spawn_error = CommandError("serve cannot be executed")
    report = run(service)
    assert report.exit_code == 126
    assert_the_old_one_serves(service, report)


def test_a_hold_that_ends_before_the_queues_are_empty(service: Service) -> None:
    service.sockets.requests = 1
    report = run(service, max_hold_s=0.5, drain=DrainPlan(timeout_s=1.0))
    assert report.exit_code == 125
    assert "hold ended before" in report.error
    assert_the_old_one_serves(service, report)


@pytest.mark.parametrize("choice", OnDrainTimeout)
def test_queues_that_do_not_run_empty(service: Service, choice: OnDrainTimeout) -> None:
    service.sockets.requests = 2
    report = run(service, drain=DrainPlan(timeout_s=0.2, on_timeout=choice))
    if choice is OnDrainTimeout.PROCEED:
        assert report.exit_code == 0
        assert "2 connections were still in the old" in report.warnings[0]
    else:
        assert report.exit_code == 125
        assert_the_old_one_serves(service, report)


def test_a_keeper_that_dies_before_the_stop(service: Service) -> None:
    service.sockets.requests = 1

    def loses(hold: FakeHold) -> None:
        service.world.after(0.15, lambda: setattr(hold, "is_lost", True))

    service.prepare = loses
    report = run(service, drain=DrainPlan(timeout_s=1.0))
    assert report.exit_code == 125
    assert_the_old_one_serves(service, report)


# --- what can go wrong after it


def test_a_hold_that_ends_before_the_listeners_are_gone(service: Service) -> None:
    service.on_signal = lambda pid, number: service.world.after(
        1.0, lambda: service.ends(pid, number)
    )
    report = run(service, max_hold_s=0.5)
    assert (report.outcome, report.exit_code) == (Outcome.DEADLINE, 124)
    assert service.sockets.now == [service.new]


def test_a_new_one_that_dies_after_the_stop_is_said(service: Service) -> None:
    service.sockets.now.append(listener(9))  # somebody else's, so that somebody serves

    def both_end(pid: int, number: int) -> None:
        service.obeys(pid, number)
        service.ends(NEW, 11)

    service.on_signal = both_end
    report = run(service)
    assert (report.outcome, report.exit_code) == (Outcome.COMMAND_FAILED, 139)


# --- the rest


def test_the_pidfile_is_written_once_the_new_one_has_taken_over(
    service: Service, tmp_path: Path
) -> None:
    path = tmp_path / "pid"
    path.write_text("77\n")
    seen = []
    service.world.after(0.09, lambda: seen.append(path.read_text()))
    assert run(service, new_pidfile=str(path)).exit_code == 0
    assert (seen, path.read_text()) == (["77\n"], "4242\n")
    assert list(tmp_path.iterdir()) == [path]


def test_the_pidfile_stays_where_the_swap_fails(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text("77\n")
    service.script = dies(service, 1)
    run(service, new_pidfile=str(path))
    assert path.read_text() == "77\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_pidfile_that_cannot_be_written_is_said_before_anything_is_started(
    service: Service,
) -> None:
    report = run(service, new_pidfile="/nowhere/pid")
    assert report.exit_code == 125
    assert service.commands == []


@pytest.mark.parametrize("refused", ["rename", "unlink"])
def test_what_is_refused_at_the_end_is_told_and_all_else_is_done(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    """The old one is seen to its end, and the ports are given back."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(f"synplug.handover.pidfile.os.{refused}", refuse)
    report = run(service, new_pidfile=str(tmp_path / "pid"))
    assert (report.outcome, report.exit_code) == (Outcome.ERROR, 125)
    assert str(tmp_path) in report.error
    assert "not permitted" in report.error
    assert report.old_generation is not None
    assert report.old_generation.fate is Fate.ENDED
    assert service.locks.drops == 1
    assert not service.migration.is_set


def test_migration_is_set_for_the_close_and_restored(service: Service) -> None:
    report = run(service, migrate=True)
    log = service.world.log
    assert log.index("migrate") < log.index("hold") < log.index("migrate no more")
    assert report.migrated
    assert not service.migration.is_set


def test_without_the_kernels_migration_the_swap_goes_on(service: Service) -> None:
    service.migration.error = UnsupportedError("this kernel has no such parameter")
    report = run(service, migrate=True)
    assert (report.exit_code, report.migrated) == (0, False)
    assert "--migrate: this kernel" in report.warnings[0]


def test_a_listener_that_somebody_else_has_open_too_is_refused(service: Service) -> None:
    """As systemd does with a .socket unit's: it would never close."""
    service.processes.inodes[1] = {service.old.inode}
    service.processes.names = {1: "systemd"}
    report = run(service)
    assert report.exit_code == 125
    assert "open in systemd (pid 1), too" in report.error
    assert service.commands == []
