"""The SYNs that wait in netfilter queues: which, where, and in which order they came."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

_UNREADABLE = b"\0\0"  # port 0, to which nobody can listen


class Place(NamedTuple):
    """Where the waiting copy of a SYN is. *moved*: its id is newer than its place in the order."""

    queue: int
    packet: int
    sequence: int
    moved: bool
    local: bool


class WaitingSyns:
    """A list a port, in the order of arrival.

    A flow ends in the destination port (:data:`synplug.model.Flow`). Packets whose headers could
    not be read have a list of their own.

    :param ports: those that are held.
    """

    def __init__(self, ports: Iterable[int]) -> None:
        self._lists: dict[bytes, dict[bytes, Place]] = {
            key: {} for key in (_UNREADABLE, *(port.to_bytes(2, "big") for port in ports))
        }

    def __len__(self) -> int:
        return sum(map(len, self._lists.values()))

    def has_port_of(self, flow: bytes) -> bool:
        """Whether the flow goes to one of the ports."""
        return flow[-2:] in self._lists and flow[-2:] != _UNREADABLE

    def get(self, flow: bytes) -> Place | None:
        """Where its SYN waits, if it does."""
        return self._lists[flow[-2:]].get(flow)

    def enter(self, flow: bytes, place: Place) -> None:
        """It waits there: behind all others, or, if it waited already, where it stood."""
        self._lists[flow[-2:]][flow] = place

    def pop(self, flow: bytes) -> Place | None:
        """It waits no longer; where it did."""
        return self._lists[flow[-2:]].pop(flow, None)

    def by_port(self) -> dict[int, int]:
        """How many wait for each port; 0: could not be read."""
        return {int.from_bytes(key, "big"): len(waiting) for key, waiting in self._lists.items()}

    def is_all_for(self, port: int) -> bool:
        """Whether nobody waits for any other port."""
        mine = port.to_bytes(2, "big")
        return not any(waiting for key, waiting in self._lists.items() if key != mine)

    def take(self, port: int, limit: int) -> list[tuple[bytes, Place]]:
        """Remove and return the first so many of a port."""
        waiting = self._lists[port.to_bytes(2, "big")]
        taken = list(islice(waiting.items(), max(0, limit)))
        for flow, _ in taken:
            del waiting[flow]
        return taken

    def take_all(self) -> list[Place]:
        """Remove and return all of them, port by port."""
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


def nothing_yet() -> dict[str, int]:
    """The counts of a hold that has just begun, by their names in :class:`HoldCounts`."""
    names = "held held_local released duplicates superseded let_through lost over_source"
    return dict.fromkeys(names.split(), 0)


def unreadable(queue: int, packet: int) -> bytes:
    """Stands for the flow of a packet whose headers could not be read."""
    return b"unreadable packet %d %d" % (queue, packet) + _UNREADABLE
