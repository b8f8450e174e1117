"""How fast to let go: never more than the listeners have room for.

A burst larger than the new listener's backlog overflows its accept queue: the kernel drops the
rest, and their clients wait a second or more (docs/adr/0005-paced-release.md).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple, Protocol

from synplug.holding.room import Room, Stuck, room_of
from synplug.model import Endpoint, Listener, ReleaseMode

_DEBT_WINDOW_S = 0.5
#: Round trips are shorter; a SYN-ACK that got lost is sent again after a second.
_HANDSHAKE_WINDOW_S = 1.5
#: The pace where nobody tells how far the listener is: what any backlog in use takes, and what
#: most services accept (docs/containers.md).
_BLIND_STEP, _BLIND_EVERY_S = 64, 0.01
#: Room for newcomers that is enough, while nobody has had to wait for a place yet: a service that
#: bears its load has none of its queue left in the time that so many take to come.
_RESERVE = 128
_SYN_BACKLOG = "by net.ipv4.tcp_max_syn_backlog, since SYN cookies are off"
_STUCK = "; a listener that accepts nothing was left out"
_HANDSHAKES = ", filled by handshakes that wait for their clients"


class Rooms(Protocol):
    """What pacing asks the kernel; :class:`synplug.kernel.sock_diag.SocketDiagnostics` answers."""

    def listeners(self, endpoints: Iterable[Endpoint] | None = None) -> list[Listener]:
        """The listening sockets that serve the endpoints."""

    def request_sockets(self, endpoints: Iterable[Endpoint]) -> int:
        """Connections to the endpoints that are in SYN_RECV."""


class Pacer:
    """Decides how many may go next, for each port by itself.

    :param clock: monotonic seconds.
    :param somaxconn: reads the kernel's limit of a backlog; 0: not known.
    :param syn_limit: how many request sockets a listener may have, where that is not its backlog.
    :param is_blind: the listeners cannot be seen; steps of 64 go, one every 10 ms.
    """

    def __init__(
        self,
        *,
        endpoints: tuple[Endpoint, ...],
        mode: ReleaseMode,
        rooms: Rooms,
        clock: Callable[[], float],
        somaxconn: Callable[[], int] = lambda: 0,
        syn_limit: int = 0,
        is_blind: bool = False,
    ) -> None:
        self._mode = mode
        self._ports: dict[int, _PortPacer] = {}
        for port in sorted({endpoint.port for endpoint in endpoints}):
            wanted = tuple(endpoint for endpoint in endpoints if endpoint.port == port)
            make = _BlindPortPacer if is_blind else _PortPacer
            self._ports[port] = make(wanted, rooms, clock, somaxconn, syn_limit)
        self.steps = 0

    @property
    def limit(self) -> str:
        """What bounded the pace, for the report; empty when everything fitted at once."""
        limits = {port: pacer.limit for port, pacer in self._ports.items() if pacer.limit}
        if len(self._ports) == 1:
            return "".join(limits.values())
        return ", ".join(f"port {port}: {limit}" for port, limit in limits.items())

    def step(self, waiting: Mapping[int, int]) -> dict[int, int] | None:
        """How many of those *waiting* may go now, by port; None: open, there is nothing to pace.

        Port 0 stands for those whose port could not be read.
        A port whose SYNs all fit does not wait for another's: they go, and whoever comes queues
        up and goes at the next step.
        """
        if self._mode is ReleaseMode.BURST:
            return None
        steps = {port: pacer.step(waiting.get(port, 0)) for port, pacer in self._ports.items()}
        if all(step.fits for step in steps.values()):
            return None
        released = {port: step.released for port, step in steps.items()}
        released[0] = waiting.get(0, 0)  # few, and nobody knows whose
        if any(released.values()):
            self.steps += 1
        return released


def at_once(
    endpoints: Iterable[Endpoint], listeners: Collection[Listener], *, syn_limit: int = 0
) -> dict[int, int]:
    """How many may wait for each port and all go at once; what it would be for a first step.

    :param listeners: as they were seen just now.
    """
    wanted = list(endpoints)
    found = {}
    for port in sorted({endpoint.port for endpoint in wanted}):
        mine = [one for one in listeners if one.port == port and any(map(one.serves, wanted))]
        room = _room_beside(mine, _queued(mine), syn_limit) if mine else Room(free=0, total=0)
        found[port] = _opening(room, has_queued=False)
    return found


class _Step(NamedTuple):
    """How many of a port may go now. *fits*: nothing would be gained by pacing it any more."""

    released: int
    fits: bool


class _PortPacer:
    """Decides for one port; *limit* as :attr:`Pacer.limit`."""

    def __init__(
        self,
        endpoints: tuple[Endpoint, ...],
        rooms: Rooms,
        clock: Callable[[], float],
        somaxconn: Callable[[], int],
        syn_limit: int,
    ) -> None:
        self._endpoints = endpoints
        self._rooms = rooms
        self._clock = clock
        self._somaxconn = somaxconn
        self._syn_limit = syn_limit
        self._stuck = Stuck()
        self._backlog = 0
        self._lowest: int | None = None
        self._lowest_at_s = 0.0
        self._looked_at_s = 0.0
        self._going_s = 0.0  # since then, the time in which some went
        self._occupied = 0  # at the most: in a queue when it was counted, or let go since
        self._has_begun = False
        self._has_queued = False
        self._released_at_s = float("-inf")
        self._awaits_clients = False
        self._has_given_up = False
        self.limit = ""

    def step(self, waiting: int) -> _Step:
        """How many of the *waiting* may go now.

        After the opening nobody counts, so half of the room is left to those who come then.
        """
        reason = self._debt(waiting)
        if reason:
            self.limit += f"; opened at once, since {reason}"
            self._has_given_up = True
        room = None if self._has_given_up else self._look(waiting)
        if room is None:  # nothing to wait for
            return _Step(waiting, fits=True)
        self._awaits_clients = room.awaits_clients
        if self._may_open(room, waiting):
            return _Step(waiting, fits=True)
        self._note_limit()
        released = min(waiting, room.free)
        self._has_queued |= released < waiting
        if released:
            self._has_begun = True
            self._occupied += released
            self._released_at_s = self._clock()
        return _Step(released, fits=False)

    def _may_open(self, room: Room, waiting: int) -> bool:
        return waiting <= _opening(room, has_queued=self._has_queued)

    def _look(self, waiting: int) -> Room | None:
        """The room that there is now, or less; None: nobody listens.

        To count the request sockets takes a walk through all the kernel's connections, so that is
        done only where what we have let go ourselves leaves too little room to go on.
        """
        listeners = self._accepting()
        if not listeners:
            return None
        if not self._has_begun:
            self._occupied = _queued(listeners)
        room = _room_beside(listeners, self._occupied, self._syn_limit)
        if self._has_begun and not self._suffices(room, waiting):
            # A handshake that completes in between counts twice; in the other order, not at all.
            requests = self._rooms.request_sockets(self._endpoints)
            listeners = self._accepting() or listeners
            self._occupied = requests + _queued(listeners)
            room = room_of(listeners, requests, syn_limit=self._syn_limit)
        self._backlog = min(listener.backlog for listener in listeners)
        return room

    def _accepting(self) -> list[Listener]:
        return self._stuck.left_out(self._rooms.listeners(self._endpoints), self._clock())

    def _suffices(self, room: Room, waiting: int) -> bool:
        """Whether more room would change nothing now."""
        return 0 < waiting <= room.free or self._may_open(room, waiting)

    def _note_limit(self) -> None:
        backlog = self._backlog
        if not self.limit and 0 < self._syn_limit < backlog:
            self.limit = f"{self._syn_limit} handshakes, {_SYN_BACKLOG}"
        elif not self.limit:
            self.limit = f"backlog of {backlog}"
            if backlog == self._somaxconn():
                self.limit += ", which is net.core.somaxconn"
        if self._awaits_clients and _HANDSHAKES not in self.limit:
            self.limit += _HANDSHAKES
        if self._stuck.number and _STUCK not in self.limit:
            self.limit += _STUCK

    def _debt(self, waiting: int) -> str:
        """Why to pace no longer: what waits has not become less for a while in which some went.

        The time in which a service stands still does not count: those who come meanwhile are no
        sign that it is slower than they come.

        A flood of SYNs with forged sources leaves handshakes that nobody completes: they fill
        the room for a minute, and a client that is there completes its own within a round trip.
        """
        now = self._clock()
        goes_on = now - self._released_at_s < _DEBT_WINDOW_S / 2
        self._going_s += now - self._looked_at_s if goes_on else 0.0
        self._looked_at_s = now
        if self._lowest is None or waiting < self._lowest:
            self._lowest, self._lowest_at_s, self._going_s = waiting, now, 0.0
        if self._has_given_up:
            return ""
        if self._awaits_clients and now - self._lowest_at_s > _HANDSHAKE_WINDOW_S:
            return "clients did not complete their handshakes"
        is_debt = goes_on and self._going_s > _DEBT_WINDOW_S
        return "newcomers outpaced the service" if is_debt else ""


def _queued(listeners: Iterable[Listener]) -> int:
    return sum(listener.accept_queue for listener in listeners)


def _room_beside(listeners: Iterable[Listener], occupied: int, syn_limit: int) -> Room:
    """The room of these listeners if so many are in their queues, at the most."""
    room = room_of(listeners, 0, syn_limit=syn_limit)
    return room._replace(free=min(room.free, max(0, room.total - occupied)))


def _opening(room: Room, *, has_queued: bool) -> int:
    """How many may be let go by opening: enough of the room is left to those who come then."""
    half = room.total // 2
    reserve = half if has_queued else min(half, _RESERVE)
    return room.free // 2 if room.free >= reserve else -1


class _BlindPortPacer(_PortPacer):
    """For a listener that cannot be seen: a step that fits, and then a pause."""

    def _look(self, waiting: int) -> Room:  # noqa: ARG002
        is_due = self._clock() - self._released_at_s >= _BLIND_EVERY_S
        return Room(free=_BLIND_STEP if is_due else 0, total=_BLIND_STEP)

    def _note_limit(self) -> None:
        if not self.limit:
            every_ms = round(_BLIND_EVERY_S * 1000)
            self.limit = f"{_BLIND_STEP} every {every_ms} ms, since the listener cannot be seen"
