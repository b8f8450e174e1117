"""What a sequence is asked to do, and what it works with."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from synplug.holding.handle import Hold
from synplug.kernel.sock_diag import Connection
from synplug.model import Endpoint, Flow, HoldSpec, Listener, OnDrainTimeout, Process


@dataclass(frozen=True, kw_only=True, slots=True)
class DrainPlan:
    """How long to wait for the old listener; seconds, 0 switches a part off.

    :param timeout_s: for its accept queues and request sockets to be empty.
    :param quiesce_s: for its established connections to be idle.
    :param netns: of a listener that is not here: a name, a path or a pid; may be empty.
    """

    timeout_s: float = 1.0
    on_timeout: OnDrainTimeout = OnDrainTimeout.PROCEED
    quiesce_s: float = 1.0
    netns: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadyPlan:
    """When the service counts as restarted.

    :param http: a URL that must answer 2xx or 3xx, besides.
    :param command: an argv that must exit with 0, besides.
    :param timeout_s: from the command's start; None: until the hold's deadline.
    :param settle_s: how long listeners and processes must have been still after the command
        succeeded, where the listeners stay the same (a reload).
    :param require_new: never take unchanged listeners for a finished reload.
    :param must_last: a new listener may be that of a check, and gone at once.
    """

    http: str = ""
    command: tuple[str, ...] = ()
    timeout_s: float | None = None
    settle_s: float = 0.3
    require_new: bool = False
    must_last: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class WrapPlan:
    """A restart.

    :param argv: the restart command.
    :param service_pids: processes known to be the service's.
    :param unit: its systemd unit, such as ``nginx.service``; may be empty.
    :param check: an argv that must succeed before anything is held; may be empty.
    :param best_effort: run the command even when nothing can be held.
    :param unheld: why nothing can, as is known before; empty: it may be.
    """

    argv: tuple[str, ...]
    spec: HoldSpec
    service_pids: tuple[int, ...] = ()
    unit: str = ""
    check: tuple[str, ...] = ()
    best_effort: bool = False
    unheld: str = ""
    lock_timeout_s: float = 0.0
    drain: DrainPlan = DrainPlan()
    ready: ReadyPlan = ReadyPlan()


@dataclass(frozen=True, kw_only=True, slots=True)
class HoldPlan:
    """A hold that is left to its keeper, under the name in *spec*."""

    spec: HoldSpec
    lock_timeout_s: float = 0.0
    drain: DrainPlan = DrainPlan()


@dataclass(frozen=True, kw_only=True, slots=True)
class StopMethod:
    """How a generation is told to close its listeners.

    :param number: the signal that its main process gets, unless one of the others is given.
    :param command: an argv to run. :param post: a URL to POST to. ``{pid}`` and
        ``{generation}`` in them stand for those of the generation to stop.
    :param timeout_s: until its listeners are gone; then SIGTERM, as long again, then SIGKILL.
    """

    number: int = signal.SIGTERM
    command: tuple[str, ...] = ()
    post: str = ""
    timeout_s: float = 2.0

    @property
    def by_signal(self) -> bool:
        """Whether it is a signal, which it ends by when it has finished."""
        return not (self.command or self.post)

    def __str__(self) -> str:
        if self.post:
            return f"POST {self.post}"
        return shlex.join(self.command) or signal.Signals(self.number).name


@dataclass(frozen=True, kw_only=True, slots=True)
class RetirePlan:
    """What an old generation is given once its listeners are gone; seconds.

    :param linger_s: to finish its established connections; then comes SIGTERM.
    :param kill_after_s: from there to SIGKILL.
    """

    linger_s: float = 30.0
    kill_after_s: float = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SwapPlan:
    """The way from one generation to the next.

    :param argv: starts the new one, in the foreground or as a daemon.
    :param environment: of the new one; None: ours.
    :param check: an argv that must succeed before anything is started; may be empty.
    :param new_pidfile: where the new one's pid is written; may be empty.
    :param migrate: have the kernel move what a closing listener has queued (tcp_migrate_req).
    """

    argv: tuple[str, ...]
    spec: HoldSpec
    environment: Mapping[str, str] | None = None
    check: tuple[str, ...] = ()
    lock_timeout_s: float = 0.0
    drain: DrainPlan = DrainPlan()
    ready: ReadyPlan = ReadyPlan()
    stop: StopMethod = StopMethod()
    retire: RetirePlan = RetirePlan()
    new_pidfile: str = ""
    migrate: bool = False


class SocketTable(Protocol):
    """The kernel's sockets; :class:`synplug.kernel.sock_diag.SocketDiagnostics`."""

    def close(self) -> None:
        """Look no more."""

    def listeners(self, endpoints: Iterable[Endpoint] | None = None) -> list[Listener]:
        """The listening sockets that serve the endpoints; all for None."""

    def request_sockets(self, endpoints: Iterable[Endpoint]) -> int:
        """Connections to the endpoints in SYN_RECV."""

    def connections(self, endpoints: Iterable[Endpoint]) -> list[Connection]:
        """Established connections to the endpoints."""

    def connecting(self, ports: Iterable[int]) -> list[tuple[int, Flow]]:
        """Inodes and flows of local sockets in SYN_SENT to these ports."""


