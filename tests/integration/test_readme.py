"""The command blocks of the README and the tutorial, run one after the other as a reader would.

The services stand where the README has them: an application at port 8000 with its scripts, a
"nginx" at 80, a real HAProxy at 8081 by /etc/haproxy/haproxy.cfg. systemctl is a stand-in that
calls their scripts. Blocks that are not run here are named, with the reason.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from netlab.load import Load
from netlab.program import wait_until
from netlab.topology import ClientServer
from tests.integration.conftest import SERVER
from tests.unit.test_documents import ROOT, blocks

BIN = Path(sys.executable).parent
#: How a block begins, and why it is not run here.
ELSEWHERE = {
    "apt install pipx": "it installs",
    "synplug demo": "tests/integration/test_demo.py",
    "make demo": "it is this test run, and its like",
    "synplug supervise": "tests/integration/test_supervise_envoy.py, as the unit has it",
    "RUN=": "by hand, for what a run that was killed has left",
}
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
_HAPROXY = """
global
    hard-stop-after 5s
    noreuseport
defaults
    mode http
    timeout client 30s
frontend it
    bind 0.0.0.0:8081
    http-request return status 200 content-type text/plain string "ok"
"""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The operator's machine: the current directory, and the shell's environment."""

    lab: ClientServer
    folder: Path
    environ: dict[str, str]

    def run(self, text: str) -> subprocess.CompletedProcess[str]:
        """A block, by a shell that stops at the first error."""
        return self.lab.server.run(
            ["sh", "-e", "-c", text], timeout_s=60, env=self.environ, cwd=self.folder
        )


@pytest.fixture
def machine(lab: ClientServer, etc: Path, tmp_path: Path) -> Iterator[Machine]:
    """The machine with its services, that run."""
    folder, tools = tmp_path / "app", tmp_path / "bin"
    folder.mkdir()
    tools.mkdir()

    def script(path: Path, text: str) -> None:
        path.write_text(text if text.startswith("#!") else f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    for name, port in (("app", 8000), ("nginx", 80), ("other", 8080)):
        values = {"python": sys.executable, "server": SERVER, "port": port, "name": name}
        script(folder / f"start-{name}", _START.format(**values))
        script(folder / f"stop-{name}", _STOP.format(**values))
        script(folder / f"restart-{name}", f"{folder}/stop-{name} && {folder}/start-{name}")
    script(folder / "restart.sh", f"{folder}/restart-other")
    script(folder / "app", f"exec {sys.executable} {SERVER} 8000 --delay 0.2 --reuseport")
    script(folder / "app-2", f"exec {sys.executable} {SERVER} 8000 --reuseport")
    script(folder / "migrate-database", "true")
    script(folder / "check-config", "true")
    script(tools / "systemctl", f'[ "$1" = restart ] || exit 1; exec {folder}/restart-"$2"')
    script(tools / "nginx", '[ "$*" = "-t -q" ]')
    (etc / "haproxy").mkdir(exist_ok=True)
    (etc / "haproxy" / "haproxy.cfg").write_text(_HAPROXY)
    made = Machine(
        lab=lab,
        folder=folder,
        environ=os.environ | {"PATH": f"{tools}:{BIN}:{os.environ['PATH']}"},
    )
    for name in ("app", "nginx", "other"):
        made.run(f"./start-{name}")
    made.run("haproxy -f /etc/haproxy/haproxy.cfg -p /run/haproxy.pid -D")
    try:
        yield made
    finally:
        for name in ("app", "nginx", "other", "haproxy"):
            Path(f"/run/{name}.pid").unlink(missing_ok=True)
        shutil.rmtree(folder)


def load(lab: ClientServer) -> Load:
    """Clients of all that the blocks restart."""
    targets = [(lab.server_ipv4, port) for port in (8000, 80, 8081, 8080)]
    return Load(lab.client, targets, rate_per_s=100)


def test_the_readme_s_commands_lose_nobody(machine: Machine, etc: Path) -> None:
    ran = []
    with load(machine.lab) as clients:
        for language, text in blocks(ROOT / "README.md"):
            if any(text.startswith(beginning) for beginning in ELSEWHERE):
                continue
            if language == "toml":
                there = text.replace("/srv/app/bin", str(machine.folder))
                assert there != text
                (etc / "synplug.toml").write_text(there)
            elif language == "sh":
                machine.run(text)
                ran.append(text)
            elif language == "python":
                script = f"import os\nos.chdir({str(machine.folder)!r})\n{text}"
                said = machine.lab.server.run([sys.executable, "-c", script], timeout_s=30)
                assert said.stdout.startswith("True "), said
                ran.append(text)
        result = clients.stop()
    assert len(ran) >= 10, "most of it is run"
    assert result.failures == 0, result.summary()


def test_the_same_restarts_without_synplug_lose(machine: Machine) -> None:
    """The control."""
    with load(machine.lab) as clients:
        machine.run("systemctl restart app; systemctl restart nginx")
        wait_until(lambda: Path("/run/nginx.pid").exists(), 5, "they are there again")
        result = clients.stop()
    assert result.failures > 0


def test_the_tutorial_goes_as_it_says(lab: ClientServer, tmp_path: Path) -> None:
    environ = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    said = []
    for language, text in blocks(ROOT / "docs" / "tutorial.md"):
        assert language == "sh"
        done = lab.server.run(["sh", "-c", text], timeout_s=60, env=environ, cwd=tmp_path)
        said.append(done.stdout)
    counts = [int(words.split()[0]) for words in said if words.endswith(" of 40 failed\n")]
    assert len(counts) == 2
    assert counts[0] > 3, "without synplug some are refused"
    assert counts[1] == 0
    assert any("exit status 124" in words for words in said)


def test_every_block_is_run_or_named() -> None:
    for beginning in ELSEWHERE:
        found = [text for _, text in blocks(ROOT / "README.md") if text.startswith(beginning)]
        assert found, f"{beginning}: no such block any more"
    languages = {language for language, _ in blocks(ROOT / "README.md")}
    assert languages == {"", "sh", "toml", "python"}
