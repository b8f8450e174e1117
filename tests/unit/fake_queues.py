"""The kernel's side of nfnetlink_queue in miniature, and a gate that counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from synplug.errors import OverrunError
from synplug.kernel.nfqueue import NF_ACCEPT, NF_DROP, Notice, QueueState
from synplug.model import Flow


def flow_of(number: int) -> Flow:
    """The flow of client *number* to port 80."""
    return Flow(number.to_bytes(10, "big") + b"\0P")


class FakeGate:
    """A rule that sends what comes to the queues, until it is taken out."""

    name = "fake"
    capabilities = frozenset[int]()
    outlives_its_keeper = False
    patience_s = 0.0

    def __init__(self) -> None:
        self.log: list[str] = []
        self.queues: tuple[int, ...] = ()
        self.met = 0
        self.missing = 0
        self.flushes_queues = True

    def traces(self) -> dict[str, str]:
        return {"rule": "fake rule"}

    def load_libraries(self) -> None:
        pass

    def prepare(self, queues: tuple[int, ...]) -> None:
        self.queues = queues
        self.log.append("prepare")

    def hold(self, go_on: Callable[[], None] = lambda: None) -> None:
        go_on()
        self.log.append("hold")

    def open(self) -> None:
        self.log.append("open")

    def restore(self) -> int:
        missing, self.missing = self.missing, 0
        return missing

    def matched(self) -> int:
        return self.met

    def remove(self) -> None:
        self.log.append("remove")

    def close(self) -> None:
        self.log.append("close")

    def clean_up_after_death(self) -> list[str]:
        self.log.append("clean up")
        return ["a rule"]


class FakeQueues:
    """Queues 100, 101, …; *accepted* and *dropped* are packets as (queue, id), in order."""

    def __init__(self, *, count: int, length_packets: int, fail_open: bool) -> None:
        self.numbers = tuple(range(100, 100 + count))
        self.length_packets = length_packets
        self.fail_open = fail_open
        self.waiting: dict[int, list[int]] = {number: [] for number in self.numbers}
        self.last_id = dict.fromkeys(self.numbers, 0)
        self.accepted: list[tuple[int, int]] = []
        self.dropped: list[tuple[int, int]] = []
        self.unread = 0
        self.overrun = False
        self.closed = False
        self._notices: list[Notice] = []

    def arrive(
        self, flow: Flow | None, *, queue: int = 100, sequence: int = 1, local: bool = False
    ) -> int:
        """A SYN comes; returns its id."""
        self.last_id[queue] += 1
        packet = self.last_id[queue]
        self.waiting[queue].append(packet)
        self._notices.append(Notice(queue, packet, 1 if local else 2, flow, sequence))
        return packet

    def flush(self, *queues: int) -> None:
        """Somebody removes a netfilter hook: what is held is gone."""
        for queue in queues or self.numbers:
            self.waiting[queue].clear()

    def fileno(self) -> int:
        return 9

    def read(self) -> Iterator[Notice]:
        if self.overrun:
            self.overrun = False
            raise OverrunError("read the netfilter queue: more came than its buffer takes")
        while self._notices:
            yield self._notices.pop(0)

    def verdict(self, queue: int, packet: int, verdict: int) -> None:
        self._settle(queue, [packet] if packet in self.waiting[queue] else [], verdict)

    def verdict_up_to(self, queue: int, packet: int, verdict: int) -> None:
        self._settle(queue, [own for own in self.waiting[queue] if own <= packet], verdict)

    def _settle(self, queue: int, packets: list[int], verdict: int) -> None:
        assert verdict in (NF_ACCEPT, NF_DROP)
        for packet in packets:
            self.waiting[queue].remove(packet)
            (self.accepted if verdict == NF_ACCEPT else self.dropped).append((queue, packet))

    def states(self) -> list[QueueState]:
        return [
            QueueState(
                number=number,
                waiting=len(self.waiting[number]),
                dropped_unread=self.unread if number == self.numbers[0] else 0,
                last_id=self.last_id[number],
            )
            for number in self.numbers
        ]

    def close(self) -> None:
        self.closed = True
