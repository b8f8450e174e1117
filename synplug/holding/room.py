"""How many more connections the listeners of a port can take."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from synplug.model import Listener

#: So many standard deviations above the mean no member of a group gets, in any number of releases.
_SIGMAS = 5
#: A member of a group that is full for so long, while others are not, accepts nothing.
_STUCK_S = 0.5


class Room(NamedTuple):
    """How many more connections can be taken, and how many if nobody waited there."""

    free: int
    total: int
    #: Whether it is handshakes that fill it, and not connections that the service has to accept.
    awaits_clients: bool = False


def room_of(listeners: Iterable[Listener], request_sockets: int, *, syn_limit: int = 0) -> Room:
    """The room of these listeners of one port, at the least.

    Where a SYN is sent decides which group gets it, the listeners of one address and family; so
    the group counts that has the least room. Within a group, of SO_REUSEPORT, a hash decides.

    :param syn_limit: how many request sockets one listener may have; 0: as many as its backlog.
    """
    groups: dict[object, list[Listener]] = {}
    for listener in listeners:
        groups.setdefault((listener.address, listener.v6only), []).append(listener)
    rooms = [_of_group(group, request_sockets, syn_limit) for group in groups.values()]
    return min(rooms)._replace(total=min(room.total for room in rooms))


def _of_group(group: list[Listener], request_sockets: int, syn_limit: int) -> Room:
    limits = [max(1, min(one.backlog, syn_limit or one.backlog)) for one in group]
    free = min(limit - listener.accept_queue for limit, listener in zip(limits, group, strict=True))
    acceptable = _share(max(0, free), len(group))
    return Room(
        free=max(0, acceptable - request_sockets),
        total=_share(min(limits), len(group)),
        awaits_clients=acceptable > 0 and request_sockets >= acceptable,
    )


def _share(each: int, members: int) -> int:
    """How many may go to a group, so that none of its members gets more than *each*.

    A member gets a mean of m, and by chance m + 5 √(m (1 - 1/members)) at the most.
    """
    spread = _SIGMAS * math.sqrt(1 - 1 / members)
    mean = ((math.sqrt(spread * spread + 4 * each) - spread) / 2) ** 2
    return max(each, int(mean * members))


class Stuck:
    """Which members of a group accept nothing, while others do: pacing can do nothing for them."""

    def __init__(self) -> None:
        self._full_since_s: dict[int, float] = {}
        #: How many were left out at the last look.
        self.number = 0

    def left_out(self, listeners: list[Listener], now_s: float) -> list[Listener]:
        """The others."""
        full = {one.cookie for one in listeners if one.accept_queue >= max(1, one.backlog)}
        since_s = self._full_since_s
        self._full_since_s = {cookie: since_s.get(cookie, now_s) for cookie in full}
        stuck = {cookie for cookie, at_s in self._full_since_s.items() if now_s - at_s >= _STUCK_S}
        served = {(one.address, one.v6only) for one in listeners if one.cookie not in full}
        kept = [
            one
            for one in listeners
            if one.cookie not in stuck or (one.address, one.v6only) not in served
        ]
        self.number = len(listeners) - len(kept)
        return kept
