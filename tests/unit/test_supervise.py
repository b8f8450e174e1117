"""The loop of ``synplug supervise``: what comes in, what goes on to the generation."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterable
from itertools import count

import pytest

from synplug.errors import KernelError, SynplugError
from synplug.handover.generation import Generation, Lineage
from synplug.handover.notify import Notifier
from synplug.handover.plan import ReadyPlan, SwapPlan
from synplug.handover.supervise import SupervisePlan, Surroundings, supervise
from synplug.holding.supervisors import SupervisorState
from synplug.model import HoldSpec
from synplug.record import replace
from tests.unit.fakes import FakeCommand, FakeProcesses, Restart

FIRST, WE, HELPER = 4242, 500, 4300


class Supervisor(Restart):
    """A supervisor whose first generation listens 100 ms after its start."""

    def __init__(self) -> None:
        super().__init__()
        self.sockets.now = []
        self.processes.children = {WE: {FIRST}}
        self.processes.sessions = {WE: WE}
        self.script = self.comes_up
        self.on_signal = self.obeys
        self.sent: list[int] = []
        self.published: list[SupervisorState] = []
        self.unpublishable = False
        self.said: list[str] = []

    def comes_up(self, command: FakeCommand) -> None:
        def listens() -> None:
            self.processes.inodes[FIRST] = {self.new.inode}
            self.listen(self.new)

        self.world.after(0.1, listens)

    def obeys(self, pid: int, number: int) -> None:
        self.sent.append(number)
        if number != signal.SIGUSR1:
            self.dies(128 + number)

    def dies(self, status: int) -> None:
        self.listen()
        self.processes.dead.add(FIRST)
        self.command.end(status)

    def publish(self, state: SupervisorState) -> None:
        if self.unpublishable and state.generation:
            raise SynplugError("cannot write")
        self.published.append(state)

    def run(self) -> int:
        def spec(_generation: Generation) -> HoldSpec:
            raise OSError(errno.EMFILE, "no descriptor left")

        around = Surroundings(
            tools=lambda _spec: self.tools(),
            spec=spec,
            notifier=Notifier({}, clock=self.world.clock, own_pid=WE),
            publish=self.publish,
            tell=lambda _report: None,
            complain=self.said.append,
        )
        generation = SwapPlan(
            argv=("serve", "{generation}"),
            spec=replace(self.plan().spec, endpoints=()),
            ready=ReadyPlan(timeout_s=10.0),
        )
        plan = SupervisePlan(generation=generation, environment={"HOME": "/"})
        return supervise(plan, around, own_pid=WE)


@pytest.fixture
def supervisor() -> Supervisor:
    return Supervisor()


def test_it_lives_until_its_generation_dies_and_has_its_status(supervisor: Supervisor) -> None:
    supervisor.world.after(3.0, lambda: supervisor.dies(7))
    assert supervisor.run() == 7
    assert supervisor.published[-1].generation == 1
    assert list(supervisor.command.argv) == ["serve", "1"]


def test_what_a_dead_run_left_goes_before_the_first_generation_starts(
    supervisor: Supervisor,
) -> None:
    supervisor.recovered = ["run 00000000 had died; cleaned up after it"]
    supervisor.world.after(3.0, lambda: supervisor.dies(0))
    supervisor.run()
    assert supervisor.said[0] == "synplug: run 00000000 had died; cleaned up after it"
    log = supervisor.world.log
    assert log.index("recover") < next(i for i, what in enumerate(log) if what.startswith("spawn"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_that_ends_it_goes_on_and_is_no_failure(
    supervisor: Supervisor, number: int
) -> None:
    supervisor.world.after(3.0, lambda: supervisor.signals.arrive(number))
    assert supervisor.run() == 0
    assert supervisor.sent == [number]


def test_sigusr1_only_goes_on(supervisor: Supervisor) -> None:
    supervisor.world.after(3.0, lambda: supervisor.signals.arrive(signal.SIGUSR1))
    supervisor.world.after(6.0, lambda: supervisor.dies(0))
    assert supervisor.run() == 0
    assert supervisor.sent == [signal.SIGUSR1]


@pytest.mark.parametrize("status", [0, 7])
def test_its_first_processs_end_is_its_end_though_a_helper_lives(
    supervisor: Supervisor, status: int
) -> None:
    def ends() -> None:
        supervisor.listen()
        supervisor.processes.dead.add(FIRST)
        supervisor.processes.children[WE] = {HELPER}
        supervisor.command.end(status)

    def obeys(pid: int, number: int) -> None:
        supervisor.sent.append(number)
        supervisor.processes.dead.add(pid)

    supervisor.processes.children[FIRST] = {HELPER}
    supervisor.on_signal = obeys
    supervisor.world.after(3.0, ends)
    supervisor.world.after(60.0, lambda: supervisor.signals.arrive(signal.SIGQUIT))
    assert supervisor.run() == status
    assert supervisor.sent == [signal.SIGTERM], "the helper goes with it, at once"


def test_a_daemon_lives_on_without_its_first_process(supervisor: Supervisor) -> None:
    def daemonizes(command: FakeCommand) -> None:
        command.end(0)
        supervisor.processes.dead.add(FIRST)
        supervisor.processes.children[WE] = {HELPER}
        supervisor.processes.inodes[HELPER] = {supervisor.new.inode}
        supervisor.listen(supervisor.new)

    def obeys(pid: int, number: int) -> None:
        supervisor.sent.append(number)
        supervisor.processes.dead.add(pid)

    supervisor.script = daemonizes
    supervisor.on_signal = obeys
    supervisor.world.after(10.0, lambda: supervisor.signals.arrive(signal.SIGTERM))
    assert supervisor.run() == 0
    assert supervisor.world.now_s >= 1010.0
    assert supervisor.sent == [signal.SIGTERM]


def test_a_daemon_whose_first_process_ends_while_it_is_looked_for_is_seen(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our children are listed, then it ends, and then its own are listed: there is none."""
    processes, walk = supervisor.processes, FakeProcesses.descendants
    processes.children = {WE: {FIRST}, FIRST: {HELPER}}

    def descendants(self: FakeProcesses, roots: Iterable[int], /) -> set[int]:
        wanted = list(roots)
        if wanted != [WE] or FIRST in self.zombies:
            return walk(self, wanted)
        self.zombies.add(FIRST)
        self.children = {WE: {FIRST, HELPER}}
        return {WE, FIRST}

    monkeypatch.setattr(FakeProcesses, "descendants", descendants)
    lineage = Lineage(processes, WE)
    generation = Generation(FIRST, tools=supervisor.tools(), orphans=lineage.unclaimed)
    lineage.generations.append(generation)
    processes.children = {WE: {FIRST}}  # it has not forked when its own are listed first
    assert generation.look() == {HELPER}


