"""A machine in miniature: time that passes when somebody waits, sockets, processes, a hold.

Nothing here sleeps. What is to happen is put on the :class:`World`'s agenda; whoever pauses
moves the clock forward to it. What a sequence does is written down, in :attr:`World.log`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import count
from typing import Any

from synplug.errors import CommandNotFoundError, KeeperError, SynplugError
from synplug.handover.plan import ReadyPlan, WrapPlan
from synplug.handover.tools import HasDescriptor, Probe, Tools
from synplug.kernel.sock_diag import Connection
from synplug.model import (
    Endpoint,
    Flow,
    HoldCounts,
    HoldResult,
    HoldSpec,
    Listener,
    Process,
    ReleaseReason,
)

HTTP = Endpoint(port=80)
_FOREVER_S = 3600.0


def listener(
    cookie: int,
    where: str = "0.0.0.0",
    port: int = 80,
    *,
    backlog: int = 128,
    accept_queue: int = 0,
    v6only: bool = False,
) -> Listener:
    """A listener; its inode is 1000 + cookie."""
    return Listener(
        address=ip_address(where),
        port=port,
        inode=1000 + cookie,
        cookie=cookie,
        backlog=backlog,
        accept_queue=accept_queue,
        v6only=v6only,
    )


def connection(
    *,
    accepted: bool = True,
    unread: int = 0,
    unsent: int = 0,
    since_sent_ms: int = 5000,
    since_received_ms: int = 6000,
    acked: int = 500,
    received: int = 300,
    inode: int = 9000,
) -> Connection:
    """An established connection; idle, and answered, unless told otherwise."""
    return Connection(
        is_handshake=False,
        accepted=accepted,
        unread_bytes=unread,
        unsent_bytes=unsent,
        since_sent_ms=since_sent_ms,
        since_received_ms=since_received_ms,
        acked_bytes=acked,
        received_bytes=received,
        inode=inode if accepted else 0,
    )


HANDSHAKE = connection(accepted=False)._replace(is_handshake=True)


class World:
    """The clock, the agenda, and the log of what was done."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s
        self.log: list[str] = []
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._descriptors: list[Callable[[], bool]] = []

    def descriptor(self, is_readable: Callable[[], bool]) -> int:
        """A descriptor that can be waited for."""
        self._descriptors.append(is_readable)
        return len(self._descriptors) - 1

    def is_readable(self, descriptor: int) -> bool:
        """Whether waiting for it is over."""
        return self._descriptors[descriptor]()

    def clock(self) -> float:
        """Monotonic seconds."""
        return self.now_s

    def note(self, event: str) -> None:
        """Write it down; what is polled again and again is written once."""
        if not self.log or self.log[-1] != event:
            self.log.append(event)

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Put something on the agenda."""
        heapq.heappush(self._agenda, (self.now_s + delay_s, next(self._numbers), action))

    def wait(self, timeout_s: float, enough: Callable[[], bool] = lambda: False) -> None:
        """Let time pass, with what happens in it."""
        until_s = self.now_s + timeout_s
        while not enough() and self._agenda and self._agenda[0][0] <= until_s:
            at_s, _, action = heapq.heappop(self._agenda)
            self.now_s = max(self.now_s, at_s)
            action()
        if enough():
            return
        if timeout_s >= _FOREVER_S:
            raise AssertionError("this would wait for ever: nothing is on the agenda")
        self.now_s = until_s


class FakeSignals:
    """Signals that arrive when the agenda says so."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._arrived: list[int] = []

    def arrive(self, number: int) -> None:
        """One comes in."""
        self._arrived.append(number)

    def take(self) -> list[int]:
        arrived, self._arrived = self._arrived, []
        return arrived

    def pause(self, timeout_s: float, until: HasDescriptor | None = None) -> None:
        def enough() -> bool:
            return bool(self._arrived) or (
                until is not None and self._world.is_readable(until.fileno())
            )

        self._world.wait(timeout_s, enough)


