"""A foreign user of a netfilter queue: ``python queue_user.py NUMBER``.

Prints ``bound``; holds every packet until a line comes on standard input, then accepts all,
prints their number, and ends when standard input does.
"""

from __future__ import annotations

import socket
import struct
import sys

_NETLINK_NETFILTER = 12
_QUEUE = 3 << 8


def _config(number: int, attribute: int, data: bytes) -> bytes:
    """A configuration message (linux/netfilter/nfnetlink_queue.h), acknowledged."""
    body = struct.pack("!BBH", 0, 0, number)
    body += struct.pack("=HH", 4 + len(data), attribute) + data + bytes(-len(data) % 4)
    return struct.pack("=IHHII", 16 + len(body), _QUEUE | 2, 5, 1, 0) + body


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
    sys.stdin.readline()
    queue.setblocking(False)
    seen = 0
    while True:
        try:
            message = queue.recv(65536)
        except BlockingIOError:
            break
        packet = message[24:28]  # behind both headers and the first attribute's
        body = struct.pack("!BBH", 0, 0, number) + struct.pack("=HH", 12, 2)
        body += struct.pack("!I", 1) + packet
        queue.send(struct.pack("=IHHII", 16 + len(body), _QUEUE | 1, 1, 0, 0) + body)
        seen += 1
    print(seen, flush=True)
    sys.stdin.read()


main()
