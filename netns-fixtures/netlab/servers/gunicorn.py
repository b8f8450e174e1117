"""gunicorn with sync workers and the smallest WSGI application."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from signal import SIGTERM, Signals

from netlab.errors import LabError
from netlab.servers.service import WILDCARDS, Service, bracketed
from netlab.topology import Namespace


class Gunicorn(Service):
    """gunicorn of the running Python. Its start command ends before it listens.

    It never sets IPV6_V6ONLY, so both wildcards together become one dual-stack `[::]`.
    SIGTERM stops gracefully, SIGQUIT at once; the reload is SIGHUP.
    """

    def __init__(
        self,
        namespace: Namespace,
        *,
        ports: Sequence[int] = (),
        addresses: Sequence[str] = WILDCARDS,
        stop_signal: Signals = SIGTERM,
        backlog: int = 2048,
        workers: int = 2,
        reuseport: bool = False,
    ) -> None:
        if importlib.util.find_spec("gunicorn") is None:
            raise LabError(f"{sys.executable} has no gunicorn: install the test dependencies")
        self.backlog = backlog
        self.workers = workers
        self.reuseport = reuseport
        super().__init__(namespace, ports=ports, addresses=addresses, stop_signal=stop_signal)

    @property
    def listen_addresses(self) -> tuple[str, ...]:
        """One dual-stack socket in place of the two wildcards."""
        return ("::",) if set(self.addresses) == set(WILDCARDS) else self.addresses

    @property
    def reload_argv(self) -> list[str]:
        """SIGHUP to the master: new workers, the same sockets."""
        return [str(self.directory / "reload")]

    def generation_argv(self, _generation: int) -> list[str]:
        """Start another master beside the one that runs, in the foreground; needs `reuseport`."""
        return self._argv()

    @property
    def _start_commands(self) -> Sequence[str]:
        return [shlex.join(self._argv("--daemon", "--pid", str(self.pidfile)))]

    def _argv(self, *options: str) -> list[str]:
        argv = [sys.executable, "-m", "gunicorn", *options]
        argv += ["--reuse-port"] if self.reuseport else []
        argv += ["--workers", str(self.workers), "--backlog", str(self.backlog)]
        argv += ["--error-logfile", str(self.log), "--graceful-timeout", "5"]
        argv += ["--worker-tmp-dir", str(self.directory), "--chdir", str(self.directory)]
        for address, port in sorted(self.endpoints):
            argv += ["--bind", f"{bracketed(address)}:{port}"]
        return [*argv, "application:application"]

    def _write_configuration(self) -> None:
        shutil.copy(self.template("application.py"), self.directory)
        self._write_script(
            "reload",
            "signal.sh",
            pidfile=shlex.quote(str(self.pidfile)),
            signal=signal.SIGHUP.name.removeprefix("SIG"),
        )
