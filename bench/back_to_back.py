"""Other traffic on loopback, as fast as it goes: numbered UDP datagrams, one behind the other.

Prints, as JSON, how many were sent, lost and overtaken, and what one of them took.
"""

from __future__ import annotations

import json
import socket
import statistics
import sys
import time

ROUNDS, IN_A_ROUND = 40, 500
_BUFFER_BYTES = 1 << 21


def main() -> int:
    """Send a round, then look at what has come of it."""
    there, ours = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    there.bind(("127.0.0.1", 0))
    there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    ours.connect(there.getsockname())
    there.settimeout(1)
    _send(ours, 0)
    _received(there)  # what is done but once is done
    came: list[int] = []
    took_us: list[float] = []
    for number in range(ROUNDS):
        took_us.append(_send(ours, number * IN_A_ROUND))
        came += _received(there)
    result = {
        "sent": ROUNDS * IN_A_ROUND,
        "lost": ROUNDS * IN_A_ROUND - len(came),
        "overtaken": overtaken(came),
        "us": statistics.median(took_us),
    }
    print(json.dumps(result), flush=True)
    return 0


def _send(ours: socket.socket, first: int) -> float:
    """A round of them; what one took, with its way to the receiver, in microseconds."""
    datagrams = [str(first + number).encode() for number in range(IN_A_ROUND)]
    began_s = time.monotonic()
    for datagram in datagrams:
        ours.send(datagram)
    return (time.monotonic() - began_s) / IN_A_ROUND * 1e6


def _received(there: socket.socket) -> list[int]:
    """The numbers of a round, as they came; less, if nothing comes any more."""
    found: list[int] = []
    try:
        while len(found) < IN_A_ROUND:
            found.append(int(there.recv(100)))
    except TimeoutError:
        pass
    return found


def overtaken(came: list[int]) -> int:
    """How many came behind a later one."""
    last, found = -1, 0
    for number in came:
        found += number < last
        last = max(last, number)
    return found


if __name__ == "__main__":
    sys.exit(main())
