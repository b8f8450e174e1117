"""How fast to let go: never more than the listeners have room for.

A burst larger than the new listener's backlog overflows its accept queue: the kernel drops the
rest, and their clients wait a second or more (docs/adr/0005-paced-release.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from synplug.model import Endpoint, Listener, ReleaseMode

_DEBT_WINDOW_S = 0.5
#: Round trips are shorter; a SYN-ACK that got lost is sent again after a second.
_HANDSHAKE_WINDOW_S = 1.5


class Rooms(Protocol):
    """What pacing asks the kernel; :class:`synplug.kernel.sock_diag.SocketDiagnostics` answers."""

    def listeners(self, endpoints: Iterable[Endpoint] | None = None) -> list[Listener]:
        """The listening sockets that serve the endpoints."""

    def request_sockets(self, endpoints: Iterable[Endpoint]) -> int:
        """Connections to the endpoints that are in SYN_RECV."""


class Room(NamedTuple):
    """How many more connections can be taken, and how many if nobody waited there."""

    free: int
    total: int
    #: Whether it is handshakes that fill it, and not connections that the service has to accept.
    awaits_clients: bool = False


def room_of(listeners: list[Listener], request_sockets: int) -> Room:
    """The room of these listeners of one port, at the least.

    Connections to a SO_REUSEPORT group are spread by hash: some socket may get twice its
    share, so half of what the fullest would allow all of them is taken as safe.
    """
    backlogs = [max(1, listener.backlog) for listener in listeners]
    free = [
        backlog - listener.accept_queue
        for backlog, listener in zip(backlogs, listeners, strict=True)
    ]
    share = 1 if len(listeners) == 1 else len(listeners) / 2
    acceptable = int(min(free) * share)
    return Room(
        free=max(0, acceptable - request_sockets),
        total=int(min(backlogs) * share),
        awaits_clients=acceptable > 0 and request_sockets >= acceptable,
    )


class Pacer:
    """Decides how many may go next.

    :param clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        endpoints: tuple[Endpoint, ...],
        mode: ReleaseMode,
        rooms: Rooms,
        clock: Callable[[], float],
    ) -> None:
        self._endpoints = endpoints
        self._mode = mode
        self._rooms = rooms
        self._clock = clock
        self._lowest: int | None = None
        self._lowest_at_s = 0.0
        self._stepped = False
        self._awaits_clients = False
        self._reason = ""
        self.steps = 0
        #: What bounded the pace, for the report; empty when everything fitted at once.
        self.limit = ""

    def step(self, waiting: int) -> int | None:
        """How many of the *waiting* may go now; None: open, there is no reason to pace (on).

        After the opening nobody counts, so half of the room is left to those who come then.
        """
        if self._mode is ReleaseMode.BURST:
            return None
        if self._is_debt(waiting):
            self.limit += f"; opened at once, since {self._reason}"
            return None
        room = self._room()
        self._awaits_clients = room is not None and room.awaits_clients
        if room is None or (waiting <= room.free // 2 and room.free >= room.total // 2):
            return None
        released = min(waiting, room.free)
        if released:
            self.steps += 1
            self._stepped = True
        return released

    def _is_debt(self, waiting: int) -> bool:
        """Whether what waits has not become less for a while, though some could go.

        A flood of SYNs with forged sources leaves handshakes that nobody completes: they fill
        the room for a minute, and a client that is there completes its own within a round trip.
        """
        now = self._clock()
        if self._lowest is None or waiting < self._lowest:
            self._lowest, self._lowest_at_s, self._stepped = waiting, now, False
        since_s = now - self._lowest_at_s
        if self._awaits_clients and since_s > _HANDSHAKE_WINDOW_S:
            self._reason = "clients did not complete their handshakes"
            return True
        self._reason = "newcomers outpaced the service"
        may_give_up = self._stepped or len({endpoint.port for endpoint in self._endpoints}) > 1
        return may_give_up and since_s > _DEBT_WINDOW_S

    def _room(self) -> Room | None:
        """The room of the endpoint that has least; None when nobody listens."""
        rooms = []
        for port in {endpoint.port for endpoint in self._endpoints}:
            wanted = [endpoint for endpoint in self._endpoints if endpoint.port == port]
            listeners = self._rooms.listeners(wanted)
            if not listeners:
                continue
            requests = self._rooms.request_sockets(wanted) if self.steps else 0
            rooms.append(room_of(listeners, requests))
            self.limit = f"backlog of {min(listener.backlog for listener in listeners)}"
        return min(rooms, default=None, key=lambda room: room.free)
