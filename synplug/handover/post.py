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
from synplug.handover.tools import REFUSED

_SO_MARK = getattr(socket, "SO_MARK", 36)
_UNIX = re.compile(r"unix:(?P<socket>/[^:]+):(?P<path>/\S*)")
_HTTP = re.compile(r"http://(?P<host>\[[^]]+\]|[^:/]+):(?P<port>\d{1,5})(?P<path>/\S*)")
_ANSWER_BYTES = 4096
_CONNECT_S = 1.0  # SYNs are held meanwhile
_NO_ANSWER = 2
_PORTS = range(1, 1 << 16)


def check_post_url(url: str) -> str:
    """The URL, if it is one.

    :raises UsageError: it is none.
    """
    plain = re.sub(r"\{(generation|pid)\}", "1", url)  # these are filled in later
    match = _HTTP.fullmatch(plain)
    with suppress(ValueError):
        if _UNIX.fullmatch(plain):
            return url
        if match and int(match["port"]) in _PORTS and ipaddress.ip_address(_host(match)):
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
        except (OSError, OverflowError) as error:
            raise StopError(f"--stop-post {url}: {error}") from error

    def fileno(self) -> int:
        """Readable when there is something new."""
        return self._socket.fileno()

    def poll(self) -> int | None:
        """0 for an answer of 2xx, REFUSED for any other, 2 without one; None while it may come."""
        while self._status is None:
            try:
                data = self._socket.recv(_ANSWER_BYTES)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            self._answer += data
            if not data or b"\r\n\r\n" in self._answer:
                code = self._code()
                self._status = _NO_ANSWER if not code else 0 if 200 <= code < 300 else REFUSED
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
        return _connected(socket.socket(socket.AF_UNIX), unix["socket"]), "localhost", unix["path"]
    match = _HTTP.fullmatch(url)
    assert match is not None, "checked before"
    host = _host(match)
    end = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    end.setsockopt(socket.SOL_SOCKET, _SO_MARK, mark)
    return _connected(end, (host, int(match["port"]))), match["host"], match["path"]


def _connected(end: socket.socket, target: str | tuple[str, int]) -> socket.socket:
    try:
        end.settimeout(_CONNECT_S)
        end.connect(target)
    except BaseException:
        end.close()
        raise
    return end


def _host(match: re.Match[str]) -> str:
    return match["host"].strip("[]")
