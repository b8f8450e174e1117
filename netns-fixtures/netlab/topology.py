"""Network namespaces and the wires between them, as context managers."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from netlab.errors import CommandError, LabError
from netlab.isolation import require_isolation
from netlab.processes import end_processes, network_namespace_inode, pids_in

_counter = itertools.count(1)

# Ports of the services in the lab: never taken as the local port of a connection.
_RESERVED_PORTS = "6000-9999"


class Namespace:
    """A named network namespace with `lo` up.

    On exit every process in it is ended by pid (SIGTERM, after 2 s SIGKILL), daemons
    included, and it is deleted.
    """

    def __init__(self, label: str = "") -> None:
        self.name = "-".join(filter(None, ("lab", str(os.getpid()), str(next(_counter)), label)))
        self.path = Path("/run/netns", self.name)
        self.inode = 0
        self._children: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Namespace:
        require_isolation()
        _run(["ip", "netns", "add", self.name])
        try:
            self.inode = self.path.stat().st_ino
            self.run(["ip", "link", "set", "lo", "up"])
        except BaseException:
            self._delete()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._delete()

    def command(self, argv: Sequence[str]) -> list[str]:
        """`argv`, prefixed so that it runs in this namespace. nsenter(1) execs: same pid."""
        return ["nsenter", f"--net={self.path}", "--", *argv]

    def run(
        self,
        argv: Sequence[str],
        check: bool = True,
        timeout_s: float = 10.0,
        *,
        input_text: str = "",
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run `argv` here and collect its output.

        Its output goes through files: a daemon that it leaves behind blocks nothing.

        Raises:
            CommandError: it failed and `check` is true, or it took longer than `timeout_s`.

        """
        return _run(self.command(argv), check, timeout_s, input_text=input_text, env=env, cwd=cwd)

    def popen(
        self,
        argv: Sequence[str],
        *,
        stdin: int | IO[str] = subprocess.DEVNULL,
        stdout: int | IO[str] | None = None,
        stderr: int | IO[str] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        pass_fds: Sequence[int] = (),
        start_new_session: bool = False,
    ) -> subprocess.Popen[str]:
        """Start `argv` here; whatever is left of it is ended with the namespace."""
        child = subprocess.Popen(
            self.command(argv),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=env,
            cwd=cwd,
            pass_fds=pass_fds,
            start_new_session=start_new_session,
            text=True,
        )
        self._children.append(child)
        return child

    def set_sysctl(self, name: str, value: str | int) -> None:
        """Set one sysctl of this namespace, as in `set_sysctl("net.ipv4.tcp_tw_reuse", 1)`."""
        self.run(["sysctl", "-q", "-w", f"{name}={value}"])

    def pids(self) -> list[int]:
        """List the processes that live here now."""
        return pids_in(self.inode)

    def _delete(self) -> None:
        try:
            self.end_everything()
        finally:
            _run(["ip", "netns", "del", self.name])

    def end_everything(self) -> None:
        """End all that runs here: repeatedly, since a dying daemon may fork once more."""
        for _ in range(5):
            pids = self.pids() if self.inode else []
            if not pids:
                break
            end_processes(pids, lambda pid: network_namespace_inode(pid) == self.inode)
        else:
            raise LabError(f"processes keep appearing in {self.name}: {self.pids()}")
        children = {child.pid for child in self._children if child.poll() is None}
        end_processes(children, lambda pid: pid in children)
        for child in self._children:
            child.wait()


class VethPair:
    """Two ends of a wire, each in its namespace and up; gone on exit."""

    def __init__(
        self,
        first: Namespace,
        second: Namespace,
        *,
        first_interface: str = "veth0",
        second_interface: str = "veth0",
    ) -> None:
        self.first = first
        self.second = second
        self.first_interface = first_interface
        self.second_interface = second_interface

    def __enter__(self) -> VethPair:
        first = [self.first_interface, "netns", self.first.name]
        second = [self.second_interface, "netns", self.second.name]
        _run(["ip", "link", "add", *first, "type", "veth", "peer", "name", *second])
        try:
            self.first.run(["ip", "link", "set", self.first_interface, "up"])
            self.second.run(["ip", "link", "set", self.second_interface, "up"])
        except BaseException:
            self._delete()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._delete()

    def _delete(self) -> None:
        # A test may have deleted the device itself, so its absence is no error.
        self.first.run(["ip", "link", "del", self.first_interface], check=False)


