"""``synplug supervise``: one parent, changing generations, and nobody lost or orphaned."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals

import pytest

from netlab.load import Load
from netlab.program import Program, wait_until
from netlab.topology import ClientServer
from tests.integration import shell
from tests.integration.conftest import SERVER
from tests.integration.connect import connects_within

RATE_PER_S = 300


class Manager:
    """A service manager's end of NOTIFY_SOCKET, which writes down what it is told."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)
        self._heard: list[dict[str, str]] = []

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()

    @property
    def heard(self) -> list[dict[str, str]]:
        """Every message so far, as its fields."""
        while True:
            try:
                data = self._socket.recv(4096).decode()
            except BlockingIOError:
                return self._heard
            self._heard.append(dict(line.split("=", 1) for line in data.splitlines()))

    def states(self) -> list[str]:
        """The messages but the signs of life, by their first field."""
        return [next(iter(one)) for one in self.heard if "WATCHDOG" not in one]


@dataclass
class Supervised:
    """A supervisor of the small server, which a script on disk starts."""

    lab: ClientServer
    directory: Path
    manager: Manager
    program: Program = field(init=False)

    @property
    def script(self) -> Path:
        return self.directory / "serve"

    def serve_with(self, line: str) -> None:
        """What the next generation does: *line* in a shell, with its number in $1."""
        draft = self.directory / "serve.new"
        draft.write_text(f"{line}\n")
        draft.rename(self.script)

    def serve(self, port: int = 8080) -> None:
        """The next generation is a good one."""
        pidfile = f"{self.directory}/pid-$1"
        self.serve_with(
            f"exec {sys.executable} {SERVER} {port} --reuseport --pidfile {pidfile} --think 0.005"
        )

    def start(self, *options: str) -> Program:
        argv = [*shell.SYNPLUG, "supervise", "--name", "app", "-v", *options]
        argv += ["--", "sh", str(self.script), "{generation}"]
        environment = {
            **os.environ,
            "NOTIFY_SOCKET": str(self.manager.path),
            "WATCHDOG_USEC": "1000000",
        }
        self.program = Program(
            self.lab.server, argv, env=environment, ready=lambda: "READY" in self.manager.states()
        )
        return self.program

    def reload(self) -> shell.Outcome:
        return shell.run(self.lab.server, "reload", "app")

    def pid(self, generation: int) -> int:
        return int((self.directory / f"pid-{generation}").read_text())

    def generations(self) -> set[int]:
        """The servers that live in the namespace."""
        found = set()
        for pid in self.lab.server.pids():
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if str(SERVER).encode() in words or b"sleep" in words:
                found.add(pid)
        return found

    def zombies(self) -> list[int]:
        """Children of the supervisor that nobody has collected."""
        children = Path(f"/proc/{self.program.pid}/task/{self.program.pid}/children").read_text()
        states = {pid: Path(f"/proc/{pid}/stat").read_text() for pid in map(int, children.split())}
        return [pid for pid, stat in states.items() if stat.rpartition(")")[2].split()[0] == "Z"]


@pytest.fixture
def app(lab: ClientServer, tmp_path: Path) -> Iterator[Supervised]:
    made = Supervised(lab=lab, directory=tmp_path, manager=Manager(tmp_path / "notify"))
    made.serve()
    yield made
    made.manager.close()
    assert not made.generations(), "a generation was orphaned"


def test_ten_reloads_under_load_with_bad_ones_among_them(app: Supervised) -> None:
    targets = [(address, 8080) for address in app.lab.server_addresses]
    with app.start("--ready-timeout", "3s", "--linger", "2s"):
        with Load(app.lab.client, targets, rate_per_s=RATE_PER_S) as load:
            for _ in range(5):
                assert app.reload().status == 0, app.program.output
            before = app.pid(6)
            for line in ("exit 7", "exec sleep 100"):
                app.serve_with(line)
                failed = app.reload()
                assert failed.status == 125, failed
                assert "generation 6 serves on" in failed.stderr
            app.serve(port=8081)
            failed = app.reload()
            assert failed.status == 125
            assert "does not listen on" in failed.stderr
            assert app.generations() == {before}, "a bad generation was left"
            app.serve()
            for _ in range(5):
                assert app.reload().status == 0, app.program.output
            result = load.stop()
        wait_until(lambda: len(app.generations()) == 1, 10, "old generations have ended")
        assert app.zombies() == []
        assert app.program.end(signal.SIGTERM) == 0, app.program.output
        print(result.summary(), re.findall(r"for (\d+ ms) by", app.program.output))
    assert result.failures == 0, result.summary()
    assert result.retransmitted == 0, result.summary()


