"""What a sequence is asked to do, and what it works with."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
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
    """

    timeout_s: float = 1.0
    on_timeout: OnDrainTimeout = OnDrainTimeout.PROCEED
    quiesce_s: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadyPlan:
    """When the service counts as restarted.

    :param http: a URL that must answer 2xx or 3xx, besides.
    :param command: an argv that must exit with 0, besides.
    :param timeout_s: from the command's start; None: until the hold's deadline.
    :param settle_s: how long listeners and processes must have been still after the command
        succeeded, where the listeners stay the same (a reload).
    :param require_new: never take unchanged listeners for a finished reload.
    """

    http: str = ""
    command: tuple[str, ...] = ()
    timeout_s: float | None = None
    settle_s: float = 0.3
    require_new: bool = False


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

    def take(self, *, timeout_s: float, interrupted: Callable[[], bool]) -> None:
        """Take them, or raise LockError."""

    def drop(self) -> None:
        """Give them back."""


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
    :param recover: cleans up after dead runs; what it did, a line each.
    :param hold: makes the hold, armed later, that shares these locks.
    :param spawn: starts an argv; the second one captures its output.
    """

    clock: Callable[[], float]
    wall: Callable[[], float]
    sockets: SocketTable
    processes: ProcessTable
    signals: Signals
    locks: Locks
    recover: Callable[[], list[str]]
    hold: Callable[[HoldSpec], Hold]
    resolve: Callable[[str], str]
    spawn: Callable[[Sequence[str]], Command]
    spawn_captured: Callable[[Sequence[str]], Command]
    probe: Callable[[ReadyPlan, int], Probe | None]
