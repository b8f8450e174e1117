"""What a sequence works with: the system, as interfaces that tests can fake."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol

from synplug.handover.plan import ReadyPlan
from synplug.holding.handle import Hold
from synplug.kernel.sock_diag import Connection
from synplug.model import (
    Endpoint,
    Flow,
    HoldResult,
    HoldSpec,
    Listener,
    Process,
)
from synplug.record import Record


class SocketTable(Protocol):
    """The kernel's sockets; :class:`synplug.kernel.sock_diag.SocketDiagnostics`."""

    def close(self) -> None:
        """Look no more."""

    def listeners(self, endpoints: Iterable[Endpoint] | None = None) -> list[Listener]:
        """The listening sockets that serve the endpoints; all for None."""

    def inbound(
        self, endpoints: Iterable[Endpoint], *, established: bool = True
    ) -> list[Connection]:
        """Connections to the endpoints in SYN_RECV, and established ones."""

    def again(self, connections: Iterable[Connection]) -> list[Connection]:
        """Those of these that are still there, as they are now."""

    def connections(self, endpoints: Iterable[Endpoint]) -> list[Connection]:
        """Established connections to the endpoints."""

    def connecting(self, ports: Iterable[int]) -> list[tuple[int, Flow]]:
        """Inodes and flows of local sockets in SYN_SENT to these ports."""


class ProcessTable(Protocol):
    """The machine's processes; the module :mod:`synplug.kernel.procfs`."""

    def descendants(self, roots: Iterable[int], /) -> set[int]:
        """These processes, those that live, and their children."""

    def started_since(self, pid: int, /) -> set[int]:
        """The processes that were started after this one, as far as their numbers tell."""

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

    def command_line(self, pid: int, /) -> list[str]:
        """The words that it was started with; none: gone, or hidden."""

    def command_lines_since(self, pid: int, most: int, /) -> list[list[str]] | None:
        """The words of this process and of all that were started after it; None: unknown."""

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


class Held(Protocol):
    """What goes on beside a hold needs to know of it; :class:`synplug.holding.handle.Hold`."""

    @property
    def may_hold_local(self) -> bool:
        """Whether a connection from this host may wait, as far as is known."""

    def ended(self) -> HoldResult | None:
        """The result, if the hold has ended by itself."""

    def let_through(self, flow: Flow) -> None:
        """Let this connection pass."""


class Observer(Protocol):
    """A hold to come that lets SYNs pass, and notes whose; :class:`synplug.holding.handle.Hold`."""

    def observe(self) -> bool:
        """Begin; False: this backend cannot do that."""

    def begun(self) -> list[Connection] | None:
        """The connections that have begun since then; they are told once. None: not all known."""

    @property
    def observed(self) -> list[Connection] | None:
        """Those that began after that, until SYNs were held; None: they are not all known."""


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
    """The locks of the run's endpoints; :class:`synplug.holding.locks.RunLocks`."""

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


class Tools(Record):
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
