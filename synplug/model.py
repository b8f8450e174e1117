"""What the floors hand to each other: frozen, keyword-only values."""

from __future__ import annotations

import enum
import socket
from ipaddress import IPv4Address, IPv6Address
from typing import NewType

from synplug.fate import OldGeneration
from synplug.record import Record
from synplug.steps import CommandResult, DrainResult, Phase

#: Packets with this mark pass a hold: readiness probes of synplug carry it. ("SYNP" in ASCII.)
PROBE_MARK = 0x53594E50

#: A queue of the kernel holds at most this many packets, whatever its length is set to
#: (measured on 6.18; ``net/netfilter/nfnetlink_queue.c``).
PACKETS_PER_QUEUE = 65_536


class Family(enum.Enum):
    """An IP version."""

    IPV4 = 4
    IPV6 = 6

    @property
    def af(self) -> int:
        """AF_INET or AF_INET6."""
        return socket.AF_INET if self is Family.IPV4 else socket.AF_INET6


class BackendName(enum.Enum):
    """How SYNs are kept."""

    AUTO = "auto"
    NFQUEUE = "nfqueue"
    NFQUEUE_IPTABLES = "nfqueue-iptables"
    PLUG = "plug"


class Hook(enum.Enum):
    """Where SYNs are met: delivered on this host; forwarded by it; sent to it, before any DNAT."""

    INPUT = "input"
    FORWARD = "forward"
    PREROUTING = "prerouting"


class OnFull(enum.Enum):
    """What happens to a SYN that no longer fits: its client retransmits, or it goes through."""

    DROP = "drop"
    PASS = "pass"  # noqa: S105 -- a verdict, no password


class ReleaseMode(enum.Enum):
    """Release at the pace that the listeners' backlogs allow, or all at once."""

    PACED = "paced"
    BURST = "burst"


class OnDrainTimeout(enum.Enum):
    """What happens when the old listener's queues have not run empty in time."""

    PROCEED = "proceed"
    ABORT = "abort"


class Outcome(enum.Enum):
    """How a run ended."""

    READY = "ready"
    COMMAND_FAILED = "command-failed"
    DEADLINE = "deadline"
    INTERRUPTED = "interrupted"
    ERROR = "error"


class ReleaseReason(enum.Enum):
    """Why a hold ended."""

    ASKED = "asked"
    DEADLINE = "deadline"
    ORPHANED = "orphaned"
    SIGNAL = "signal"
    KEEPER_LOST = "keeper-lost"
    KEEPER_STUCK = "keeper-stuck"


Address = IPv4Address | IPv6Address


class Endpoint(Record):
    """Where clients connect to.

    :param port: TCP port, 1–65535.
    :param address: a destination address; ``0.0.0.0`` and ``::`` stand for every address of
        their family, None for every address of both.
    """

    port: int
    address: Address | None = None

    def __str__(self) -> str:
        if self.address is None:
            return f"*:{self.port}"
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}"

    @property
    def families(self) -> tuple[Family, ...]:
        """The IP versions that it stands for."""
        if self.address is None:
            return (Family.IPV4, Family.IPV6)
        return (Family(self.address.version),)

    @property
    def exact_address(self) -> Address | None:
        """The address that a packet must be sent to, or None where any one will do."""
        if self.address is None or self.address.is_unspecified:
            return None
        return self.address


class Listener(Record):
    """A listening TCP socket, as sock_diag(7) shows it.

    :param cookie: the kernel's number of this very socket; never used again.
    :param inode: of the socket, as in ``/proc/PID/fd``.
    :param backlog: the limit of its accept queue, in connections.
    :param accept_queue: connections waiting there.
    :param v6only: an IPv6 socket that does not serve IPv4.
    :param device: the index of the interface that it is bound to (SO_BINDTODEVICE); 0: none.
    """

    address: Address
    port: int
    inode: int
    cookie: int
    backlog: int
    accept_queue: int
    v6only: bool = False
    device: int = 0

    def __str__(self) -> str:
        return str(Endpoint(port=self.port, address=self.address))

    def serves(self, endpoint: Endpoint) -> bool:
        """Whether a connection to *endpoint* can reach this socket."""
        if endpoint.port != self.port:
            return False
        mine = self._families()
        if not any(family in mine for family in endpoint.families):
            return False
        wanted = endpoint.exact_address
        return wanted is None or self.address.is_unspecified or wanted == self.address

    def endpoint(self) -> Endpoint:
        """The endpoint that stands for all that this socket serves."""
        dual = self.address.is_unspecified and len(self._families()) == 2
        return Endpoint(port=self.port, address=None if dual else self.address)

    def _families(self) -> tuple[Family, ...]:
        if self.address.version == 4:
            return (Family.IPV4,)
        if self.address.is_unspecified and not self.v6only:
            return (Family.IPV4, Family.IPV6)
        return (Family.IPV6,)


