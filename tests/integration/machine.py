"""An operator's machine for the command blocks of a page: a folder, services, a shell.

The services stand where the pages have them. systemctl is a stand-in that calls their scripts;
whoever they leave behind is reaped at once.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from select import select

from netlab.topology import ClientServer
from tests.integration.conftest import SERVER

BIN = Path(sys.executable).parent
_INIT = Path(__file__).with_name("programs") / "init.py"
_PATIENCE_S = 60
_START = """#!/bin/sh
setsid {python} {server} {port} --pidfile /run/{name}.pid --delay 0.2 --reuseport \\
    </dev/null >/dev/null 2>&1 &
until [ -s /run/{name}.pid ]; do sleep 0.01; done
"""
_STOP = """#!/bin/sh
pid=$(cat /run/{name}.pid)
rm /run/{name}.pid
kill "$pid"
while grep -qs '^State:[[:space:]]*[^ZX[:space:]]' "/proc/$pid/status"; do sleep 0.01; done
"""
#: Knows no more than what the pages ask of it, and fails for the rest.
_SYSTEMCTL = """#!/bin/sh
case $1 in
start | stop) exec {folder}/"$1-$2" ;;
restart | reload) {folder}/"stop-$2" && exec {folder}/"start-$2" ;;
*) exit 1 ;;
esac
"""
_HAPROXY = """\
global
    hard-stop-after 5s
    noreuseport
defaults
    mode http
    timeout client 30s
frontend it
{binds}
    http-request return status 200 content-type text/plain string "ok"
"""
_HAPROXY_CFG = Path("/etc/haproxy/haproxy.cfg")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The operator's machine: the current directory, and the shell's environment."""

    lab: ClientServer
    folder: Path
    environ: dict[str, str]
    init: subprocess.Popen[str]

    def run(self, text: str, *, status: int = 0) -> str:
        """A block, by a shell that stops at the first error; what it says."""
        assert self.init.stdin is not None
        assert self.init.stdout is not None
        output = self.folder.with_name("output")
        self.init.stdin.write(json.dumps([str(output), "sh", "-e", "-c", text]) + "\n")
        self.init.stdin.flush()
        assert select([self.init.stdout], [], [], _PATIENCE_S)[0], f"it does not end: {text}"
        ended, said = self.init.stdout.readline(), output.read_text(errors="replace")
        assert ended == f"{status}\n", f"{text}\nstatus {ended}{said}"
        return said

    def script(self, name: str, text: str) -> Path:
        """An executable file in the folder, or where an absolute path names it."""
        path = self.folder / name
        path.write_text(text if text.startswith("#!") else f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    def service(self, name: str, port: int) -> None:
        """The small server as a service that runs, with ``start-NAME`` and ``stop-NAME``."""
        values = {"python": sys.executable, "server": SERVER, "port": port, "name": name}
        self.script(f"start-{name}", _START.format(**values))
        self.script(f"stop-{name}", _STOP.format(**values))
        self.run(f"./start-{name}")

    def haproxy(self, *binds: str) -> None:
        """A real one, as Debian has it."""
        _HAPROXY_CFG.parent.mkdir(exist_ok=True)
        lines = "\n".join(f"    bind {bind}" for bind in binds)
        _HAPROXY_CFG.write_text(_HAPROXY.format(binds=lines))
        self.script("start-haproxy", f"exec haproxy -f {_HAPROXY_CFG} -p /run/haproxy.pid -D")
        self.script("stop-haproxy", _STOP.format(name="haproxy"))
        self.run("./start-haproxy")


@contextmanager
def machine_of(lab: ClientServer, folder: Path) -> Iterator[Machine]:
    """The machine is the lab's server; all that runs there ends with it."""
    tools, own = folder / "bin", folder / "app"
    for path in (tools, own):
        path.mkdir()
    environ = os.environ | {"PATH": f"{tools}:{BIN}:{os.environ['PATH']}"}
    init = subprocess.Popen(
        lab.server.command([sys.executable, str(_INIT)]),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ, cwd=own,
    )  # fmt: skip
    with init:
        made = Machine(lab=lab, folder=own, environ=environ, init=init)
        try:
            made.script(str(tools / "systemctl"), _SYSTEMCTL.format(folder=own))
            made.script(str(tools / "nginx"), '[ "$*" = "-t -q" ]')
            yield made
        finally:
            lab.server.end_everything()
            for path in Path("/run").glob("*.pid"):
                path.unlink()
            shutil.rmtree(own)