class FakeCommand:
    """A command that ends when it is told to."""

    def __init__(self, world: World, argv: Sequence[str], pid: int = 4242) -> None:
        self._world = world
        self.argv = tuple(argv)
        self.pid = pid
        self._descriptor = world.descriptor(lambda: self.status is not None)
        self.status: int | None = None
        self.got: list[int] = []
        self.said = ""

    def fileno(self) -> int:
        return self._descriptor

    def poll(self) -> int | None:
        return self.status

    def send(self, number: int) -> None:
        self._world.note(f"signal {number} to the command")
        self.got.append(number)

    def output(self) -> str:
        return self.said

    def end(self, status: int) -> None:
        """It ends."""
        self._world.note(f"the command ends with {status}")
        self.status = status


class FakeSockets:
    """The kernel's sockets; tests change :attr:`now` and the rest."""

    def __init__(self, world: World, now: Iterable[Listener] = ()) -> None:
        self._world = world
        self.now: list[Listener] = list(now)
        self.requests = 0
        self.established: list[Connection] = []
        self.syn_sent: list[tuple[int, Flow]] = []
        self.asked: list[tuple[Endpoint, ...]] = []
        self.asked_ports: list[tuple[int, ...]] = []
        self.error: BaseException | None = None

    def close(self) -> None:
        self._world.note("close the sockets")

    def listeners(self, endpoints: Iterable[Endpoint] | None = None) -> list[Listener]:
        if self.error is not None:
            raise self.error
        if endpoints is None:
            return list(self.now)
        wanted = list(endpoints)
        return [own for own in self.now if any(own.serves(endpoint) for endpoint in wanted)]

    def inbound(
        self, endpoints: Iterable[Endpoint], *, established: bool = True
    ) -> list[Connection]:
        self._world.note("walk all connections" if established else "walk the handshakes")
        self.asked.append(tuple(endpoints))
        return self._inbound(established)

    def again(self, connections: Iterable[Connection]) -> list[Connection]:
        """By inode; of handshakes as many as there are."""
        asked = list(connections)
        self._world.note(f"look {len(asked)} connections up")
        inodes = {own.inode for own in asked}
        return [own for own in self._inbound(True) if own.is_handshake or own.inode in inodes]

    def _inbound(self, established: bool) -> list[Connection]:
        return [HANDSHAKE] * self.requests + (list(self.established) if established else [])

    def connections(self, endpoints: Iterable[Endpoint]) -> list[Connection]:
        self._world.note("look at the connections")
        self.asked.append(tuple(endpoints))
        return list(self.established)

    def connecting(self, ports: Iterable[int]) -> list[tuple[int, Flow]]:
        self.asked_ports.append(tuple(ports))
        return list(self.syn_sent)


