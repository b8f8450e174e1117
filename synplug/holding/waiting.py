"""The SYNs that wait in netfilter queues: which, where, and in which order they came."""

from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

from synplug.model import Endpoint

#: Whose SYNs are let go at a pace of their own: those of a destination port (0: could not be
#: read), or, where that is divided, those of one of its endpoints.
Lane = int | Endpoint

_UNREADABLE = b"\0\0"  # port 0, to which nobody can listen


class Place(NamedTuple):
    """Where the waiting copy of a SYN is. *moved*: its id is newer than its place in the order."""

    queue: int
    packet: int
    sequence: int
    moved: bool
    local: bool


class WaitingSyns:
    """A list a lane, in the order of arrival.

    A flow ends in the destination port (:data:`synplug.model.Flow`). Packets whose headers could
    not be read have a list of their own.

    :param ports: those that are held.
    """

    def __init__(self, ports: Iterable[int]) -> None:
        self._lanes: dict[bytes, Lane] = {_key(port): port for port in (0, *ports)}
        self._lists: dict[bytes, dict[bytes, Place]] = {key: {} for key in self._lanes}
        self._divided: set[bytes] = set()

    def __len__(self) -> int:
        return sum(map(len, self._lists.values()))

    def has_port_of(self, flow: bytes) -> bool:
        """Whether the flow goes to one of the ports."""
        return flow[-2:] in self._lists and flow[-2:] != _UNREADABLE

    def divide(self, port: int, endpoints: Iterable[Endpoint]) -> None:
        """Give each of these endpoints of the port, which have an address, a list of its own.

        Who waits keeps its place among those of its list: that of the very address it goes to, or
        of the unspecified address of its IP version, or that of the port.
        """
        whole = _key(port)
        waiting = self._lists[whole]
        lanes = {_key(endpoint): endpoint for endpoint in endpoints}
        self._lanes |= lanes
        self._lists |= {key: {} for key in (whole, *lanes)}
        self._divided.add(whole)
        for flow, place in waiting.items():
            self.enter(flow, place)

    def _list_of(self, flow: bytes) -> dict[bytes, Place]:
        port = flow[-2:]
        if port not in self._divided:
            return self._lists[port]
        width = len(flow) // 2 - 2  # two addresses, and two ports of two bytes
        own, any_address = self._lists.get(flow[width:-4] + port), bytes(width) + port
        return own if own is not None else self._lists.get(any_address, self._lists[port])

    def get(self, flow: bytes) -> Place | None:
        """Where its SYN waits, if it does."""
        return self._list_of(flow).get(flow)

    def enter(self, flow: bytes, place: Place) -> None:
        """It waits there: behind all others, or, if it waited already, where it stood."""
        self._list_of(flow)[flow] = place

    def pop(self, flow: bytes) -> Place | None:
        """It waits no longer; where it did."""
        return self._list_of(flow).pop(flow, None)

    def by_lane(self) -> dict[Lane, int]:
        """How many wait in each."""
        return {self._lanes[key]: len(waiting) for key, waiting in self._lists.items()}

    def is_all_in(self, lane: Lane) -> bool:
        """Whether nobody waits in any other."""
        mine = _key(lane)
        return not any(waiting for key, waiting in self._lists.items() if key != mine)

    def take(self, lane: Lane, limit: int) -> list[tuple[bytes, Place]]:
        """Remove and return the first so many of a lane."""
        waiting = self._lists[_key(lane)]
        taken = list(islice(waiting.items(), max(0, limit)))
        for flow, _ in taken:
            del waiting[flow]
        return taken

    def take_all(self) -> list[Place]:
        """Remove and return all of them, lane by lane."""
        places = [place for waiting in self._lists.values() for place in waiting.values()]
        for waiting in self._lists.values():
            waiting.clear()
        return places

    def forget_oldest(self, number: int, left: int) -> list[bytes]:
        """Strike out what a queue no longer holds: what was there when it was flushed.

        :param left: how many it still holds. :returns: the flows of the others.
        """
        mine = self._of_queue(number)
        gone = mine[: max(0, len(mine) - left)]
        for flow in gone:
            self.pop(flow)
        return gone

    def _of_queue(self, number: int) -> list[bytes]:
        """The flows whose SYNs wait in that queue, in its order."""
        mine = [
            (place.packet, flow)
            for waiting in self._lists.values()
            for flow, place in waiting.items()
            if place.queue == number
        ]
        return [flow for _, flow in sorted(mine)]


def _key(lane: Lane) -> bytes:
    """A port, or a destination address with its port, as the end of a flow has them."""
    if isinstance(lane, int):
        return lane.to_bytes(2, "big")
    assert lane.address is not None, "who has none stays with the port"
    return lane.address.packed + lane.port.to_bytes(2, "big")


def nothing_yet() -> dict[str, int]:
    """The counts of a hold that has just begun, by their names in :class:`HoldCounts`."""
    names = "held held_local released duplicates superseded let_through lost over_source"
    return dict.fromkeys(names.split(), 0)


def unreadable(queue: int, packet: int) -> bytes:
    """Stands for the flow of a packet whose headers could not be read."""
    return b"unreadable packet %d %d" % (queue, packet) + _UNREADABLE
