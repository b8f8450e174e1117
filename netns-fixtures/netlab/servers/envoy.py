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
    listeners (POST /drain_listeners) and leaves it running. SIGTERM ends it at once.
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
    ) -> None:
        self.backlog = backlog
        self.version = version
        self.concurrency = concurrency
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

    def _argv(self, version: str, configuration: Path) -> list[str]:
        argv = [str(envoy_binary(version)), "-c", str(configuration), "--log-level", "error"]
        return [*argv, "--concurrency", str(self.concurrency), "--disable-hot-restart"]

    @property
    def _start_commands(self) -> Sequence[str]:
        argv = self.generation_argv(0, self.version)
        log, pidfile = shlex.quote(str(self.log)), shlex.quote(str(self.pidfile))
        return [
            f"setsid {shlex.join(argv)} </dev/null >>{log} 2>&1 &",
            f"echo $! >{pidfile}",
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