@dataclass
class FakeProcesses:
    """Processes: parents with children, control groups, who has which socket open."""

    children: dict[int, set[int]] = field(default_factory=dict)
    groups: dict[str, set[int]] = field(default_factory=dict)
    inodes: dict[int, set[int]] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    networks: dict[int, int] = field(default_factory=dict)
    dead: set[int] = field(default_factory=set)
    hidden: set[int] = field(default_factory=set)
    zombies: set[int] = field(default_factory=set)
    sessions: dict[int, int] = field(default_factory=dict)
    variables: dict[tuple[int, str], str] = field(default_factory=dict)
    command_lines: dict[int, list[str]] = field(default_factory=dict)
    #: Whether the kernel says which number it gave last.
    tells_the_last: bool = True

    def start_time(self, pid: int, /) -> int:
        return 0 if pid in self.dead else 10_000 + pid

    def is_alive(self, pid: int, /) -> bool:
        return pid not in self.dead | self.zombies

    def session(self, pid: int, /) -> int:
        return 0 if pid in self.dead else self.sessions.get(pid, pid)

    def variable(self, pid: int, name: str, /) -> str | None:
        return self.variables.get((pid, name))

    def descendants(self, roots: Iterable[int], /) -> set[int]:
        found: set[int] = set()
        waiting = list(roots)
        while waiting:
            pid = waiting.pop()
            if pid not in found and pid not in self.dead:
                found.add(pid)
                waiting += self.children.get(pid, ())
        return found

    def started_since(self, pid: int, /) -> set[int]:
        return {other for other in self.inodes if other > pid} - self.dead

    def control_group_members(self, component: str, /) -> set[int]:
        return set(self.groups.get(component, ()))

    def command_line(self, pid: int, /) -> list[str]:
        return [] if pid in self.dead else self.command_lines.get(pid, ["server"])

    def command_lines_since(self, pid: int, most: int, /) -> list[list[str]] | None:
        if not self.tells_the_last:
            return None
        known = {number for number in (*self.inodes, *self.command_lines) if number >= pid}
        return [self.command_line(number) for number in sorted(known - self.dead)]

    def socket_inodes(self, pid: int, /) -> set[int]:
        return set(self.inodes.get(pid, ()))

    def owners(
        self, inodes: Iterable[int], candidates: Iterable[int] | None = None, /
    ) -> dict[int, list[Process]]:
        return {
            inode: [
                Process(pid=pid, name=self.names.get(pid, "server"))
                for pid, own in sorted(self.inodes.items())
                if inode in own and (candidates is None or pid in candidates)
            ]
            for inode in set(inodes)
        }

    def hides_its_sockets(self, pid: int, /) -> bool:
        return pid in self.hidden

    def network_inode(self, pid: int, /) -> int:
        return self.networks.get(pid, 1)


class FakeLocks:
    """Locks that are free, or not."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.error: SynplugError | None = None
        self.taken = False
        self.drops = 0

    def take(
        self,
        *,
        timeout_s: float,
        interrupted: Callable[[], bool],
        pause: Callable[[float], None] | None = None,
    ) -> None:
        self._world.note("lock")
        if self.error is not None:
            self._world.wait(timeout_s, interrupted)
            raise self.error
        self.taken = True

    def drop(self) -> None:
        self._world.note("unlock")
        self.taken = False
        self.drops += 1


class FakeHold:
    """A hold whose keeper is well, unless a test breaks it. Times are the world's."""

    backend = "fake"
    keeper_pid = 4711
    warnings: tuple[str, ...] = ()

    def __init__(self, world: World, spec: HoldSpec) -> None:
        self._world = world
        self._spec = spec
        self.result: HoldResult | None = None
        self.held_at_s: float | None = None
        self.released_at_s: float | None = None
        self.passed: list[Flow] = []
        self.may_hold_local = True
        self.closed = False
        #: The old listeners of a hold that was left to its keeper.
        self.left: tuple[Listener, ...] | None = None
        self.ended_because: ReleaseReason | None = None
        self.is_lost = False
        self.arm_error: BaseException | None = None
        self.hold_error: BaseException | None = None
        self.observe_error: BaseException | None = None
        self.can_observe = True
        self.begun_before: list[Connection] | None = []
        self.observed: list[Connection] | None = []
        self.release_error: BaseException | None = None
        self.lingering = ""
        self.counts = HoldCounts(held=3, released=3, peak=3)
        #: How long the listeners take for what waits; None: they accept nothing.
        self.pace_s: float | None = 0.0
        self._descriptor = world.descriptor(lambda: self.ended() is not None)
        self.result_warnings: tuple[str, ...] = ()

    @property
    def is_holding(self) -> bool:
        """Whether SYNs wait now."""
        return self.held_at_s is not None and self.result is None and not self.closed

    def arm(self) -> None:
        self._world.note("arm")
        if self.arm_error is not None:
            raise self.arm_error

    def observe(self) -> bool:
        self._world.note("observe")
        if self.observe_error is not None:
            raise self.observe_error
        return self.can_observe

    def begun(self) -> list[Connection] | None:
        self._world.note("who has begun")
        return self.begun_before

    def hold(self) -> float:
        self._world.note("hold")
        if self.hold_error is not None:
            raise self.hold_error
        self.held_at_s = self._world.now_s
        return self.held_at_s

    def let_through(self, flow: Flow) -> None:
        self.passed.append(flow)

    def ended(self) -> HoldResult | None:
        if self.result is None and self.held_at_s is not None:
            if self.is_lost:
                self._finish(ReleaseReason.KEEPER_LOST)
                raise KeeperError("the keeper died")
            if self.ended_because is not None:
                self._finish(self.ended_because)
            elif self._world.now_s >= self.held_at_s + self._spec.max_hold_s:
                self._finish(ReleaseReason.DEADLINE)
        return self.result

    def detach(self, old: Iterable[Listener]) -> int:
        self._world.note("detach")
        self.left = tuple(old)
        return 4711

    def begin_release(self, fitting: Mapping[str, Any] | None = None) -> None:
        self._world.note("release")
        if self.release_error is not None:
            raise self.release_error
        if self.pace_s is not None:
            self._world.after(self.pace_s, self._released)
            self._world.wait(0)

    def open_now(self) -> None:
        self._world.note("open now")
        self._released()

    def _released(self) -> None:
        if self.ended() is None:
            self._finish(ReleaseReason.ASKED)

    def fileno(self) -> int:
        return self._descriptor

    def release(self) -> HoldResult:
        self.begin_release()
        self._world.wait(_FOREVER_S, lambda: self.ended() is not None)
        assert self.result is not None
        return self.result

    def finish(self) -> str:
        return self.lingering

    def close(self) -> None:
        self._world.note("close")
        self.closed = True

    def _finish(self, reason: ReleaseReason) -> None:
        assert self.held_at_s is not None
        self.released_at_s = self._world.now_s
        self.result = HoldResult(
            backend=self.backend,
            reason=reason,
            held_at_s=self.held_at_s,
            opened_at_s=self._world.now_s,
            counts=self.counts,
            warnings=self.result_warnings,
        )


