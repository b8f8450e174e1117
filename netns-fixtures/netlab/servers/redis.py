"""Redis, without persistence."""

from __future__ import annotations

import resource
import shlex
from collections.abc import Sequence
from signal import SIGTERM, Signals

from netlab.load import Protocol
from netlab.servers.service import WILDCARDS, Service
from netlab.topology import Namespace

_SPARE_FILES = 64  # redis keeps 32 for itself (CONFIG_MIN_RESERVED_FDS in server.h)
_MAX_CLIENTS = 20_000


class Redis(Service):
    """redis-server on one port; IPv4 and IPv6 sockets are separate."""

    protocol: Protocol = "redis"
    default_port = 6379

    def __init__(
        self,
        namespace: Namespace,
        *,
        ports: Sequence[int] = (),
        addresses: Sequence[str] = WILDCARDS,
        stop_signal: Signals = SIGTERM,
        backlog: int = 511,
    ) -> None:
        if len(ports) > 1:
            raise ValueError("redis listens on one port without TLS")
        self.backlog = backlog
        super().__init__(namespace, ports=ports, addresses=addresses, stop_signal=stop_signal)

    @property
    def _start_commands(self) -> Sequence[str]:
        return [shlex.join(["redis-server", str(self.directory / "redis.conf")])]

    def _write_configuration(self) -> None:
        _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._write(
            "redis.conf",
            "redis.conf",
            pidfile=self.pidfile,
            directory=self.directory,
            addresses=" ".join(self.addresses),
            port=self.ports[0],
            backlog=self.backlog,
            maxclients=min(_MAX_CLIENTS, most_files - _SPARE_FILES),
        )