#: One connection, packed in network byte order: source address, destination address, source
#: port, destination port. 12 bytes for IPv4, 36 for IPv6. Bytes, since thousands a second of
#: them are made and hashed.
Flow = NewType("Flow", bytes)


class HoldSpec(Record):
    """What a hold is to do.

    :param run_id: eight hexadecimal digits; part of the name of all that the run creates.
    :param name: by which a hold that is left to its keeper is asked for; empty: it has none.
    :param max_hold_s: seconds from the first held SYN's instant to the release, at most.
    :param max_held_packets: how many SYNs may wait at once.
    :param max_held_per_source: how many of one IPv4 address, or one IPv6 /64; 0: any number.
    :param hook: where they are met; but for ``INPUT`` the listeners are elsewhere.
    :param devices: names of those that bring traffic, for backends that go by device; empty: all.
    :param loopback_egress: hold what local clients send over ``lo``, where they send it.
    """

    endpoints: tuple[Endpoint, ...]
    run_id: str
    name: str = ""
    backend: BackendName = BackendName.AUTO
    hook: Hook = Hook.INPUT
    max_hold_s: float = 10.0
    max_held_packets: int = PACKETS_PER_QUEUE
    max_held_per_source: int = 0
    on_full: OnFull = OnFull.DROP
    release: ReleaseMode = ReleaseMode.PACED
    devices: tuple[str, ...] = ()
    loopback_egress: bool = False
    probe_mark: int = PROBE_MARK


class HoldCounts(Record):
    """What became of the SYNs of a hold; each is counted in packets.

    :param held: first SYNs of connections that waited.
    :param held_local: those of them that came in over loopback.
    :param released: those of them that were let go.
    :param duplicates: retransmits of a SYN that was waiting; dropped.
    :param superseded: SYNs dropped since their client began a new connection from the same port.
    :param let_through: SYNs of the run's own readiness checks, which did not wait.
    :param overflowed: SYNs beyond ``max_held_packets``, dropped or passed as ``on_full`` says.
    :param over_source: SYNs beyond ``max_held_per_source``, likewise.
    :param lost: SYNs that the kernel dropped from the hold: somebody removed a netfilter hook
        or a device, or the keeper could not keep up. Sent again, they are counted as held again.
    :param waiting: still held.
    :param peak: the most that waited at once.
    """

    held: int = 0
    held_local: int = 0
    released: int = 0
    duplicates: int = 0
    superseded: int = 0
    let_through: int = 0
    overflowed: int = 0
    over_source: int = 0
    lost: int = 0
    waiting: int = 0
    peak: int = 0


class HoldResult(Record):
    """A finished hold.

    :param held_at_s: CLOCK_MONOTONIC at which SYNs began to wait.
    :param opened_at_s: at which new ones no longer did, and all had been let go.
    """

    backend: str
    reason: ReleaseReason
    held_at_s: float
    opened_at_s: float
    counts: HoldCounts
    release_steps: int = 0
    release_limit: str = ""
    warnings: tuple[str, ...] = ()


class Process(Record):
    """A process, by pid and name (comm; untrusted text)."""

    pid: int
    name: str


class OwnedListener(Record):
    """A listener and who has it open."""

    listener: Listener
    owners: tuple[Process, ...] = ()


class Report(Record):
    """One run, for people and machines; docs/report.md describes its JSON form.

    :param command: without an argv, where the restart was the caller's (``synplug release``).
    :param started_at: seconds since the epoch.
    :param readiness: ``replaced``, ``settled`` (a reload that kept its listeners), or empty.
    :param gap_s: seconds for which an old address was served by nobody; None: never.
    :param old_generation: of a swap. :param migrated: whether tcp_migrate_req was set for it.
    """

    run_id: str
    outcome: Outcome
    exit_code: int
    endpoints: tuple[Endpoint, ...]
    command: CommandResult
    started_at: float
    hold: HoldResult | None = None
    drain: DrainResult | None = None
    phases: tuple[Phase, ...] = ()
    old_listeners: tuple[OwnedListener, ...] = ()
    new_listeners: tuple[OwnedListener, ...] = ()
    readiness: str = ""
    gap_s: float | None = None
    old_generation: OldGeneration | None = None
    migrated: bool = False
    warnings: tuple[str, ...] = ()
    error: str = ""
    remedy: str = ""

    @property
    def ok(self) -> bool:
        """Whether the service was restarted, ready, and every connection held until then."""
        was_held = self.hold is not None
        return was_held and self.exit_code == 0 and self.outcome is Outcome.READY
