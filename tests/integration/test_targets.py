"""Endpoints found from units, pids, pidfiles and commands, with the real programs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from netlab.program import wait_until
from netlab.servers import Gunicorn, HAProxy, Nginx
from netlab.topology import ClientServer
from tests.integration import shell
from tests.integration.conftest import SimpleService

_CGROUP_ROOTS = (
    Path("/sys/fs/cgroup/unified"),
    Path("/sys/fs/cgroup/systemd"),
    Path("/sys/fs/cgroup"),
)


def test_nginx_s_reload(lab: ClientServer) -> None:
    with Nginx(lab.server, ports=(8080, 8081)) as nginx:
        outcome = shell.wrap(lab.server, [], nginx.reload_argv)
    assert outcome.status == 0, outcome
    assert outcome.report["endpoints"] == [
        "0.0.0.0:8080", "[::]:8080", "0.0.0.0:8081", "[::]:8081",
    ]  # fmt: skip


def test_haproxy_with_sf_and_with_its_pidfile(lab: ClientServer) -> None:
    with HAProxy(lab.server) as haproxy:
        configuration = str(haproxy.directory / "configuration")
        found = [path for path in haproxy.directory.iterdir() if "cfg" in path.name]
        configuration = str(found[0]) if found else configuration
        argv = ["haproxy", "-f", configuration, "-p", str(haproxy.pidfile), "-D"]
        for options in ([], ["-sf", *map(str, haproxy.pids)]):
            outcome = shell.run(lab.server, "wrap", "-n", "--", *argv, *options)
            assert outcome.status == 0, outcome
            assert "0.0.0.0:8080, [::]:8080" in outcome.stdout


def test_kill_with_a_signal(lab: ClientServer) -> None:
    with Gunicorn(lab.server) as gunicorn:
        (pid,) = gunicorn.pids
        outcome = shell.wrap(lab.server, [], ["kill", "-HUP", str(pid)])
    assert outcome.status == 0, outcome
    assert outcome.report["endpoints"] == ["*:8080"], "a dual-stack listener serves both"


def test_a_worker_that_listens_counts_for_its_master(
    lab: ClientServer, simple: SimpleService, tmp_path: Path
) -> None:
    """The pid is a shell's; the listener is its child's."""
    child = [sys.executable, str(Path(__file__).parent / "programs/simple_server.py"), "8099"]
    pidfile = tmp_path / "child.pid"
    master = lab.server.popen(["sh", "-c", f"{' '.join(child)} --pidfile {pidfile} & wait"])
    wait_until(pidfile.exists, 10, "the worker listens")
    outcome = shell.run(lab.server, "wrap", "-n", "--pid", str(master.pid), "--", "true")
    assert "*:8099" in outcome.stdout, outcome
    os.kill(int(pidfile.read_text()), 15)
    master.wait(timeout=10)


def test_a_process_of_another_namespace_is_pointed_to(
    lab: ClientServer, simple: SimpleService
) -> None:
    outcome = shell.run(lab.client, "wrap", "--pidfile", str(simple.pidfile), "--", "true")
    assert outcome.status == 125
    assert f"--netns {simple.pid}" in outcome.stderr


@pytest.mark.parametrize("by", ["name", "path", "pid"])
def test_everything_happens_in_the_named_namespace(
    lab: ClientServer, simple: SimpleService, by: str
) -> None:
    netns = {"name": lab.server.name, "path": lab.server.path, "pid": str(simple.pid)}[by]
    command = ["sh", "-c", "ip -o addr show dev veth0 | grep -q 10.231.0.2"]
    outcome = shell.wrap(lab.client, ["--netns", str(netns), "-p", "8080"], command)
    assert outcome.status == 0, outcome
    assert len(outcome.report["old_listeners"]) == 1


@pytest.fixture
def unit(simple: SimpleService) -> Iterator[str]:
    """The small server in a control group that is named as systemd would name its unit's."""
    name = f"synplug-test-{os.getpid()}.service"
    for root in _CGROUP_ROOTS:
        group = root / name
        try:
            group.mkdir()
            (group / "cgroup.procs").write_text(str(simple.pid))
        except OSError:
            with suppress(OSError):
                group.rmdir()
            continue
        yield name
        for pid in (group / "cgroup.procs").read_text().split():
            with suppress(OSError):
                (root / "cgroup.procs").write_text(pid)
        group.rmdir()
        return
    pytest.fail("no control group can be made on this machine")


@pytest.mark.parametrize("verb", ["restart", "reload"])
def test_systemctl_names_a_unit(lab: ClientServer, unit: str, verb: str, tmp_path: Path) -> None:
    """A stand-in for systemctl, since no systemd runs here: what is tested is finding the unit."""
    fake = tmp_path / "bin" / "systemctl"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\nexit 0\n")
    fake.chmod(0o755)
    argv = [str(fake), verb, unit.removesuffix(".service")]
    outcome = shell.wrap(lab.server, ["--settle", "50ms"], argv)
    assert outcome.status == 0, outcome
    assert outcome.report["endpoints"] == ["*:8080"]
    named = shell.run(lab.server, "wrap", "-n", "--unit", unit, "--", "true")
    assert f"unit {unit}" in named.stdout
