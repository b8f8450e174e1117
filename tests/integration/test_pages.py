"""The command blocks of recipes.md, configuration.md and failure-modes.md, as they stand there.

Run one after the other under load, with a real gunicorn, HAProxy and synplug; systemctl is a
stand-in. What other tests run, or cannot be run here, is named in ``tests/document_blocks.py``.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from netlab.load import Load
from netlab.load_result import LoadResult
from netlab.topology import ClientServer
from tests.document_blocks import ROOT, block, blocks_of
from tests.integration.conftest import SimpleService
from tests.integration.machine import BIN, Machine, machine_of

RATE_PER_S = 50
_STOP_GUNICORN = """#!/bin/sh
pid=$(cat /run/app.pid)
kill "$pid"
while [ -e "/proc/$pid" ]; do sleep 0.01; done
"""


@pytest.fixture
def machine(lab: ClientServer, etc: Path, tmp_path: Path) -> Iterator[Machine]:
    with machine_of(lab, tmp_path) as made:
        yield made


@pytest.fixture
def gunicorn(machine: Machine, tmp_path: Path) -> Iterator[None]:
    """recipes.md's application, in a /srv of our own, with its script; and as a unit."""
    srv = tmp_path / "srv"
    (srv / "app").mkdir(parents=True)
    shutil.copy(ROOT / "netns-fixtures" / "servers" / "application.py", srv / "app")
    script = block("docs/recipes.md", "gunicorn --daemon")
    start = next(line for line in script.splitlines() if "gunicorn --daemon" in line)
    machine.script("restart-app", script)
    machine.script("start-app", start)
    machine.script("stop-app", _STOP_GUNICORN)
    subprocess.run(["mount", "--bind", srv, "/srv"], check=True)
    try:
        machine.run("./start-app")
        yield
        machine.lab.server.end_everything()
    finally:
        subprocess.run(["umount", "--lazy", "/srv"], check=True)


def under_load(loads: list[Load], change: Callable[[], object]) -> list[LoadResult]:
    """What each of these clients sees of a change."""
    with ExitStack() as stack:
        for load in loads:
            stack.enter_context(load)
        change()
        return [load.stop() for load in loads]


def everybody(machine: Machine, *ports: int) -> list[Load]:
    """Clients of what the other machines can reach, and of the application behind a proxy."""
    near = Load(machine.lab.server, [("127.0.0.1", 8000)], rate_per_s=RATE_PER_S)
    address = machine.lab.server_ipv4
    return [near, Load(machine.lab.client, [(address, port) for port in ports], RATE_PER_S)]


def test_the_recipes_lose_nobody(machine: Machine, gunicorn: None) -> None:
    machine.service("nginx", 80)
    machine.haproxy("0.0.0.0:8081")
    machine.script("migrate-database", "true")
    texts = [
        text
        for language, text in blocks_of("docs/recipes.md", "test_the_recipes_lose_nobody")
        if language == "sh" and "gunicorn --daemon" not in text  # that is the fixture's
    ]
    assert len(texts) >= 6, "most of it is run"
    clients = everybody(machine, 80, 8081)
    for result in under_load(clients, lambda: [machine.run(text) for text in texts]):
        assert result.failures == 0, result.summary()


def test_the_same_restarts_without_synplug_lose(machine: Machine, gunicorn: None) -> None:
    """The control."""
    machine.service("nginx", 80)
    machine.haproxy("0.0.0.0:8081")
    text = "systemctl restart nginx; ./restart-app; until [ -s /run/app.pid ]; do sleep 0.01; done"
    for result in under_load(everybody(machine, 80, 8081), lambda: machine.run(text)):
        assert result.failures > 0


def test_a_configured_service(machine: Machine, etc: Path) -> None:
    machine.haproxy("0.0.0.0:80", "0.0.0.0:443")
    machine.script("deploy", "./stop-haproxy && ./start-haproxy")
    (etc / "synplug.d").mkdir()
    texts = []
    for language, text in blocks_of("docs/configuration.md", "test_a_configured_service"):
        if language == "toml":
            assert text.startswith("# /etc/synplug.d/haproxy.toml\n")
            (etc / "synplug.d" / "haproxy.toml").write_text(text)
        else:
            texts.append(text)
    targets = [(machine.lab.server_ipv4, port) for port in (80, 443)]
    (result,) = under_load(
        [Load(machine.lab.client, targets, RATE_PER_S)],
        lambda: [machine.run(text) for text in texts],
    )
    assert texts
    assert result.failures == 0, result.summary()


def test_a_command_that_ignores_a_signal(machine: Machine) -> None:
    """What docs/failure-modes.md has for it: the command is started so, and restarts as ever."""
    machine.service("nginx", 80)
    ignored = "grep SigIgn /proc/self/status | cut -f2 >ignored"
    machine.script("restart.sh", f"{ignored}; ./stop-nginx && ./start-nginx")
    ((_, text),) = blocks_of("docs/failure-modes.md", "test_a_command_that_ignores_a_signal")
    load = Load(machine.lab.client, [(machine.lab.server_ipv4, 80)], RATE_PER_S)
    (result,) = under_load([load], lambda: machine.run(text))
    assert result.failures == 0, result.summary()
    assert int((machine.folder / "ignored").read_text(), 16) & 1 << signal.SIGPIPE - 1


def test_another_namespace(lab: ClientServer, tmp_path: Path) -> None:
    """By its name, and by the pid of a process there; from outside."""
    service = SimpleService(namespace=lab.server, directory=tmp_path, port=9000)
    lab.server.run(service.start_argv())
    service.wait()
    script = tmp_path / "restart-app"
    lines = block("docs/recipes.md", "--netns web").splitlines()
    assert len(lines) == 2
    with Load(lab.client, service.targets(lab), RATE_PER_S) as load:
        for line in lines:
            pid = service.pid
            script.write_text(f"#!/bin/sh\n{service.restart_argv('--delay', '0.2')[2]}\n")
            script.chmod(0o755)
            text = line.replace("--netns web", f"--netns {lab.server.name}")
            done = subprocess.run(
                ["sh", "-c", text.replace("22227", str(pid))],
                cwd=tmp_path, timeout=60, check=False, capture_output=True, text=True,
                env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"},
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert service.pid != pid
        result = load.stop()
    assert result.failures == 0, result.summary()
