"""nginx, which answers by itself."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from signal import SIGTERM, Signals

from netlab.servers.service import WILDCARDS, Service, bracketed
from netlab.topology import Namespace


class Nginx(Service):
    """SIGTERM stops at once, SIGQUIT gracefully; the reload is `-s reload`.

    With `reuseport` each worker has a listening socket of its own on every endpoint, so a
    reload with fewer workers (`set_workers`) closes some, with what is queued in them.
    """

    log_name = "error.log"

    def __init__(
        self,
        namespace: Namespace,
        *,
        ports: Sequence[int] = (),
        addresses: Sequence[str] = WILDCARDS,
        stop_signal: Signals = SIGTERM,
        backlog: int = 511,
        reuseport: bool = False,
        workers: int = 2,
    ) -> None:
        self.backlog = backlog
        self.reuseport = reuseport
        self.workers = workers
        super().__init__(namespace, ports=ports, addresses=addresses, stop_signal=stop_signal)

    @property
    def reload_argv(self) -> list[str]:
        """Make the master read its configuration again."""
        return [*self._argv, "-s", "reload"]

    def generation_argv(self, generation: int) -> list[str]:
        """Start another master beside the one that runs, in the foreground; needs `reuseport`."""
        name = f"nginx-{generation}.conf"
        self._write_nginx_conf(name, daemon="off", pidfile=self.directory / f"pid-{generation}")
        argv = ["nginx", "-p", str(self.directory), "-e", str(self.log)]
        return [*argv, "-c", str(self.directory / name)]

    def set_workers(self, workers: int) -> None:
        """Rewrite the configuration; it takes effect with the next reload or restart."""
        self.workers = workers
        self._write_configuration()

    @property
    def _argv(self) -> list[str]:
        configuration = str(self.directory / "nginx.conf")
        # -e and -p: without them it opens files below /var first
        return ["nginx", "-p", str(self.directory), "-e", str(self.log), "-c", configuration]

    @property
    def _start_commands(self) -> Sequence[str]:
        return [shlex.join(self._argv)]

    def _write_configuration(self) -> None:
        self._write_nginx_conf("nginx.conf", daemon="on", pidfile=self.pidfile)

    def _write_nginx_conf(self, name: str, *, daemon: str, pidfile: Path) -> None:
        options = f"backlog={self.backlog}" + (" reuseport" if self.reuseport else "")
        listens = "\n".join(
            f"        listen {bracketed(address)}:{port} {options}"
            + (" ipv6only=on;" if ":" in address else ";")
            for address, port in sorted(self.endpoints)
        )
        self._write(
            name,
            "nginx.conf",
            daemon=daemon,
            workers=self.workers,
            pidfile=pidfile,
            directory=self.directory,
            listens=listens,
        )