class ClientServer:
    """A client and a server namespace, joined by a veth pair, IPv4 and IPv6.

    `extra_client_addresses` (at most 200) spreads load over more source addresses; all
    of them are in `client_addresses`, ready to be given to `Load(sources=…)`.
    """

    server_ipv4 = "10.231.0.2"
    server_ipv6 = "fd23:1::2"
    client_ipv4 = "10.231.0.1"
    client_ipv6 = "fd23:1::1"

    def __init__(self, extra_client_addresses: int = 0) -> None:
        if not 0 <= extra_client_addresses <= 200:
            raise ValueError("extra_client_addresses must be between 0 and 200")
        extra = range(1, extra_client_addresses + 1)
        self.client = Namespace("client")
        self.server = Namespace("server")
        self.interface = "veth0"
        self.client_addresses: tuple[str, ...] = (
            self.client_ipv4,
            self.client_ipv6,
            *(f"10.231.0.{10 + number}" for number in extra),
            *(f"fd23:1::{0x100 + number:x}" for number in extra),
        )
        self._stack = contextlib.ExitStack()

    @property
    def server_addresses(self) -> tuple[str, str]:
        """The server's IPv4 and its IPv6 address."""
        return (self.server_ipv4, self.server_ipv6)

    def __enter__(self) -> ClientServer:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.client)
            stack.enter_context(self.server)
            for namespace in (self.client, self.server):
                _prepare_for_load(namespace)
            stack.enter_context(VethPair(self.client, self.server))
            for namespace in (self.client, self.server):
                for interface in (self.interface, "lo"):
                    _steer_by_flow(namespace, interface)
            _assign(self.client, self.interface, self.client_addresses)
            _assign(self.server, self.interface, self.server_addresses)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _prepare_for_load(namespace: Namespace) -> None:
    """Many short connections: ports for all of them, at once usable again (ip-sysctl.rst)."""
    namespace.set_sysctl("net.ipv4.ip_local_port_range", "1024 65000")
    namespace.set_sysctl("net.ipv4.ip_local_reserved_ports", _RESERVED_PORTS)
    namespace.set_sysctl("net.ipv4.tcp_tw_reuse", 1)


def _steer_by_flow(namespace: Namespace, interface: str) -> None:
    """Have one processor see all packets of a connection, as with a network card (scaling.rst).

    Otherwise the end of a handshake and the request behind it arrive on two at once here, since a
    virtual cable delivers on the sender's; a kernel that replaces a request socket in two steps
    (inet_ehash_nolisten) may then find neither, and answer with RST: one in some 50,000.
    Without root of the machine it stays as it is (net-sysfs.c, store_rps_map).
    """
    mask = f"{(1 << (os.cpu_count() or 1)) - 1:x}"
    path = f"/sys/class/net/{interface}/queues/rx-0/rps_cpus"
    script = f"mount -t sysfs sysfs /sys && echo {mask} > {path}"
    namespace.run(["unshare", "--mount", "sh", "-c", script], check=False)


def _assign(namespace: Namespace, interface: str, addresses: Sequence[str]) -> None:
    lines = [
        f"address add {address}/64 dev {interface} nodad"
        if ":" in address
        else f"address add {address}/24 dev {interface}"
        for address in addresses
    ]
    namespace.run(["ip", "-batch", "-"], input_text="\n".join(lines) + "\n")


def _run(
    argv: Sequence[str],
    check: bool = True,
    timeout_s: float = 10.0,
    *,
    input_text: str = "",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stdin,
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stdout,
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stderr,
    ):
        stdin.write(input_text)
        stdin.seek(0)
        status: int | None
        try:
            status = subprocess.run(
                argv,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                timeout=timeout_s,
                env=env,
                cwd=cwd,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            status = None
        stdout.seek(0)
        stderr.seek(0)
        out, err = stdout.read(), stderr.read()
    if status is None or (check and status != 0):
        raise CommandError(argv, status, out + err)
    return subprocess.CompletedProcess(list(argv), status, out, err)
