"""What a hold costs other traffic on loopback: numbered UDP datagrams, one behind the other.

Reads ways to hold, a JSON list, from standard input. They hold in turn, many times, with nobody who
waits, and between any two holds there is none: each is compared with what was just before and
behind it, so that whatever slows the machine for a while is in both. Prints, as JSON, of each way
how many were sent, lost and overtaken while it held, and how much longer one took (quartiles).
"""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import synplug  # noqa: E402

TURNS, ROUNDS, IN_A_ROUND = 30, 16, 250
_BUFFER_BYTES = 1 << 21


class _Line:
    """A sender and a receiver. :ivar came: the numbers of the last block, in their order."""

    def __init__(self) -> None:
        self._there, self._ours = (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)
        )
        self._there.bind(("127.0.0.1", 0))
        self._there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        self._there.settimeout(1)
        self._ours.connect(self._there.getsockname())
        self.came: list[int] = []

    def block(self) -> tuple[float, float]:
        """Send a block of them; what one took, with its way to the receiver, in microseconds.

        By the median of the rounds, which leaves out what else the processor does meanwhile, and
        by their mean; without the first round: what is done but once is done there.
        """
        self.came = []
        took_us: list[float] = []
        for number in range(1 + ROUNDS):
            took_us.append(self._send(number * IN_A_ROUND))
            self.came += self._received()
        return statistics.median(took_us[1:]), statistics.mean(took_us[1:])

    def _send(self, first: int) -> float:
        datagrams = [str(first + number).encode() for number in range(IN_A_ROUND)]
        began_s = time.monotonic()
        for datagram in datagrams:
            self._ours.send(datagram)
        return (time.monotonic() - began_s) / IN_A_ROUND * 1e6

    def _received(self) -> list[int]:
        """The numbers of a round, as they came; less, if nothing comes any more."""
        found: list[int] = []
        try:
            while len(found) < IN_A_ROUND:
                found.append(int(self._there.recv(100)))
        except TimeoutError:
            pass
        return found


def main() -> int:
    """Each way, turn by turn; the first turn warms up."""
    import iptc  # noqa: F401 -- once, for all keepers that are forked
    import pyroute2  # noqa: F401

    ways: list[dict[str, Any]] = json.load(sys.stdin)
    found: dict[str, dict[str, Any]] = {
        way["name"]: {"sent": 0, "lost": 0, "overtaken": 0} for way in ways
    }
    longer_us: dict[str, list[list[float]]] = {name: [] for name in found}
    line = _Line()
    at_rest_us = [line.block()]
    for turn in range(1 + TURNS):
        for way in ways[:: -1 if turn % 2 else 1]:
            with _held(way):
                held_us = line.block()
            row, sent = found[way["name"]], (1 + ROUNDS) * IN_A_ROUND
            row["sent"] += sent
            row["lost"] += sent - len(line.came)
            row["overtaken"] += overtaken(line.came)
            at_rest_us.append(line.block())
            if turn:
                times = zip(held_us, *at_rest_us[-2:], strict=True)
                longer_us[way["name"]].append([held - (a + b) / 2 for held, a, b in times])
    for name, row in found.items():
        by_median, by_mean = zip(*longer_us[name], strict=True)
        row["median_us"] = statistics.quantiles(by_median, n=4)
        row["mean_us"] = statistics.quantiles(by_mean, n=4)
    result = {"at_rest_us": statistics.median(time for time, _ in at_rest_us), "ways": found}
    print(json.dumps(result), flush=True)
    return 0


@contextmanager
def _held(way: dict[str, Any]) -> Iterator[None]:
    """Hold by synplug with these options, or else by these commands."""
    if way["options"]:
        with synplug.hold(**way["options"]):
            yield
        return
    for argv in way["hold"]:
        subprocess.run(argv, check=True)
    yield
    for argv in way["release"]:
        subprocess.run(argv, check=True)


def overtaken(came: list[int]) -> int:
    """How many came behind a later one."""
    last, found = -1, 0
    for number in came:
        found += number < last
        last = max(last, number)
    return found


if __name__ == "__main__":
    sys.exit(main())
