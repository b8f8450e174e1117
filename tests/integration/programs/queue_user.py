"""A foreign user of a netfilter queue: ``python queue_user.py NUMBER [SECONDS]``.

Prints ``bound``; holds every packet until a line comes on standard input, then accepts all,
prints their number, and ends when standard input does. With SECONDS it accepts all so long after
the first of them instead, again and again until standard input ends, and prints how many there
were, and how many of them the kernel no longer had.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import sys
import time

_NETLINK_NETFILTER = 12
_QUEUE = 3 << 8


def _config(number: int, attribute: int, data: bytes) -> bytes:
    """A configuration message (linux/netfilter/nfnetlink_queue.h), acknowledged."""
    body = struct.pack("!BBH", 0, 0, number)
    body += struct.pack("=HH", 4 + len(data), attribute) + data + bytes(-len(data) % 4)
    return struct.pack("=IHHII", 16 + len(body), _QUEUE | 2, 5, 1, 0) + body


def _verdict(number: int, packet: bytes, flags: int) -> bytes:
    """Accept that packet."""
    body = struct.pack("!BBH", 0, 0, number) + struct.pack("=HH", 12, 2)
    body += struct.pack("!I", 1) + packet
    return struct.pack("=IHHII", 16 + len(body), _QUEUE | 1, flags, 0, 0) + body


def _is_answer(message: bytes) -> bool:
    """Whether it is NLMSG_ERROR, about a verdict: an acknowledgement has the error 0."""
    return bool(struct.unpack_from("=H", message, 4)[0] == 2)


def _pass_on(queue: socket.socket, number: int, after_s: float) -> None:
    """Have what comes for a moment, and let it go, again and again."""
    waiting: list[bytes] = []
    seen = lost = 0
    due_s = 0.0
    while True:
        left_s = max(0.0, due_s - time.monotonic()) if waiting else None
        readable, _, _ = select.select([queue, sys.stdin], [], [], left_s)
        if queue in readable:
            message = queue.recv(65536)
            if _is_answer(message):
                lost += struct.unpack_from("=i", message, 16)[0] == -errno.ENOENT
                continue
            due_s = due_s if waiting else time.monotonic() + after_s
            waiting.append(message[24:28])
            seen += 1
        elif readable:
            break
        else:
            for packet in waiting:
                queue.send(_verdict(number, packet, 5))
            waiting.clear()
    print(seen, lost, flush=True)


def main() -> None:
    """Hold, then let go."""
    number = int(sys.argv[1])
    queue = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    queue.bind((0, 0))
    for attribute, data in ((1, struct.pack("!BxH", 1, 0)), (2, struct.pack("!IB", 64, 2))):
        queue.send(_config(number, attribute, data))
        answer = queue.recv(65536)
        if struct.unpack_from("=i", answer, 16)[0]:
            raise SystemExit(f"cannot bind queue {number}")
    print("bound", flush=True)
    if sys.argv[2:]:
        _pass_on(queue, number, float(sys.argv[2]))
        return
    sys.stdin.readline()
    queue.setblocking(False)
    seen = 0
    while True:
        try:
            message = queue.recv(65536)
        except BlockingIOError:
            break
        if _is_answer(message):  # the kernel no longer had it
            continue
        # The id is behind both headers and the first attribute's.
        queue.send(_verdict(number, message[24:28], 1))
        seen += 1
    print(seen, flush=True)
    sys.stdin.read()


main()
