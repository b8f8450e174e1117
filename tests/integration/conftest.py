"""Labs that must be left as they were found."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from netlab.errors import NotReadyError
from netlab.program import listening_endpoints, tail, wait_until
from netlab.snapshot import NetworkState
from netlab.topology import ClientServer, Namespace

SERVER = Path(__file__).with_name("programs") / "simple_server.py"


@pytest.fixture
def lab() -> Iterator[ClientServer]:
    """A client and a server; afterwards nothing of synplug may be left on the server.

    Where others run beside it, keeper and watcher get a moment to end.
    """
    with ClientServer() as made:
        before = NetworkState.capture(made.server)
        yield made
        give_up_s = time.monotonic() + 5
        while (left := before.difference(NetworkState.capture(made.server))) and (
            time.monotonic() < give_up_s
        ):
            time.sleep(0.05)
        assert not left, f"not as before: {left}"


@dataclass(frozen=True, kw_only=True)
class SimpleService:
    """The small server of :mod:`tests/integration/programs/simple_server.py`, run from a script."""

    namespace: Namespace
    directory: Path
    port: int = 8080

    @property
    def pidfile(self) -> Path:
        """Where its pid stands once it listens."""
        return self.directory / "pid"

    @property
    def pid(self) -> int:
        """That pid."""
        return int(self.pidfile.read_text())

    def start_argv(self, *options: str) -> list[str]:
        """A command that starts it in the background, and returns at once."""
        server = [sys.executable, str(SERVER), str(self.port), "--pidfile", str(self.pidfile)]
        said = shlex.quote(str(self.directory / "said"))
        line = f"setsid {shlex.join([*server, *options])} </dev/null >>{said} 2>&1 &"
        return ["sh", "-c", line]

    def restart_argv(self, *options: str) -> list[str]:
        """A command that ends it, waits for that, and starts it in the background."""
        return ["sh", "-c", f"{self.stop_line()}\n{self.start_argv(*options)[2]}"]

    def stop_line(self) -> str:
        """A shell line that ends it and waits for that; a zombie has closed its sockets."""
        state = f"/proc/{self.pid}/status"
        alive = f"grep -qs '^State:[[:space:]]*[^ZX[:space:]]' {state}"
        return f"kill {self.pid}; while {alive}; do sleep 0.01; done"

    def listens(self) -> bool:
        """Whether it has bound its port."""
        return self.pidfile.exists() and any(
            port == self.port for _, port in listening_endpoints(self.pid)
        )

    def wait(self) -> None:
        """Wait until it listens.

        Raises:
            NotReadyError: it did not within 20 s; the message has what it said.

        """
        try:
            wait_until(self.listens, 20, "the simple server listens")
        except NotReadyError as exc:
            raise NotReadyError(f"{exc}\n{tail(self.directory / 'said')}") from exc

    def targets(self, lab: ClientServer) -> list[tuple[str, int]]:
        """Where the client finds it."""
        return [(address, self.port) for address in lab.server_addresses]


@pytest.fixture
def simple(lab: ClientServer, tmp_path: Path) -> SimpleService:
    """The small server, started in the server's namespace; ended with it."""
    service = SimpleService(namespace=lab.server, directory=tmp_path)
    lab.server.run(service.start_argv())
    service.wait()
    return service


@pytest.fixture
def etc(tmp_path: Path) -> Iterator[Path]:
    """An /etc of our own: the mount namespace is pytest's."""
    copy = tmp_path / "etc"
    shutil.copytree("/etc", copy, symlinks=True, ignore_dangling_symlinks=True, ignore=_unreadable)
    copy.chmod(0o755)
    subprocess.run(["mount", "--bind", copy, "/etc"], check=True)
    try:
        yield Path("/etc")
    finally:
        subprocess.run(["umount", "/etc"], check=True)


def _unreadable(folder: str, names: list[str]) -> list[str]:
    paths = {name: Path(folder, name) for name in names}
    return [
        name
        for name, path in paths.items()
        if name.startswith("synplug") or not (path.is_symlink() or os.access(path, os.R_OK))
    ]
