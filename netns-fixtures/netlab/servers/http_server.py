"""Python's http.server: a home-grown service that knows nothing of daemons or reloads."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from netlab.servers.service import WILDCARDS, Service


class HttpServer(Service):
    """`python -m http.server`, one process an endpoint, put into the background by a script.

    Its start command ends before it listens, its backlog is 5 (socketserver.TCPServer).
    Bound to `::` it is dual-stack, so both wildcards together need only one process.
    """

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
            argv = ["setsid", sys.executable, "-m", "http.server", str(port)]
            argv += ["--bind", address, "--directory", str(self.directory / "www")]
            commands.append(f"{shlex.join(argv)} </dev/null >>{log} 2>&1 &")
            # setsid execs, as a background job of a script leads no process group
            commands.append(f"echo $! >>{pidfile}")
        return commands

    def _write_configuration(self) -> None:
        content = self.directory / "www"
        content.mkdir()
        (content / "index.html").write_text("ok", encoding="ascii")
