"""Envoy, of two versions, which answers by itself. Generations share the port by SO_REUSEPORT."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from signal import SIGTERM, Signals

from netlab.errors import LabError
from netlab.servers.service import WILDCARDS, Service
from netlab.topology import Namespace

#: As netns-fixtures/setup-envoy.sh installs them.
VERSIONS = ("1.36.4", "1.40.0")
#: The parent stops accepting when the next epoch serves, and ends so many seconds later.
_HOT_RESTART = ["--drain-time-s", "1", "--parent-shutdown-time-s", "2"]


def envoy_binary(version: str) -> Path:
    """Return the program of one of `VERSIONS`.

    Raises:
        LabError: it is not installed.

    """
    cache = os.environ.get("XDG_CACHE_HOME") or f"{os.environ.get('HOME', '')}/.cache"
    binary = Path(cache, "netlab", "envoy", version, "envoy")
    if not os.access(binary, os.X_OK):
        raise LabError(f"no {binary}: run netns-fixtures/setup-envoy.sh")
    return binary


class Envoy(Service):
    """Envoy with its admin interface on a unix socket for each generation.

    `generation_argv` starts one generation in the foreground; `drain_argv` closes its
    listeners (POST /drain_listeners) and leaves it running. SIGTERM ends it at once. With
    `hot_restart` the reload is Envoy's own, to the next epoch, of the same version.
    """

    def __init__(
        self,
        namespace: Namespace,
        *,
        ports: Sequence[int] = (),
        addresses: Sequence[str] = WILDCARDS,
        stop_signal: Signals = SIGTERM,
        backlog: int = 1024,
        version: str = VERSIONS[0],
        concurrency: int = 2,
        hot_restart: bool = False,
    ) -> None:
        self.backlog = backlog
        self.version = version
        self.concurrency = concurrency
        self.hot_restart = hot_restart
        super().__init__(namespace, ports=ports, addresses=addresses, stop_signal=stop_signal)

    def admin_socket(self, generation: int) -> Path:
        """Where a generation's admin interface listens."""
        return self.directory / f"admin-{generation}.sock"

    def generation_argv(self, generation: int, version: str = "") -> list[str]:
        """Start a generation in the foreground; each in turn is of another version."""
        version = version or VERSIONS[generation % 2]
        configuration = self.directory / f"envoy-{generation}.yaml"
        self._write_generation(configuration.name, generation)
        return self._argv(version, configuration)

    def drain_argv(self, generation: int) -> list[str]:
        """Close a generation's listeners; what is established goes on."""
        socket = str(self.admin_socket(generation))
        return ["curl", "-sf", "-X", "POST", "--unix-socket", socket, "http://x/drain_listeners"]

    @property
    def reload_argv(self) -> list[str]:
        """Start the next epoch, which takes the listeners over; needs `hot_restart`."""
        return [str(self.directory / "hot-restart")]

    def close(self) -> None:
        """Remove its files; of a hot restart one is in /dev/shm."""
        if self._base_id.exists():
            name = f"envoy_shared_memory_{10 * int(self._base_id.read_text())}"
            Path("/dev/shm", name).unlink(missing_ok=True)
        super().close()

    @property
    def _base_id(self) -> Path:
        return self.directory / "base-id"

    @property
    def _epoch(self) -> Path:
        return self.directory / "epoch"

    def _argv(self, version: str, configuration: Path) -> list[str]:
        argv = [str(envoy_binary(version)), "-c", str(configuration), "--log-level", "error"]
        argv += ["--concurrency", str(self.concurrency)]
        return argv if self.hot_restart else [*argv, "--disable-hot-restart"]

    @property
    def _start_commands(self) -> Sequence[str]:
        argv = self.generation_argv(0, self.version)
        log, pidfile = shlex.quote(str(self.log)), shlex.quote(str(self.pidfile))
        prepare = []
        if self.hot_restart:
            argv += [*_HOT_RESTART, "--use-dynamic-base-id", "--base-id-path", str(self._base_id)]
            prepare = [f"echo 0 >{shlex.quote(str(self._epoch))}"]
        return [
            *prepare,
            # in a subshell, which ends at once: hot restart makes it end with its parent process
            f"(setsid {shlex.join(argv)} </dev/null >>{log} 2>&1 & echo $! >{pidfile})",
        ]

    def _write_generation(self, name: str, generation: int) -> None:
        template = self.template("envoy-listener.yaml")
        listeners = [
            self._filled(template, number=number, address=address, port=port, backlog=self.backlog)
            for number, (address, port) in enumerate(sorted(self.endpoints))
        ]
        admin = self.admin_socket(generation)
        self._write(name, "envoy.yaml", admin=admin, listeners="".join(listeners).rstrip())

    def _write_configuration(self) -> None:
        self._write_generation("envoy-0.yaml", 0)
        argv = [*self._argv(self.version, self.directory / "envoy-0.yaml"), *_HOT_RESTART]
        self._write_script(
            "hot-restart",
            "envoy-hot-restart.sh",
            envoy=shlex.join(argv),
            pidfile=shlex.quote(str(self.pidfile)),
            epoch_file=shlex.quote(str(self._epoch)),
            base_id=shlex.quote(str(self._base_id)),
            log=shlex.quote(str(self.log)),
        )