def test_processes_that_end_all_the_time_are_not_looked_for_for_ever(
    supervisor: Supervisor,
) -> None:
    """They are as many as there are requests."""
    brief = count(HELPER)

    def orphans() -> set[int]:
        supervisor.processes.zombies.add(pid := next(brief))
        return {pid}

    generation = Generation(FIRST, tools=supervisor.tools(), orphans=orphans)
    assert generation.look() == {FIRST}
    assert next(brief) - HELPER <= 3


LOGGER = HELPER + 1


def becomes_a_daemon(supervisor: Supervisor, *, logger_listens: bool) -> None:
    """The server, HELPER, and a process that is to outlive it."""

    def daemonizes(command: FakeCommand) -> None:
        command.end(0)
        supervisor.processes.dead.add(FIRST)
        supervisor.processes.children[WE] = {HELPER, LOGGER}
        supervisor.processes.inodes[HELPER] = {supervisor.new.inode}
        if logger_listens:
            supervisor.processes.inodes[LOGGER] = {supervisor.new.inode}
        supervisor.listen(supervisor.new)

    def obeys(pid: int, number: int) -> None:
        supervisor.sent.append(number)
        supervisor.processes.dead.add(pid)

    supervisor.script = daemonizes
    supervisor.on_signal = obeys


def crashes(supervisor: Supervisor, *, but_listening: bool) -> None:
    """HELPER, with status 139; we see it as a zombie first, and collect it."""
    supervisor.processes.zombies.add(HELPER)
    supervisor.statuses[HELPER] = 139
    if not but_listening:
        supervisor.listen()


def test_a_daemon_without_its_main_process_and_listeners_serves_no_more(
    supervisor: Supervisor,
) -> None:
    becomes_a_daemon(supervisor, logger_listens=False)
    supervisor.world.after(10.0, lambda: crashes(supervisor, but_listening=False))
    supervisor.world.after(60.0, lambda: supervisor.signals.arrive(signal.SIGQUIT))
    assert supervisor.run() == 139
    assert supervisor.sent == [signal.SIGTERM], "the helper goes with it, at once"


def test_a_daemons_workers_serve_on_without_its_main_process(supervisor: Supervisor) -> None:
    """The control: it is the listeners that count."""
    becomes_a_daemon(supervisor, logger_listens=True)
    supervisor.world.after(10.0, lambda: crashes(supervisor, but_listening=True))
    supervisor.world.after(60.0, lambda: supervisor.signals.arrive(signal.SIGQUIT))
    assert supervisor.run() == 0
    assert supervisor.sent == [signal.SIGQUIT]


def test_a_reload_that_cannot_even_begin_ends_nothing(supervisor: Supervisor) -> None:
    supervisor.world.after(3.0, lambda: supervisor.signals.arrive(signal.SIGHUP))
    supervisor.world.after(6.0, lambda: supervisor.dies(0))
    assert supervisor.run() == 0
    assert supervisor.sent == []
    last = supervisor.published[-1]
    assert (last.generation, last.heard, last.served) == (1, 1, 1)
    assert "no descriptor left" in last.failure


def test_what_nobody_foresaw_leaves_no_generation_behind(supervisor: Supervisor) -> None:
    supervisor.unpublishable = True
    with pytest.raises(SynplugError, match="cannot write"):
        supervisor.run()
    assert supervisor.sent == [signal.SIGTERM]
    assert FIRST in supervisor.processes.dead


@pytest.mark.parametrize("duty", ["publish", "processes"])
def test_a_duty_that_is_refused_is_told_once_and_ends_nothing(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, duty: str
) -> None:
    """At a reload, and all the time after it: no descriptor is left, say."""

    def refused(*_: object) -> set[int]:
        raise KernelError("read /proc/1/stat", errno.EMFILE)

    def begin() -> None:
        supervisor.unpublishable = duty == "publish"
        if duty == "processes":
            monkeypatch.setattr(supervisor.processes, "descendants", refused)
        supervisor.signals.arrive(signal.SIGHUP)

    supervisor.world.after(2.0, begin)
    supervisor.world.after(9.0, lambda: supervisor.dies(7))
    if duty == "processes":  # then its death cannot be seen
        supervisor.world.after(8.0, monkeypatch.undo)
    assert supervisor.run() == 7
    assert supervisor.sent == [], "nobody was told to end"
    words = "cannot write" if duty == "publish" else "Too many open files"
    assert sum(words in line for line in supervisor.said) == 1
