"""How many more connections listeners can take, and which of them take none."""

import math
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

from synplug.model import Endpoint, Listener

#: So many standard deviations above the mean no member of a group gets, in any number of releases.
_SIGMAS = 5
#: A member of a group that is full for so long, while others are not, accepts nothing.
_STUCK_S = 0.5
#: An endpoint that has not the fourth part of its room is what its port waits for.
_NARROW = 4
#: Room for newcomers that is enough, while nobody has had to wait for a place yet: a service that
#: bears its load has none of its queue left in the time that so many take to come.
_RESERVE = 128


class Room(NamedTuple):
    """How many more connections can be taken, and how many if nobody waited there.

    *backlog* is that of the listeners that have the least room.
    """

    free: int
    total: int
    backlog: int = 0
    #: Whether it is handshakes that fill it, and not connections that the service has to accept.
    awaits_clients: bool = False


class Rooms(Protocol):
    """What pacing asks the kernel; :class:`synplug.kernel.sock_diag.SocketDiagnostics` answers."""

    def listeners(self, endpoints: Iterable[Endpoint] | None = None) -> list[Listener]:
        """The listening sockets that serve the endpoints."""

    def request_sockets(self, endpoints: Iterable[Endpoint], but: Iterable[Endpoint] = ()) -> int:
        """Connections to the endpoints, and to none of *but*, that are in SYN_RECV."""


def room_of(listeners: Iterable[Listener], request_sockets: int, *, syn_limit: int = 0) -> Room:
    """The room of these listeners of one port, at the least.

    Where a SYN is sent, and by which device it comes, decides which group gets it: the listeners
    of one address, family and device (``net/ipv4/inet_hashtables.c``, inet_reuseport_add_sock). So
    the group counts that has the least room. Within a group, of SO_REUSEPORT, a hash decides.

    :param syn_limit: how many request sockets one listener may have; 0: as many as its backlog.
    """
    groups: dict[object, list[Listener]] = {}
    for listener in listeners:
        groups.setdefault(_group_of(listener), []).append(listener)
    rooms = [_of_group(group, request_sockets, syn_limit) for group in groups.values()]
    return min(rooms)._replace(total=min(room.total for room in rooms))


def room_beside(listeners: Iterable[Listener], occupied: int, syn_limit: int) -> Room:
    """The room of these listeners if so many are in their queues, at the most."""
    room = room_of(listeners, 0, syn_limit=syn_limit)
    return room._replace(free=min(room.free, max(0, room.total - occupied)))


def queued(listeners: Iterable[Listener]) -> int:
    """How many wait in their accept queues."""
    return sum(listener.accept_queue for listener in listeners)


def opening(room: Room, *, has_queued: bool) -> int:
    """How many may be let go by opening: enough of the room is left to those who come then.

    :param has_queued: whether somebody has had to wait for a place.
    """
    half = room.total // 2
    reserve = half if has_queued else min(half, _RESERVE)
    return room.free // 2 if room.free >= reserve else -1


def _of_group(group: list[Listener], request_sockets: int, syn_limit: int) -> Room:
    limits = [_limit_of(one, syn_limit) for one in group]
    free = min(limit - listener.accept_queue for limit, listener in zip(limits, group, strict=True))
    acceptable = _share(max(0, free), len(group))
    return Room(
        free=max(0, acceptable - request_sockets),
        total=_share(min(limits), len(group)),
        backlog=min(listener.backlog for listener in group),
        awaits_clients=acceptable > 0 and request_sockets >= acceptable,
    )


def _limit_of(listener: Listener, syn_limit: int) -> int:
    """How many it takes that nobody has accepted yet."""
    return max(1, min(listener.backlog, syn_limit or listener.backlog))


def _group_of(listener: Listener) -> object:
    return listener.address, listener.v6only, listener.device


