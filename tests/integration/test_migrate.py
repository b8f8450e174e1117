"""``--migrate``: net.ipv4.tcp_migrate_req is set for the swap, and is again what it was."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import UnixStreamServer

import pytest

from netlab.program import Program, wait_until
from netlab.topology import ClientServer
from tests.integration import shell
from tests.integration.conftest import SERVER
from tests.integration.connect import connects_within
from tests.integration.supervised import supervised

SHOW = ["cat", "/proc/sys/net/ipv4/tcp_migrate_req"]


@pytest.fixture
def before(lab: ClientServer) -> str:
    """What the parameter is: a name space's own, so it begins as 0."""
    done = lab.server.run(SHOW, check=False)
    if done.returncode:
        pytest.skip("this kernel has no tcp_migrate_req (Linux 5.14)")
    return done.stdout.strip()


def server(port: int = 8080) -> list[str]:
    return [sys.executable, str(SERVER), str(port), "--reuseport"]


def value(lab: ClientServer) -> str:
    return lab.server.run(SHOW).stdout.strip()


def migrating(lab: ClientServer, tmp_path: Path, old: int, *options: str) -> dict[str, object]:
    """Swap to another one, which is ended after it; returns the report."""
    report, pidfile = tmp_path / "report", tmp_path / "pid"
    status = shell.run_detached(
        lab.server,
        *["swap", "--migrate", "--old-pid", str(old), "--new-pidfile", str(pidfile)],
        *["--json", str(report), *options, "--", *server()],
        output=tmp_path / "log",
    )
    assert status == 0, (tmp_path / "log").read_text()
    os.kill(int(pidfile.read_text()), signal.SIGTERM)
    found: dict[str, object] = json.loads(report.read_text())
    return found


@pytest.mark.parametrize("was", ["0", "1"])
def test_it_is_set_for_the_swap_and_restored(
    lab: ClientServer, tmp_path: Path, before: str, was: str
) -> None:
    assert before == "0"
    lab.server.run(["sh", "-c", f"echo {was} >{SHOW[1]}"])
    seen = tmp_path / "seen"
    stop = f"sh -c '{' '.join(SHOW)} >{seen}; kill {{pid}}'"
    old = Program(lab.server, server(), listens_on=[("::", 8080)])
    with old:
        report = migrating(lab, tmp_path, old.pid, "--stop-cmd", stop)
    assert report["migrated"] is True
    assert report["warnings"] == []
    assert seen.read_text().strip() == "1"
    assert value(lab) == was


def test_a_swap_without_it_leaves_it_alone(lab: ClientServer, tmp_path: Path, before: str) -> None:
    """The control."""
    seen, report = tmp_path / "seen", tmp_path / "report"
    stop = f"sh -c '{' '.join(SHOW)} >{seen}; kill {{pid}}'"
    with Program(lab.server, server(), listens_on=[("::", 8080)]) as old:
        status = shell.run_detached(
            lab.server,
            *["swap", "--old-pid", str(old.pid), "--new-pidfile", str(tmp_path / "pid")],
            *["--stop-cmd", stop, "--json", str(report), "--", *server()],
            output=tmp_path / "log",
        )
        assert status == 0, (tmp_path / "log").read_text()
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
    assert seen.read_text().strip() == before == "0"
    assert json.loads(report.read_text())["migrated"] is False


def test_recover_restores_what_a_killed_swap_has_set(
    lab: ClientServer, tmp_path: Path, before: str
) -> None:
    with Program(lab.server, server(), listens_on=[("::", 8080)]) as old:
        argv = ["swap", "--migrate", "--old-pid", str(old.pid), "--stop-cmd", "sleep 60"]
        argv += ["--new-pidfile", str(tmp_path / "pid"), "--stop-timeout", "60s"]
        swap = shell.start(lab.server, *argv, "--", *server())
        wait_until(lambda: value(lab) == "1", 10, "the parameter is set")
        wait_until(lambda: "sleep" in _names(lab), 10, "the stop command runs")
        os.kill(swap.pid, signal.SIGKILL)
        _end_all(lab, "sleep", but=old.pid)
        _end_all(lab, sys.executable, but=old.pid)
        swap.communicate(timeout=10)
        done = shell.run(lab.server, "recover")
        assert done.status == 0, done
        assert "tcp_migrate_req" in done.stdout
        assert value(lab) == before


def test_a_reload_that_is_refused_restores_it_and_leaves_no_descriptor(
    lab: ClientServer, tmp_path: Path, before: str
) -> None:
    """The old generation does not want to go, when all is held and the parameter is set."""
    seen: list[str] = []
    with (
        refusing(tmp_path / "admin", lambda: seen.append(value(lab))) as url,
        supervised(lab, tmp_path) as app,
        app.start("--migrate", "--stop-post", url),
    ):
        first, descriptors = app.pid(1), app.descriptors()
        for _ in range(3):
            refused = app.reload()
            assert refused.status == 125
            assert "generation 1 serves on" in refused.stderr
            assert value(lab) == before
        assert seen == ["1"] * 3, "it was not set, or nobody was asked"
        assert app.generations() == {first}
        assert app.descriptors() == descriptors
        assert connects_within(lab.client, (lab.server_ipv4, 8080), 2.0)
        assert app.program.end(signal.SIGTERM) == 0, app.program.output


@contextmanager
def refusing(path: Path, asked: Callable[[], None]) -> Iterator[str]:
    """An admin socket that answers every POST with 404; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked()
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

        def address_string(self) -> str:  # of a Unix socket there is none
            return ""

    with UnixStreamServer(str(path), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"unix:{path}:/drain"
        finally:
            http.shutdown()
            thread.join()


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def _names(lab: ClientServer) -> set[str]:
    return {os.path.basename(_command(pid).split(" ")[0]) for pid in lab.server.pids()}


def _end_all(lab: ClientServer, command: str, *, but: int) -> None:
    """Kill what the swap has started, which it did not live to end."""
    for pid in lab.server.pids():
        if pid != but and _command(pid).startswith(command):
            os.kill(pid, signal.SIGKILL)
