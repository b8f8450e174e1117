"""Readiness probes: a URL, a command. They run beside the sequence, in a thread of their own.

The URL is asked over sockets that carry the probe mark, so the hold lets them pass. A command's
sockets cannot be marked from outside: :mod:`synplug.handover.own_connections` finds them.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import urllib.parse
from collections.abc import Callable, Collection

from tenacity import Retrying, retry_if_exception_type, sleep_using_event, wait_exponential
from tenacity.stop import stop_when_event_set

from synplug.errors import CommandError, UsageError
from synplug.handover.plan import ReadyPlan
from synplug.handover.process import SpawnedCommand

_SO_MARK = getattr(socket, "SO_MARK", 36)
_ATTEMPT_S = 2.0
_STOP_S = 0.5
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.005, 0.25


class _NotReadyError(Exception):
    """An attempt that failed; its text says why."""


class ProbeRunner:
    """Tries until everything that was asked for has passed once, or it is stopped.

    :param mark: the netfilter mark of the probe's own sockets (SO_MARK, socket(7)).
    """

    def __init__(self, plan: ReadyPlan, mark: int) -> None:
        self._checks: list[Callable[[], None]] = []
        if plan.http:
            url = parse_url(plan.http)
            self._checks.append(lambda: _ask(url, mark))
        if plan.command:
            self._argv = plan.command
            self._checks.append(self._run_command)
        self._stopped = threading.Event()
        self._passed = threading.Event()
        self._command: SpawnedCommand | None = None
        self._thread = threading.Thread(target=self._try, name="synplug-ready", daemon=True)
        self.complaint = ""

    @property
    def passed(self) -> bool:
        """Whether every check has passed."""
        return self._passed.is_set()

    @property
    def pids(self) -> Collection[int]:
        """The pid of the command that is being tried, if one is."""
        command = self._command
        return () if command is None else (command.pid,)

    def start(self) -> None:
        """Begin to try."""
        self._thread.start()

    def stop(self) -> None:
        """Try no more; a command that runs is ended.

        A name that does not resolve, or an answer that comes in drops, is not waited for: its
        thread ends with its attempt, or with the process.
        """
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_S)

    def _try(self) -> None:
        retrying = Retrying(
            retry=retry_if_exception_type(_NotReadyError),
            wait=wait_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S),
            stop=stop_when_event_set(self._stopped),
            sleep=sleep_using_event(self._stopped),
            retry_error_callback=lambda _: False,
        )
        if all(retrying(self._attempt, check) for check in self._checks):
            self._passed.set()

    def _attempt(self, check: Callable[[], None]) -> bool:
        try:
            check()
        except _NotReadyError as error:
            self.complaint = str(error)
            raise
        return True

    def _run_command(self) -> None:
        try:
            command = SpawnedCommand(self._argv, captured=True)
        except CommandError as error:
            raise _NotReadyError(f"--ready-cmd: {error}") from error
        self._command = command
        while (status := command.wait(0.05)) is None:
            if self._stopped.is_set():
                command.send(9)
        self._command = None
        words = command.output()
        if status:
            tail = f": {words.splitlines()[-1]}" if words else ""
            raise _NotReadyError(f"--ready-cmd ended with status {status}{tail}")


def parse_url(text: str) -> urllib.parse.SplitResult:
    """A URL to probe.

    :raises UsageError: it is none.
    """
    try:
        url = urllib.parse.urlsplit(text)
        valid = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
        valid = valid and text.isascii() and text.isprintable() and " " not in text
        (url.hostname or "").encode("idna")
    except ValueError:
        valid = False
    if not valid:
        raise UsageError(
            f"--ready-http {text!r} is not a URL", remedy="write http://HOST:PORT/PATH, in ASCII"
        )
    return url


def _ask(url: urllib.parse.SplitResult, mark: int) -> None:
    """GET it once; 2xx and 3xx pass."""

    def connect(
        address: tuple[str, int], timeout: float | None = None, _source: object = None
    ) -> socket.socket:
        """Connect like socket.create_connection, on a marked socket."""
        refused: OSError = OSError("no address")
        for family, kind, protocol, _, target in socket.getaddrinfo(
            *address, type=socket.SOCK_STREAM
        ):
            marked = socket.socket(family, kind, protocol)
            try:
                marked.setsockopt(socket.SOL_SOCKET, _SO_MARK, mark)
                marked.settimeout(timeout)
                marked.connect(target)
            except OSError as error:
                marked.close()
                refused = error
                continue
            return marked
        raise refused

    host = url.hostname or ""
    if url.scheme == "https":
        # It is this machine's own service, often with a certificate for its public name.
        context = ssl._create_unverified_context()  # noqa: S323, SLF001
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, url.port, timeout=_ATTEMPT_S, context=context
        )
    else:
        connection = http.client.HTTPConnection(host, url.port, timeout=_ATTEMPT_S)
    connection._create_connection = connect  # type: ignore[attr-defined]  # noqa: SLF001
    path = urllib.parse.urlunsplit(("", "", url.path or "/", url.query, ""))
    try:
        connection.request("GET", path, headers={"User-Agent": "synplug", "Connection": "close"})
        status = connection.getresponse().status
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _NotReadyError(f"{url.geturl()}: {error}") from error
    finally:
        connection.close()
    if not 200 <= status < 400:
        raise _NotReadyError(f"{url.geturl()} answered {status}")