def _share(each: int, members: int) -> int:
    """How many may go to a group, so that none of its members gets more than *each*.

    A member gets a mean of m, and by chance m + 5 √(m (1 - 1/members)) at the most.
    """
    spread = _SIGMAS * math.sqrt(1 - 1 / members)
    mean = ((math.sqrt(spread * spread + 4 * each) - spread) / 2) ** 2
    return max(each, int(mean * members))


class Stuck:
    """Which members of a group accept nothing, while others do: pacing can do nothing for them."""

    def __init__(self, full_since_s: Mapping[int, float] = MappingProxyType({})) -> None:
        self._full_since_s = dict(full_since_s)
        #: How many were left out at the last look.
        self.number = 0

    def copy(self) -> "Stuck":
        """One that has seen the same."""
        return Stuck(self._full_since_s)

    def left_out(
        self, listeners: list[Listener], now_s: float, *, syn_limit: int = 0
    ) -> list[Listener]:
        """The others. :param syn_limit: as for :func:`room_of`."""
        limits = ((one, _limit_of(one, syn_limit)) for one in listeners)
        full = {one.cookie for one, limit in limits if one.accept_queue >= limit}
        since_s = self._full_since_s
        self._full_since_s = {cookie: since_s.get(cookie, now_s) for cookie in full}
        stuck = {cookie for cookie, at_s in self._full_since_s.items() if now_s - at_s >= _STUCK_S}
        served = {_group_of(one) for one in listeners if one.cookie not in full}
        kept = [one for one in listeners if one.cookie not in stuck or _group_of(one) not in served]
        self.number = len(listeners) - len(kept)
        return kept


class Apart:
    """Whether a port's endpoints part: one has hardly any room for long, while another one has.

    It may be slow, and not hang: then it has a place now and then.
    """

    def __init__(self) -> None:
        self._narrow_since_s: dict[Endpoint, float] = {}

    def is_found(self, listeners: Iterable[Listener], now_s: float, *, syn_limit: int = 0) -> bool:
        """Whether one of these has had so little for so long that others do not wait for it.

        What comes by a device that a listener is not bound to may be another one's of another
        address: there they cannot be told apart.

        :param syn_limit: as for :func:`room_of`.
        """
        members: dict[Endpoint, list[Listener]] = {}
        for one in listeners:
            members.setdefault(one.endpoint(), []).append(one)
        rooms = {one: room_of(mine, 0, syn_limit=syn_limit) for one, mine in members.items()}
        narrow = {one for one, room in rooms.items() if room.free * _NARROW < room.total}
        since_s = self._narrow_since_s
        self._narrow_since_s = {endpoint: since_s.get(endpoint, now_s) for endpoint in narrow}
        is_long = any(now_s - at_s >= _STUCK_S for at_s in self._narrow_since_s.values())
        are_bound = any(one.device for mine in members.values() for one in mine)
        return is_long and len(narrow) < len(members) and not are_bound


class Part:
    """What a lane of a divided port has of its listeners.

    :param own: its endpoint; None: what none of the others takes. :param parts: all that have one.
    """

    def __init__(self, rooms: Rooms, own: Endpoint | None, parts: Collection[Endpoint]) -> None:
        self._rooms = rooms
        self._own = own
        self._parts = parts
        # One address is never another; all addresses are all but those.
        self._others = [one for one in parts if own is None or (one != own and one.exact_address)]

    def listeners(self, endpoints: Iterable[Endpoint] | None = None) -> list[Listener]:
        found, own = self._rooms.listeners(endpoints), self._own
        if own is None:
            return [one for one in found if one.endpoint() not in self._parts]
        mine = [one for one in found if one.endpoint() == own]
        return mine or [one for one in found if one.serves(own)]  # another one took its place

    def request_sockets(self, endpoints: Iterable[Endpoint], but: Iterable[Endpoint] = ()) -> int:
        return self._rooms.request_sockets(endpoints, [*but, *self._others])
