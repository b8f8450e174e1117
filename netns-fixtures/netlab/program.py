"""Start a program in a namespace and wait, by observation, until it is ready."""

from __future__ import annotations

import ipaddress
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from signal import SIGTERM, Signals

from netlab.errors import CommandError, NotReadyError
from netlab.topology import Namespace

Endpoint = tuple[str, int]

_POLL_S = 0.005
_TAIL_BYTES = 2000
_LISTEN = "0A"  # include/net/tcp_states.h: TCP_LISTEN


def wait_until(predicate: Callable[[], bool], deadline_s: float, what: str) -> None:
    """Ask `predicate` every 5 ms until it is true.

    Raises:
        NotReadyError: it was not within `deadline_s` (monotonic); the message names `what`.

    """
    deadline = time.monotonic() + deadline_s
    while not predicate():
        if time.monotonic() >= deadline:
            raise NotReadyError(f"{what}: not within {deadline_s:g} s")
        time.sleep(_POLL_S)


def listening_endpoints(pid: int) -> frozenset[Endpoint]:
    """Every TCP listener in the network namespace of `pid`; empty when it is gone.

    Source: /proc/PID/net/tcp and tcp6 (proc(5)), which list the listeners first.
    """
    return frozenset(
        (*_listeners(Path(f"/proc/{pid}/net/tcp")), *_listeners(Path(f"/proc/{pid}/net/tcp6")))
    )


def _listeners(table: Path) -> Iterator[Endpoint]:
    try:
        with table.open(encoding="ascii") as lines:
            next(lines, None)
            for line in lines:
                _, local, _, state, *_ = line.split()
                if state != _LISTEN:
                    return
                address, _, port = local.partition(":")
                yield _address(address), int(port, 16)
    except OSError:
        return


def _address(text: str) -> str:
    """Parse an address of /proc/net/tcp: 32-bit words in hexadecimal, host byte order."""
    words = [int(text[i : i + 8], 16) for i in range(0, len(text), 8)]
    return str(ipaddress.ip_address(struct.pack(f"={len(words)}I", *words)))


def tail(path: Path) -> str:
    """Return the last 2,000 bytes of a file; empty if there is none."""
    try:
        return path.read_bytes()[-_TAIL_BYTES:].decode(errors="replace")
    except OSError:
        return ""


class Program:
    """A program that runs in a namespace while the context is open.

    It is ready when `ready` returns true and listeners exist on all of `listens_on`.
    Its output goes to `output_path`, of its own unless given.
    """

    def __init__(
        self,
        namespace: Namespace,
        argv: Sequence[str],
        *,
        ready: Callable[[], bool] | None = None,
        listens_on: Iterable[Endpoint] = (),
        deadline_s: float = 10.0,
        output_path: Path | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.namespace = namespace
        self.argv = list(argv)
        self._ready = ready
        self._endpoints = frozenset(listens_on)
        self._deadline_s = deadline_s
        self._own_directory: tempfile.TemporaryDirectory[str] | None = None
        self._output_path = output_path
        self._env = env
        self._cwd = cwd
        self._child: subprocess.Popen[str] | None = None

    def __enter__(self) -> Program:
        with self.output_path.open("w", encoding="utf-8") as output:
            self._child = self.namespace.popen(
                self.argv, stdout=output, stderr=subprocess.STDOUT, env=self._env, cwd=self._cwd
            )
        try:
            self._wait_for_readiness()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        if self._own_directory is not None:
            self._own_directory.cleanup()
            self._own_directory = None

    @property
    def child(self) -> subprocess.Popen[str]:
        """The process, which must have been started."""
        if self._child is None:
            raise NotReadyError(f"{self.argv[0]} was not started")
        return self._child

    @property
    def pid(self) -> int:
        """Its process id (nsenter execs, so it is the program's own)."""
        return self.child.pid

    @property
    def returncode(self) -> int | None:
        """Its exit status; None while it runs."""
        return self.child.poll()

    @property
    def output_path(self) -> Path:
        """The file that its stdout and stderr go to."""
        if self._output_path is None:
            self._own_directory = tempfile.TemporaryDirectory(prefix="netlab-")
            self._output_path = Path(self._own_directory.name, "output")
        return self._output_path

    @property
    def output(self) -> str:
        """All that it has written so far."""
        return self.output_path.read_text(encoding="utf-8", errors="replace")

    def send_signal(self, number: Signals) -> None:
        """Send it a signal."""
        self.child.send_signal(number)

    def wait(self, timeout_s: float = 10.0) -> int:
        """Its exit status, once it has ended by itself.

        Raises:
            NotReadyError: it still runs after `timeout_s`.

        """
        try:
            return self.child.wait(timeout_s)
        except subprocess.TimeoutExpired as exc:
            raise NotReadyError(
                f"{self.argv[0]} still runs after {timeout_s:g} s\n{tail(self.output_path)}"
            ) from exc

    def end(self, number: Signals = SIGTERM, deadline_s: float = 5.0) -> int:
        """End it with a signal, after `deadline_s` with SIGKILL; its exit status."""
        if self.child.poll() is None:
            self.child.send_signal(number)
        try:
            return self.child.wait(deadline_s)
        except subprocess.TimeoutExpired:
            self.child.kill()
            return self.child.wait()

    def _wait_for_readiness(self) -> None:
        try:
            wait_until(self._is_ready, self._deadline_s, f"{self.argv[0]} is ready")
        except NotReadyError as exc:
            raise NotReadyError(f"{exc}\n{tail(self.output_path)}") from exc

    def _is_ready(self) -> bool:
        exited = self.returncode
        if exited is not None and (self._endpoints or self._ready):
            raise CommandError(self.argv, exited, tail(self.output_path))
        if not self._endpoints <= listening_endpoints(self.pid):
            return False
        return self._ready is None or self._ready()