class ProcessTable(Protocol):
    """The machine's processes; the module :mod:`synplug.kernel.procfs`."""

    def descendants(self, roots: Iterable[int], /) -> set[int]:
        """These processes, those that live, and their children."""

    def control_group_members(self, component: str, /) -> set[int]:
        """The processes of a control group."""

    def start_time(self, pid: int, /) -> int:
        """When it started: with the pid, its identity. 0: gone."""

    def is_alive(self, pid: int, /) -> bool:
        """Whether it exists and is no zombie."""

    def session(self, pid: int, /) -> int:
        """The session that it is in; 0: gone."""

    def variable(self, pid: int, name: str, /) -> str | None:
        """A variable of the environment that it was started with; None: it has none, or is gone."""

    def socket_inodes(self, pid: int, /) -> set[int]:
        """The sockets that a process has open."""

    def owners(
        self, inodes: Iterable[int], candidates: Iterable[int] | None = None, /
    ) -> dict[int, list[Process]]:
        """Who has these sockets open."""


class HasDescriptor(Protocol):
    """Something to wait for."""

    def fileno(self) -> int:
        """Its descriptor."""


#: The status of a POST that was answered, but not by 2xx: it has done nothing.
REFUSED = 1


class Command(HasDescriptor, Protocol):
    """A started command; :class:`synplug.handover.process.SpawnedCommand`."""

    @property
    def pid(self) -> int:
        """Its pid."""

    def poll(self) -> int | None:
        """Its status as a shell would have it, or None while it runs."""

    def send(self, number: int) -> None:
        """Send it a signal; it may be gone."""

    def output(self) -> str:
        """What it said, where that was captured."""


class Signals(Protocol):
    """Signals that came for us; :class:`synplug.handover.process.Signals`."""

    def take(self) -> list[int]:
        """Their numbers, once each."""

    def pause(self, timeout_s: float, until: HasDescriptor | None = None) -> None:
        """Wait so many seconds; less when a signal has come, or *until* is readable."""


class Locks(Protocol):
    """The locks of the run's ports; :class:`synplug.holding.locks.RunLocks`."""

    def take(
        self,
        *,
        timeout_s: float,
        interrupted: Callable[[], bool],
        pause: Callable[[float], None] = ...,
    ) -> None:
        """Take them, or raise LockError; *pause* waits so many seconds."""

    def drop(self) -> None:
        """Give them back."""


class Migration(Protocol):
    """A setting of the kernel's; :class:`synplug.holding.migration.Migration`."""

    def begin(self) -> None:
        """Set it, or raise SynplugError."""

    def end(self) -> None:
        """Restore it, if nobody else needs it."""


class Probe(Protocol):
    """A readiness check that runs beside the sequence."""

    @property
    def passed(self) -> bool:
        """Whether it has passed."""

    @property
    def complaint(self) -> str:
        """Why it has not, as of its last attempt."""

    @property
    def pids(self) -> Collection[int]:
        """Its processes, whose own connections are let through."""

    def start(self) -> None:
        """Begin to try."""

    def stop(self) -> None:
        """Try no more, and wait for its end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tools:
    """Everything a sequence touches, so that tests can hand it fakes.

    :param clock: monotonic seconds; the clock of the keeper, too.
    :param wall: seconds since the epoch.
    :param sockets_in: those of the network namespace of that name, path or pid.
    :param recover: cleans up after dead runs; what it did, a line each.
    :param hold: makes the hold, armed later, that shares these locks.
    :param spawn: starts an argv; the second one captures its output; the third one gives it an
        environment, and a session of its own.
    :param post: POSTs to a URL over a socket with this mark; its status is 0 if that was done.
    :param send_to: sends a signal to a pid of this start time.
    :param observe: is told of each step as it begins; None: nobody looks on.
    :param reap: collects a child that has ended and is not one of :attr:`spawn`'s; its status.
    """

    clock: Callable[[], float]
    wall: Callable[[], float]
    sockets: SocketTable
    sockets_in: Callable[[str], SocketTable]
    processes: ProcessTable
    signals: Signals
    locks: Locks
    recover: Callable[[], list[str]]
    hold: Callable[[HoldSpec], Hold]
    resolve: Callable[[str], str]
    spawn: Callable[[Sequence[str]], Command]
    spawn_captured: Callable[[Sequence[str]], Command]
    spawn_apart: Callable[[Sequence[str], Mapping[str, str] | None], Command]
    post: Callable[[str, int], Command]
    send_to: Callable[[int, int, int], None]
    reap: Callable[[int], int | None]
    migration: Callable[[str], Migration]
    probe: Callable[[ReadyPlan, int], Probe | None]
    observe: Callable[[str], None] | None = None
