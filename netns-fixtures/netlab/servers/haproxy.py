"""HAProxy, which answers by itself, in daemon mode without a master."""

from __future__ import annotations

import resource
import shlex
from collections.abc import Sequence
from signal import SIGTERM, Signals

from netlab.servers.service import WILDCARDS, Service
from netlab.topology import Namespace

# haproxy wants two descriptors a connection and some for itself (configuration.txt, maxconn)
_SPARE_FILES = 400
_MAX_CONNECTIONS = 20_000


class HAProxy(Service):
    """SIGTERM stops at once, SIGUSR1 gracefully; the reload is `-sf`, with `seamless` also `-x`.

    With `-x` the new process asks the old one for its listeners. With `reuseport=False` (option
    `noreuseport`) a reload without it has a gap: the new process binds when the old one has let go.
    """

    def __init__(
        self,
        namespace: Namespace,
        *,
        ports: Sequence[int] = (),
        addresses: Sequence[str] = WILDCARDS,
        stop_signal: Signals = SIGTERM,
        backlog: int = 1024,
        reuseport: bool = True,
        threads: int = 2,
        seamless: bool = False,
    ) -> None:
        self.backlog = backlog
        self.reuseport = reuseport
        self.threads = threads
        self.seamless = seamless
        super().__init__(namespace, ports=ports, addresses=addresses, stop_signal=stop_signal)

    @property
    def reload_argv(self) -> list[str]:
        """Start a new process that tells the old one to finish."""
        return [str(self.directory / "reload")]

    def generation_argv(self, _generation: int) -> list[str]:
        """Start another process beside the one that runs, in the foreground."""
        return ["haproxy", "-f", str(self.directory / "haproxy.cfg"), "-db"]

    @property
    def _stats(self) -> str:
        return str(self.directory / "stats.sock")

    @property
    def _argv(self) -> list[str]:
        configuration = str(self.directory / "haproxy.cfg")
        return ["haproxy", "-f", configuration, "-p", str(self.pidfile), "-D"]

    @property
    def _start_commands(self) -> Sequence[str]:
        return [shlex.join(self._argv)]

    def _write_configuration(self) -> None:
        binds = "\n".join(
            f"    bind {address}:{port} backlog {self.backlog}"
            + (" v6only" if ":" in address else "")
            for address, port in sorted(self.endpoints)
        )
        _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._write(
            "haproxy.cfg",
            "haproxy.cfg",
            maxconn=min(_MAX_CONNECTIONS, (most_files - _SPARE_FILES) // 2),
            threads=self.threads,
            reuseport="" if self.reuseport else "noreuseport",
            stats=f"stats socket {self._stats} expose-fd listeners" if self.seamless else "",
            binds=binds,
        )
        self._write_script(
            "reload",
            "haproxy-reload.sh",
            haproxy=shlex.join(self._argv),
            options=shlex.join(["-x", self._stats]) if self.seamless else "",
            pidfile=shlex.quote(str(self.pidfile)),
        )
