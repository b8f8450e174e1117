"""A small service that can be handed its listeners; alone, or below start_server(1)."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from signal import SIGTERM, Signals

from netlab.errors import LabError
from netlab.servers.service import WILDCARDS, Service, bracketed
from netlab.topology import Namespace


class FdService(Service):
    """One Python process that serves one connection after the other.

    With `superdaemon` it runs below start_server of Debian's libserver-starter-perl, which keeps
    the listeners; the reload starts a new process and ends the old one. Without, it binds them
    itself, and has no reload.
    """

    def __init__(
        self,
        namespace: Namespace,
        *,
        ports: Sequence[int] = (),
        addresses: Sequence[str] = WILDCARDS,
        stop_signal: Signals = SIGTERM,
        backlog: int = 128,
        superdaemon: bool = False,
    ) -> None:
        if superdaemon and shutil.which("start_server") is None:
            raise LabError("no start_server: install Debian's libserver-starter-perl")
        self.backlog = backlog
        self.superdaemon = superdaemon
        super().__init__(namespace, ports=ports, addresses=addresses, stop_signal=stop_signal)

    @property
    def reload_argv(self) -> list[str]:
        """Make the superdaemon start a new process and end the old one; returns afterwards."""
        return ["start_server", "--restart", *self._state_options]

    @property
    def _state_options(self) -> list[str]:
        return [f"--pid-file={self.pidfile}", f"--status-file={self._status}"]

    @property
    def _status(self) -> Path:
        return self.directory / "status"

    @property
    def _start_commands(self) -> Sequence[str]:
        argv = [sys.executable, "-S", str(self.template("fd_service.py"))]
        argv += ["--backlog", str(self.backlog)]
        for address, port in sorted(self.endpoints):
            argv += [address, str(port)]
        log, pidfile = shlex.quote(str(self.log)), shlex.quote(str(self.pidfile))
        if not self.superdaemon:
            return [
                f"setsid {shlex.join(argv)} </dev/null >>{log} 2>&1 &",
                f"echo $! >{pidfile}",
            ]
        listens = [
            f"--port={bracketed(address)}:{port}" for address, port in sorted(self.endpoints)
        ]
        parent = ["start_server", f"--backlog={self.backlog}", *listens, *self._state_options]
        # it counts a process as started, and can restart it, a second (--interval) later
        status = shlex.quote(str(self._status))
        return [
            f"setsid {shlex.join([*parent, '--', *argv])} </dev/null >>{log} 2>&1 &",
            f"until [ -s {status} ]; do sleep 0.005; done",
        ]

    def _write_configuration(self) -> None:
        """It reads none."""