def test_the_control_without_a_hold_loses_somebody(app: Supervised) -> None:
    """The same overlap by hand: the old one is told to end while clients are in its queue."""
    lab, server = app.lab, [sys.executable, str(SERVER), "8080", "--reuseport"]
    server += ["--think", "0.005"]
    targets = [(address, 8080) for address in lab.server_addresses]
    endpoint = [("::", 8080)]
    old = Program(lab.server, server, listens_on=endpoint)
    failures = 0
    with old, Load(lab.client, targets, rate_per_s=RATE_PER_S) as load:
        for _ in range(10):
            pids = app.generations()
            with_both = lab.server.popen(server)
            wait_until(lambda: _listeners(lab) == 2, 10, "both stand")
            for pid in pids:
                os.kill(pid, signal.SIGTERM)
            wait_until(lambda: _listeners(lab) == 1, 10, "the old one is gone")
        failures = load.stop().failures
        with_both.terminate()
        with_both.wait()
    assert failures > 0, "the control lost nobody: the test shows nothing"


def test_three_reloads_at_once_are_two_swaps(app: Supervised) -> None:
    """The first begins at once; the others ask for one that begins after them."""
    with app.start("--linger", "1s"):
        wait_until(lambda: app.program.pid != 0, 1, "started")
        for _ in range(3):
            app.program.send_signal(Signals.SIGHUP)
            _pass_time(0.03)
        wait_until(lambda: app.manager.states().count("READY") == 3, 15, "two reloads have ended")
        assert app.reload().status == 0
        assert app.manager.states() == ["READY", *["RELOADING", "READY"] * 3]
        assert app.program.end(signal.SIGTERM) == 0


def test_what_the_manager_is_told(app: Supervised) -> None:
    with app.start():
        began_us = time.monotonic_ns() // 1000
        assert app.reload().status == 0
        app.serve_with("exit 7")
        assert app.reload().status == 125
        wait_until(
            lambda: sum("WATCHDOG" in one for one in app.manager.heard) >= 2, 5, "signs of life"
        )
        assert app.program.end(signal.SIGTERM) == 0
    assert app.manager.states() == ["READY", *["RELOADING", "READY"] * 2, "STOPPING"]
    reloading = [one for one in app.manager.heard if "RELOADING" in one]
    assert began_us < int(reloading[0]["MONOTONIC_USEC"]) < time.monotonic_ns() // 1000
    ready = [one["STATUS"] for one in app.manager.heard if "READY" in one]
    assert ready[:2] == ["generation 1 serves", "generation 2 serves"]
    assert "generation 2 serves; the last reload failed" in ready[2]


def test_generations_have_their_number_and_not_the_managers_socket(app: Supervised) -> None:
    with app.start():
        environment = Path(f"/proc/{app.pid(1)}/environ").read_bytes().split(b"\0")
        assert b"SYNPLUG_GENERATION=1" in environment
        assert not [one for one in environment if one.startswith((b"NOTIFY_", b"WATCHDOG_"))]
        assert app.program.end(signal.SIGTERM) == 0


def test_a_generation_that_dies_ends_the_supervisor_with_its_status(app: Supervised) -> None:
    with app.start():
        assert app.reload().status == 0
        os.kill(app.pid(2), signal.SIGSEGV)
        assert app.program.wait() == 128 + signal.SIGSEGV


def test_a_first_generation_that_does_not_come_up(app: Supervised) -> None:
    app.serve_with("exit 7")
    outcome = shell.run(
        app.lab.server, "supervise", "--name", "app", "--", "sh", str(app.script), "1"
    )
    assert outcome.status == 7


@pytest.mark.parametrize("number", [Signals.SIGTERM, Signals.SIGINT])
def test_a_signal_during_a_swap_ends_everything(app: Supervised, number: Signals) -> None:
    with app.start("--ready-timeout", "20s"):
        app.serve_with("exec sleep 100")
        app.program.send_signal(Signals.SIGHUP)
        wait_until(lambda: len(app.generations()) == 2, 10, "the new generation is there")
        assert app.program.end(number) == 0, app.program.output


def test_a_daemon_that_leaves_its_first_process_is_followed(app: Supervised) -> None:
    """Orphans come to the supervisor, which knows whose they are, and collects them."""
    server = f"{sys.executable} {SERVER} 8080 --reuseport"
    app.serve_with(f"setsid {server} --pidfile {app.directory}/pid-$1 </dev/null &")
    with app.start("--linger", "1s"):
        for _ in range(2):
            assert app.reload().status == 0, app.program.output
        wait_until(lambda: app.generations() == {app.pid(3)}, 10, "only the last one lives")
        wait_until(lambda: not app.zombies(), 5, "all are collected")
        assert app.program.end(signal.SIGTERM) == 0


def test_a_second_supervisor_of_that_name_is_refused(app: Supervised) -> None:
    with app.start():
        argv = ("supervise", "--name", "app", "--", "true")
        outcome = shell.run(app.lab.server, *argv)
        assert outcome.status == 125
        assert "a supervisor named 'app' runs" in outcome.stderr
        assert connects_within(app.lab.client, (app.lab.server_ipv4, 8080), 2.0)
        assert app.program.end(signal.SIGTERM) == 0
    assert shell.run(app.lab.server, "reload", "app").status == 3


def _listeners(lab: ClientServer) -> int:
    return len(lab.server.run(["ss", "-Htln", "sport = :8080"]).stdout.splitlines())


def _pass_time(seconds: float) -> None:
    """Signals in the order and at the distance that the test is about."""
    until = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= until, seconds + 5, "some time")
