"""Other traffic on loopback: UDP datagrams, there and back, at a steady rate, until SIGTERM.

Prints, as JSON, how many were sent and lost, and how long they took.
"""

from __future__ import annotations

import json
import select
import signal
import socket
import statistics
import sys
import time

RATE_PER_S = 50
_LAST_S = 0.5


class _Stop(Exception):  # noqa: N818 -- no error
    pass


def _stop(*_: object) -> None:
    raise _Stop


def main() -> int:
    """Send and receive."""
    signal.signal(signal.SIGTERM, _stop)
    echo, ours = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    for end in (echo, ours):
        end.bind(("127.0.0.1", 0))
        end.setblocking(False)
    poll = select.poll()
    poll.register(echo, select.POLLIN)
    poll.register(ours, select.POLLIN)
    sent = 0
    round_trips_ms: list[float] = []
    end_s, next_s = float("inf"), time.monotonic()
    while (now_s := time.monotonic()) < end_s:
        try:
            if now_s >= next_s and end_s == float("inf"):
                ours.sendto(str(time.monotonic()).encode(), echo.getsockname())
                sent, next_s = sent + 1, next_s + 1 / RATE_PER_S
            for descriptor, _ in poll.poll(max(0.0, next_s - time.monotonic()) * 1000):
                if descriptor == echo.fileno():
                    data, sender = echo.recvfrom(100)
                    echo.sendto(data, sender)
                    continue
                round_trips_ms.append((time.monotonic() - float(ours.recv(100))) * 1000)
        except _Stop:
            end_s = next_s = time.monotonic() + _LAST_S
    result = {
        "sent": sent,
        "lost": sent - len(round_trips_ms),
        "p50_ms": statistics.median(round_trips_ms),
        "max_ms": max(round_trips_ms),
    }
    print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
