"""A small server whose shortcomings can be chosen: ``python simple_server.py PORT [options]``.

Answers every request with 200, on IPv4 and IPv6 unless --address names one. With --pidfile it
writes its pid once it listens; --delay waits before it binds; --backlog is listen(2)'s; --think
is how long a request takes, each in a thread; --lazy is a rest after each accept(2); --rate is how
many connections it accepts in a second at the most; --reuseport lets others bind, too. SIGTERM ends
it at once, whatever is in flight.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import socket
import threading
import time

_CATCH_UP_S = 0.02
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--address", default="::")
    parser.add_argument("--pidfile")
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--backlog", type=int, default=1024)
    parser.add_argument("--think", type=float, default=0.0)
    parser.add_argument("--lazy", type=float, default=0.0)
    parser.add_argument("--rate", type=float, default=float("inf"))
    parser.add_argument("--reuseport", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    select.select([], [], [], options.delay)
    listener = socket.socket(socket.AF_INET6 if ":" in options.address else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, options.reuseport)
    if ":" in options.address:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind((options.address, options.port))
    listener.listen(options.backlog)
    if options.pidfile:
        draft = options.pidfile + ".new"
        with open(draft, "w", encoding="ascii") as file:
            file.write(f"{os.getpid()}\n")
        os.rename(draft, options.pidfile)
    next_s = time.monotonic()
    while True:
        next_s = max(next_s, time.monotonic() - _CATCH_UP_S) + 1 / options.rate
        wait_s = next_s - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)
        connection, _ = listener.accept()
        if options.think:
            threading.Thread(target=answer, args=(connection, options.think)).start()
        else:
            answer(connection, 0.0)
        select.select([], [], [], options.lazy)


def answer(connection: socket.socket, think_s: float) -> None:
    """Read a request, think, answer it."""
    with connection:
        connection.recv(4096)
        select.select([], [], [], think_s)
        connection.sendall(ANSWER)


main()
