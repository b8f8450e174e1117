"""Python's http.server: a home-grown service that knows nothing of daemons or reloads."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from signal import SIGTERM, Signals

from netlab.servers.service import WILDCARDS, Service
from netlab.topology import Namespace

# What `python -m http.server` does, with another backlog.
_WITH_BACKLOG = (
    "import runpy, socketserver; "
    "socketserver.TCPServer.request_queue_size = {backlog}; "
    "runpy.run_module('http.server', run_name='__main__', alter_sys=True)"
)


class HttpServer(Service):
    """`python -m http.server`, one process an endpoint, put into the background by a script.

    Its start command ends before it listens. Its own backlog is 5 (socketserver.TCPServer),
    which overflows as soon as anybody is late: the kernel, the server or its clients.
    Bound to `::` it is dual-stack, so both wildcards together need only one process.
    """

    own_backlog = 5

    def __init__(
        self,
        namespace: Namespace,
        *,
        ports: Sequence[int] = (),
        addresses: Sequence[str] = WILDCARDS,
        stop_signal: Signals = SIGTERM,
        backlog: int = own_backlog,
    ) -> None:
        self.backlog = backlog
        super().__init__(namespace, ports=ports, addresses=addresses, stop_signal=stop_signal)

    @property
    def listen_addresses(self) -> tuple[str, ...]:
        """One dual-stack socket in place of the two wildcards."""
        return ("::",) if set(self.addresses) == set(WILDCARDS) else self.addresses

    @property
    def _start_commands(self) -> Sequence[str]:
        log = shlex.quote(str(self.log))
        pidfile = shlex.quote(str(self.pidfile))
        commands = []
        for address, port in sorted(self.endpoints):
            argv = ["setsid", sys.executable, *self._program, str(port)]
            argv += ["--bind", address, "--directory", str(self.directory / "www")]
            commands.append(f"{shlex.join(argv)} </dev/null >>{log} 2>&1 &")
            # setsid execs, as a background job of a script leads no process group
            commands.append(f"echo $! >>{pidfile}")
        return commands

    @property
    def _program(self) -> Sequence[str]:
        if self.backlog == self.own_backlog:
            return ["-m", "http.server"]
        return ["-c", _WITH_BACKLOG.format(backlog=self.backlog)]

    def _write_configuration(self) -> None:
        content = self.directory / "www"
        content.mkdir()
        (content / "index.html").write_text("ok", encoding="ascii")
