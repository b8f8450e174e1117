"""A server that behaves in one chosen way: `peer.py BEHAVIOUR PORT`, on IPv4 and IPv6."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Callable

_RESET = struct.pack("ii", 1, 0)  # struct linger: on, 0 s
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def _said(answer: bytes) -> Callable[[socket.socket], None]:
    def say(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(answer)
        connection.close()

    return say


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    connection.close()


def _reset_after_request(connection: socket.socket) -> None:
    connection.recv(4096)
    _reset(connection)


_silent: list[socket.socket] = []

BEHAVIOURS: dict[str, Callable[[socket.socket], None]] = {
    "answer": _said(_ANSWER),
    "answer-until-eof": _said(b"HTTP/1.0 200 OK\r\n\r\nok"),
    "close": _said(b""),
    "close-in-headers": _said(_ANSWER[:20]),
    "close-in-body": _said(_ANSWER[:-1]),
    "unavailable": _said(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"),
    "too-much": _said(_ANSWER + b"!"),
    "reset": _reset,
    "reset-after-request": _reset_after_request,
    "silent": _silent.append,
    "pong": _said(b"+PONG\r\n"),
    "loading": _said(b"-LOADING Redis is loading the dataset in memory\r\n"),
}


def main(behaviour: str, port: str) -> None:
    """Serve one connection after the other; print where each came from."""
    listener = socket.create_server(
        ("::", int(port)), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
    )
    while True:
        connection, address = listener.accept()
        print(address[0], flush=True)
        BEHAVIOURS[behaviour](connection)


if __name__ == "__main__":
    main(*sys.argv[1:])
