"""A small service that takes its listeners from start_server(1), or binds them itself.

``fd_service.py --backlog N ADDRESS PORT [ADDRESS PORT …]``: where SERVER_STARTER_PORT is set
(``[::]:8080=4;0.0.0.0:8080=5``, Server::Starter(3pm)), the listeners are those descriptors. SIGTERM
ends it after the request that it is at: what nobody has accepted stays with the listener.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import selectors
import signal
import socket

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


class _EndedError(Exception):
    """SIGTERM came while nobody was being served."""


class Server:
    """Serves one connection after the other."""

    def __init__(self, listeners: list[socket.socket]) -> None:
        self._selector = selectors.DefaultSelector()
        self._serving = False
        self._ends = False
        for listener in listeners:
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ, listener)

    def end(self, *_: object) -> None:
        """End at once, or after the connection that is being served."""
        self._ends = True
        if not self._serving:
            raise _EndedError

    def run(self) -> None:
        """Serve until SIGTERM."""
        signal.signal(signal.SIGTERM, self.end)
        with contextlib.suppress(_EndedError):
            while not self._ends:
                for key, _ in self._selector.select():
                    self._serve(key.data)

    def _serve(self, listener: socket.socket) -> None:
        self._serving = True
        with contextlib.suppress(BlockingIOError):
            connection, _ = listener.accept()
            with connection, contextlib.suppress(ConnectionError):
                connection.setblocking(True)
                connection.recv(4096)
                connection.sendall(ANSWER)
        self._serving = False
        if self._ends:
            raise _EndedError


def _handed_on(text: str) -> list[socket.socket]:
    return [socket.socket(fileno=int(entry.rpartition("=")[2])) for entry in text.split(";")]


def _bound(address: str, port: int, backlog: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family is socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.bind((address, port))
    listener.listen(backlog)
    return listener


def main() -> None:
    """Listen and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--backlog", type=int, required=True)
    parser.add_argument("endpoints", nargs="+", metavar="ADDRESS PORT")
    options = parser.parse_args()
    inherited = os.environ.get("SERVER_STARTER_PORT")
    pairs = zip(options.endpoints[::2], options.endpoints[1::2], strict=True)
    Server(
        _handed_on(inherited)
        if inherited
        else [_bound(address, int(port), options.backlog) for address, port in pairs]
    ).run()


main()
