"""POST to an admin interface: how Envoy is told to close its listeners.

Without a process of its own, which would cost 20 to 80 ms of the hold: curl(1) takes that long to
start beside a service under load.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from contextlib import suppress

from synplug.errors import StopError, UsageError

_SO_MARK = getattr(socket, "SO_MARK", 36)
_UNIX = re.compile(r"unix:(?P<socket>/[^:]+):(?P<path>/\S*)")
_HTTP = re.compile(r"http://(?P<host>\[[^]]+\]|[^:/]+):(?P<port>\d{1,5})(?P<path>/\S*)")
_ANSWER_BYTES = 4096


def check_post_url(url: str) -> str:
    """The URL, if it is one.

    :raises UsageError: it is none.
    """
    match = _HTTP.fullmatch(url)
    with suppress(ValueError):
        if _UNIX.fullmatch(url) or (match and ipaddress.ip_address(match["host"].strip("[]"))):
            return url
    raise UsageError(
        f"{url!r} is no URL to post to",
        remedy="write unix:/SOCKET:/PATH or http://ADDRESS:PORT/PATH",
    )


class Post:
    """A request under way, as a command that was started.

    :param url: as :func:`check_post_url` wants it. :param mark: of its packets (SO_MARK).
    :raises StopError: nobody listens there.
    """

    pid = 0

    def __init__(self, url: str, mark: int) -> None:
        self._status: int | None = None
        self._answer = b""
        try:
            self._socket, host, path = _connect(url, mark)
            self._socket.sendall(
                f"POST {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: synplug\r\n"
                "Content-Length: 0\r\nConnection: close\r\n\r\n".encode()
            )
            self._socket.setblocking(False)
        except OSError as error:
            raise StopError(f"--stop-post {url}: {error.strerror or error}") from error

    def fileno(self) -> int:
        """Readable when there is something new."""
        return self._socket.fileno()

    def poll(self) -> int | None:
        """0 for an answer of 2xx, 1 for any other end, None while there is none."""
        while self._status is None:
            try:
                data = self._socket.recv(_ANSWER_BYTES)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            self._answer += data
            if not data or b"\r\n\r\n" in self._answer:
                self._status = 0 if 200 <= self._code() < 300 else 1
                self._socket.close()
        return self._status

    def send(self, number: int) -> None:
        """Whatever the signal: wait no longer."""
        self._socket.close()
        self._status = 128 + number if self._status is None else self._status

    def output(self) -> str:
        """What was answered, on one line."""
        return self._answer.split(b"\r\n", 1)[0].decode(errors="replace") or "no answer"

    def _code(self) -> int:
        match = re.match(rb"HTTP/1\.\d (\d{3})", self._answer)
        return int(match[1]) if match else 0


def _connect(url: str, mark: int) -> tuple[socket.socket, str, str]:
    unix = _UNIX.fullmatch(url)
    if unix:
        end = socket.socket(socket.AF_UNIX)
        end.connect(unix["socket"])
        return end, "localhost", unix["path"]
    match = _HTTP.fullmatch(url)
    assert match is not None, "checked before"
    host = match["host"].strip("[]")
    end = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    end.setsockopt(socket.SOL_SOCKET, _SO_MARK, mark)
    end.settimeout(1.0)
    end.connect((host, int(match["port"])))
    return end, match["host"], match["path"]
