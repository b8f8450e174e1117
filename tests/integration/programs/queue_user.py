"""A foreign user of a netfilter queue: ``python queue_user.py NUMBER [SECONDS]``.

Prints ``bound``; holds every packet until a line comes on standard input, then accepts all,
prints their number, and ends when standard input does. With SECONDS it holds each packet for so
long instead, until standard input ends, and prints how many there were, and how many of them the
kernel no longer had.
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
    """Hold each for a moment, in their order."""
    seen = lost = 0
    while True:
        readable, _, _ = select.select([queue, sys.stdin], [], [])
        if queue not in readable:
            break
        message = queue.recv(65536)
        if _is_answer(message):
            lost += struct.unpack_from("=i", message, 16)[0] == -errno.ENOENT
            continue
        seen += 1
        time.sleep(after_s)
        queue.send(_verdict(number, message[24:28], 5))
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
