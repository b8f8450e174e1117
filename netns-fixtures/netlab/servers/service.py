"""What the services have in common: a directory, a pidfile, and scripts to operate them."""

from __future__ import annotations

import abc
import ipaddress
import os
import shlex
import string
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from signal import SIGTERM, Signals
from typing import TypeVar

from netlab.errors import CommandError, NotReadyError
from netlab.load import Protocol
from netlab.processes import network_namespace_inode
from netlab.program import Endpoint, listening_endpoints, tail, wait_until
from netlab.topology import Namespace

_TEMPLATES = Path(__file__).parents[2] / "servers"
_ServiceT = TypeVar("_ServiceT", bound="Service")
WILDCARDS = ("0.0.0.0", "::")


class Service(abc.ABC):
    """A service in a namespace; the context starts it, stops it and removes its files.

    Its `*_argv` are single commands for use under test. They must run inside the
    service's namespace, which is up to the caller; `start` and `stop` see to it themselves.
    """

    protocol: Protocol = "http"
    log_name = "log"
    default_port = 8080

    def __init__(
        self,
        namespace: Namespace,
        *,
        ports: Sequence[int] = (),
        addresses: Sequence[str] = WILDCARDS,
        stop_signal: Signals = SIGTERM,
    ) -> None:
        self.namespace = namespace
        self.ports = tuple(ports) or (self.default_port,)
        self.addresses = tuple(addresses)
        self.stop_signal = stop_signal
        prefix = f"netlab-{type(self).__name__.lower()}-"
        self._temporary = tempfile.TemporaryDirectory(prefix=prefix)
        self.directory = Path(self._temporary.name)
        self.pidfile = self.directory / "pid"
        self.log = self.directory / self.log_name
        self._write_files()

    @abc.abstractmethod
    def _write_configuration(self) -> None:
        """Write what the service reads."""

    @property
    @abc.abstractmethod
    def _start_commands(self) -> Sequence[str]:
        """Shell commands that leave the service running in the background."""

    @property
    def start_argv(self) -> list[str]:
        """Start it; ends when the service's own start command did."""
        return [str(self.directory / "start")]

    @property
    def stop_argv(self) -> list[str]:
        """Stop it with `stop_signal`; ends when its processes are gone."""
        return [str(self.directory / "stop")]

    @property
    def restart_argv(self) -> list[str]:
        """Stop, then start: a cold restart in one command."""
        return [str(self.directory / "restart")]

    @property
    def endpoints(self) -> frozenset[Endpoint]:
        """Its listening sockets, as /proc/net/tcp shows them."""
        return frozenset(
            (address, port) for address in self.listen_addresses for port in self.ports
        )

    @property
    def listen_addresses(self) -> tuple[str, ...]:
        """The addresses that it binds, one socket each."""
        return self.addresses

    @property
    def pids(self) -> tuple[int, ...]:
        """What its pidfile says; empty without one."""
        try:
            return tuple(int(word) for word in self.pidfile.read_text(encoding="ascii").split())
        except (FileNotFoundError, ValueError):
            return ()

    @property
    def running(self) -> bool:
        """Its process lives in the namespace and listens on every endpoint."""
        return any(
            network_namespace_inode(pid) == self.namespace.inode
            and self.endpoints <= listening_endpoints(pid)
            for pid in self.pids
        )

    def targets(self, addresses: Iterable[str]) -> list[Endpoint]:
        """Every port at each of the server's `addresses`, for `Load`."""
        return [(address, port) for address in addresses for port in self.ports]

    def start(self) -> None:
        """Start it unless it runs, and wait until it listens.

        Raises:
            CommandError: the start command failed.
            NotReadyError: it does not listen within 15 s; with the end of its log.

        """
        if self.running:
            return
        try:
            self.namespace.run(self.start_argv, timeout_s=15)
        except CommandError as exc:
            raise CommandError(exc.argv, exc.status, exc.output + tail(self.log)) from exc
        self.wait_until_listening()

    def wait_until_listening(self, deadline_s: float = 15.0) -> None:
        """Wait until it listens on every endpoint.

        Raises:
            NotReadyError: not within `deadline_s`; with the end of its log.

        """
        what = f"{type(self).__name__} listens on {sorted(self.endpoints)}"
        try:
            wait_until(lambda: self.running, deadline_s, what)
        except NotReadyError as exc:
            raise NotReadyError(f"{exc}\n{tail(self.log)}") from exc

    def stop(self) -> None:
        """Stop it, if it runs, and wait until its processes are gone."""
        self.namespace.run(self.stop_argv, timeout_s=30)

    def close(self) -> None:
        """Remove its files."""
        self._temporary.cleanup()

    def __enter__(self: _ServiceT) -> _ServiceT:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            self.close()

    def _write_files(self) -> None:
        self._write_configuration()
        pidfile = shlex.quote(str(self.pidfile))
        start = "\n".join(self._start_commands)
        self._write_script("start", "start.sh", pidfile=pidfile, start=start)
        signal = self.stop_signal.name.removeprefix("SIG")
        self._write_script("stop", "stop.sh", pidfile=pidfile, signal=signal)
        self._write_script(
            "restart",
            "restart.sh",
            stop=shlex.join(self.stop_argv),
            start=shlex.join(self.start_argv),
        )

    def _write_script(self, name: str, template: str, **values: object) -> None:
        path = self._write(name, template, **values)
        path.chmod(0o755)

    @staticmethod
    def template(name: str) -> Path:
        """Return the path of a file of netns-fixtures/servers."""
        return _TEMPLATES / name

    @staticmethod
    def _filled(template: Path, **values: object) -> str:
        return string.Template(template.read_text(encoding="utf-8")).substitute(values)

    def _write(self, name: str, template: str, **values: object) -> Path:
        """Fill in a template; published by rename, so that no reader sees half of it."""
        path = self.directory / name
        fresh = path.with_name(f"{name}.new-{os.getpid()}")
        fresh.write_text(self._filled(self.template(template), **values), encoding="utf-8")
        fresh.replace(path)
        return path


def bracketed(address: str) -> str:
    """Write an address as it stands before `:PORT`."""
    return f"[{address}]" if ipaddress.ip_address(address).version == 6 else address
