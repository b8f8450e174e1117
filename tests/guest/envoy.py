#!/usr/bin/python3
"""Stands in for Envoy where it does not run: its options, its admin interface, "ok" to all others.

On the kernel of a guest its allocator, tcmalloc, does not get the addresses that it asks for.
"""

from __future__ import annotations

import re
import selectors
import socket
import sys
from pathlib import Path

_ADMIN = re.compile(r"path: ([^}]*)}")
_LISTENER = re.compile(r'address: "(.*)", port_value: (\d+)')
_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
_DRAIN = b"POST /drain_listeners"


def listening(address: str, port: int) -> socket.socket:
    """A listener beside those of other generations."""
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if made.family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    made.bind((address, port))
    made.listen(128)
    return made


def request_of(client: socket.socket) -> bytes:
    """What it asks for, to the end of its head."""
    client.settimeout(5)
    said = b""
    while b"\r\n\r\n" not in said:
        if not (more := client.recv(4096)):
            break
        said += more
    return said


def main() -> None:
    """Serve until a signal."""
    options = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=False))
    endpoints = _LISTENER.findall(Path(options["-c"]).read_text(encoding="utf-8"))
    if options.get("--mode") == "validate":
        sys.exit(not endpoints)
    (place,) = _ADMIN.findall(options["--config-yaml"])
    admin = socket.socket(socket.AF_UNIX)
    admin.bind(place)
    admin.listen()
    listeners = [listening(address, int(port)) for address, port in endpoints]
    selector = selectors.DefaultSelector()
    for one in (admin, *listeners):
        selector.register(one, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            assert isinstance(key.fileobj, socket.socket)
            client, _ = key.fileobj.accept()
            with client:
                said = request_of(client)
                client.sendall(_OK)
            if key.fileobj is admin and said.startswith(_DRAIN):
                for one in listeners:
                    selector.unregister(one)
                    one.close()
                break


if __name__ == "__main__":
    main()