class FakeMigration:
    """A kernel parameter."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.error: SynplugError | None = None
        self.end_error: SynplugError | None = None
        self.is_set = False

    def begin(self) -> None:
        if self.error is not None:
            raise self.error
        self._world.note("migrate")
        self.is_set = True

    def end(self) -> None:
        self._world.note("migrate no more")
        self.is_set = False
        if self.end_error is not None:
            raise self.end_error


class FakeProbe:
    """A readiness check that passes when a test says so."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.passed = False
        self.complaint = ""
        self.pids: Collection[int] = ()
        self.running = False

    def start(self) -> None:
        self._world.note("probe")
        self.running = True

    def stop(self) -> None:
        self._world.note("stop the probe")
        self.running = False


class Restart:
    """A restart with everything in it that a sequence touches.

    As it stands the service has one listener on port 80. Its command closes it after 50 ms,
    brings the new one after 200 ms and ends with 0 after 300 ms. Tests put something else in
    the place of what they are about.
    """

    def __init__(self) -> None:
        self.world = World()
        self.old = listener(1)
        self.new = listener(2)
        self.sockets = FakeSockets(self.world, [self.old])
        self.far: dict[str, FakeSockets] = {}
        self.processes = FakeProcesses(
            inodes={77: {self.old.inode}, 4242: {self.new.inode}},
            command_lines={4242: ["app"]},
        )
        self.signals = FakeSignals(self.world)
        self.locks = FakeLocks(self.world)
        self.holds: list[FakeHold] = []
        self.commands: list[FakeCommand] = []
        self.probe: Probe | None = None
        self.missing: set[str] = set()
        self.not_executable: dict[str, SynplugError] = {}
        self.recovered: list[str] = []
        self.check_status = 0
        self.check_output = ""
        self.prepare: Callable[[FakeHold], None] = lambda hold: None
        self.script: Callable[[FakeCommand], None] = self.usual
        self.spawn_error: BaseException | None = None
        self.reaped: list[int] = []
        #: With what processes have ended that are reaped.
        self.statuses: dict[int, int] = {}
        self.migration = FakeMigration(self.world)
        self.on_signal: Callable[[int, int], None] = lambda pid, number: None
        self.on_post: Callable[[FakeCommand], None] = lambda command: command.end(0)

    def usual(self, command: FakeCommand) -> None:
        """Old one gone, new one there, done."""
        self.world.after(0.05, self.listen)
        self.world.after(0.20, lambda: self.listen(self.new))
        self.world.after(0.30, lambda: command.end(0))

    def nobody_listens(self, command: FakeCommand) -> None:
        """The command stops the old one and succeeds; nothing new comes."""
        self.listen()
        command.end(0)

    def listen(self, *now: Listener) -> None:
        """From here on these are the listeners."""
        self.world.note(f"listeners: {len(now)}")
        self.sockets.now = list(now)

    @property
    def hold(self) -> FakeHold:
        """The one hold of the run."""
        (hold,) = self.holds
        return hold

    @property
    def command(self) -> FakeCommand:
        """The restart command."""
        (command,) = self.commands
        return command

    def plan(self, **changes: object) -> WrapPlan:
        """A plan for it; *changes* are fields of the plan or of the hold's specification."""
        of_hold = {"max_hold_s", "endpoints"} & changes.keys()
        values: dict[str, object] = {"endpoints": (HTTP,), "run_id": "0123abcd", "max_hold_s": 5.0}
        values |= {name: changes.pop(name) for name in of_hold}
        spec = HoldSpec(**values)  # type: ignore[arg-type]
        return WrapPlan(argv=("restart", "it"), spec=spec, **changes)  # type: ignore[arg-type]

    def tools(self) -> Tools:
        """The tools that act on this machine."""
        return Tools(
            clock=self.world.clock,
            wall=lambda: 1_700_000_000.5,
            sockets=self.sockets,
            sockets_in=lambda path: self.far[path],
            processes=self.processes,
            signals=self.signals,
            locks=self.locks,
            recover=self._recover,
            hold=self._make_hold,
            resolve=self._resolve,
            spawn=self._spawn,
            spawn_captured=self._check,
            spawn_apart=lambda argv, _environment: self._spawn(argv),
            post=self._post,
            send_to=self._send_to,
            reap=self._reap,
            migration=lambda _run_id: self.migration,
            probe=self._probe,
        )

    def _reap(self, pid: int) -> int | None:
        self.reaped.append(pid)
        return self.statuses.get(pid)

    def _recover(self) -> list[str]:
        self.world.note("recover")
        return self.recovered

    def _make_hold(self, spec: HoldSpec) -> FakeHold:
        hold = FakeHold(self.world, spec)
        self.prepare(hold)
        self.holds.append(hold)
        return hold

    def _resolve(self, name: str) -> str:
        if name in self.missing:
            raise CommandNotFoundError(f"{name}: command not found")
        if name in self.not_executable:
            raise self.not_executable[name]
        return f"/usr/bin/{name}"

    def _spawn(self, argv: Sequence[str]) -> FakeCommand:
        self.world.note("spawn")
        if self.spawn_error is not None:
            raise self.spawn_error
        command = FakeCommand(self.world, argv)
        self.commands.append(command)
        self.script(command)
        return command

    def _send_to(self, pid: int, start: int, number: int) -> None:
        assert start == self.processes.start_time(pid), "a signal for a process that is gone"
        self.world.note(f"signal {number} to {pid}")
        self.on_signal(pid, number)

    def _post(self, url: str, mark: int) -> FakeCommand:
        self.world.note(f"POST {url}")
        command = FakeCommand(self.world, [url], pid=0)
        self.on_post(command)
        return command

    def _check(self, argv: Sequence[str]) -> FakeCommand:
        self.world.note("check")
        command = FakeCommand(self.world, argv, pid=4000)
        command.said = self.check_output
        self.world.after(0.1, lambda: setattr(command, "status", self.check_status))
        return command

    def _probe(self, plan: ReadyPlan, mark: int) -> Probe | None:
        return self.probe
