"""The command blocks of the README and the tutorial, run one after the other as a reader would.

The services stand where the README has them: an application at port 8000 with its scripts, a
"nginx" at 80, a real HAProxy at 8081 by /etc/haproxy/haproxy.cfg; another one at 8080. Blocks that
are run by other tests, or not here, are named in ``tests/document_blocks.py``.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from netlab.load import Load
from netlab.program import wait_until
from netlab.topology import ClientServer
from tests.document_blocks import ROOT, block, blocks, blocks_of
from tests.integration.conftest import SERVER
from tests.integration.machine import BIN, Machine, machine_of


@pytest.fixture
def machine(lab: ClientServer, etc: Path, tmp_path: Path) -> Iterator[Machine]:
    """The machine with its services, that run."""
    with machine_of(lab, tmp_path) as made:
        for name, port in (("app", 8000), ("nginx", 80), ("other", 8080)):
            made.service(name, port)
        made.haproxy("0.0.0.0:8081")
        made.script("restart.sh", "./stop-other && ./start-other")
        made.script("app", f"exec {sys.executable} {SERVER} 8000 --delay 0.2 --reuseport")
        made.script("app-2", f"exec {sys.executable} {SERVER} 8000 --reuseport")
        made.script("migrate-database", "true")
        made.script("check-config", "true")
        yield made


def load(lab: ClientServer) -> Load:
    """Clients of all that the blocks restart."""
    targets = [(lab.server_ipv4, port) for port in (8000, 80, 8081, 8080)]
    return Load(lab.client, targets, rate_per_s=100)


def test_the_readme_s_commands_lose_nobody(machine: Machine, etc: Path) -> None:
    ran, said = [], []
    with load(machine.lab) as clients:
        for language, text in blocks_of("README.md", "test_the_readme_s_commands_lose_nobody"):
            if language == "toml":
                there = text.replace("/srv/app/bin", str(machine.folder))
                assert there != text
                (etc / "synplug.toml").write_text(there)
            elif language == "sh":
                said.append(machine.run(text))
                ran.append(text)
            elif not language:  # a session: the command behind the prompt, and what it says
                command, _, expected = text.removeprefix("$ ").partition("\n")
                told = machine.run(f"{command} || echo exit $?")
                for line in expected.splitlines()[:-1]:
                    assert line in told, told
                assert re.search(r"^  -p 8080  python3? \(pid \d+\)$", told, re.MULTILINE), told
                assert told.endswith("exit 125\n")
                ran.append(text)
            elif language == "python":
                script = f"import os\nos.chdir({str(machine.folder)!r})\n{text}"
                done = machine.lab.server.run([sys.executable, "-c", script], timeout_s=30)
                assert done.stdout.startswith("True "), done
                ran.append(text)
        result = clients.stop()
    assert len(ran) >= 10, "most of it is run"
    assert result.failures == 0, result.summary()
    everything = "".join(said).replace("*:80 ", "0.0.0.0:80 ")  # that nginx listens on both
    for part in ("ok    self-test nfqueue ", "synplug would, changing nothing now:"):
        for line in block("README.md", part).splitlines():
            assert line in everything, everything


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
