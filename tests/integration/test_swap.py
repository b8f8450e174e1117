"""Swaps that go wrong, and what the clients see of it: nothing."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from netlab.load import Load
from netlab.program import Program, wait_until
from netlab.topology import ClientServer
from tests.integration import shell
from tests.integration.conftest import SERVER
from tests.integration.connect import connects_within

RATE_PER_S = 300


def server(*options: str, port: int = 8080) -> list[str]:
    return [sys.executable, str(SERVER), str(port), "--think", "0.005", *options]


@pytest.fixture
def old(lab: ClientServer) -> Iterator[Program]:
    """The generation that serves, and that must outlive every failure."""
    with Program(lab.server, server("--reuseport"), listens_on=[("::", 8080)]) as program:
        yield program


def swap(lab: ClientServer, old: Program, options: list[str], new: list[str]) -> shell.Outcome:
    """Swap under load, in which nobody may be lost."""
    targets = [(address, 8080) for address in lab.server_addresses]
    with Load(lab.client, targets, rate_per_s=RATE_PER_S) as load:
        outcome = shell.run(lab.server, "swap", "--old-pid", str(old.pid), *options, "--", *new)
        result = load.stop()
    assert result.failures == 0, result.summary()
    assert result.retransmitted == 0, result.summary()
    assert old.returncode is None, "the old generation was ended"
    assert len(_servers(lab)) == 1, "the new generation was left"
    return outcome


@pytest.mark.parametrize(
    ("new", "status", "said"),
    [
        (server(), 1, "both must listen with SO_REUSEPORT"),
        (["sh", "-c", "exit 7"], 7, "ended by itself with status 7"),
        (["sleep", "100"], 124, "does not listen on 0.0.0.0:8080"),
        (server("--reuseport", port=8081), 124, "does not listen on 0.0.0.0:8080"),
        (["/nowhere/app"], 127, "not found"),
    ],
    ids=["no SO_REUSEPORT", "ends", "hangs", "other port", "no such command"],
)
def test_a_new_generation_that_fails_is_ended(
    lab: ClientServer, old: Program, new: list[str], status: int, said: str
) -> None:
    outcome = swap(lab, old, ["--ready-timeout", "1s"], new)
    assert outcome.status == status, outcome
    assert said in outcome.stderr


def test_one_that_stands_but_is_not_ready_closes_like_an_old_one(
    lab: ClientServer, old: Program
) -> None:
    """It has its share of the clients by then."""
    options = ["--ready-cmd", "false", "--ready-timeout", "1s"]
    outcome = swap(lab, old, options, server("--reuseport"))
    assert outcome.status == 124, outcome
    assert "the new generation was not ready in time, exit 124" in outcome.stderr
    assert "readiness check did not pass" in outcome.stderr
    assert "connections waited" in outcome.stderr


def test_a_check_that_fails_starts_nothing(lab: ClientServer, old: Program, tmp_path: Path) -> None:
    outcome = swap(lab, old, ["--check", "false"], ["touch", str(tmp_path / "started")])
    assert outcome.status == 125, outcome
    assert not (tmp_path / "started").exists()


def test_a_signal_before_the_stop_gives_it_up(lab: ClientServer, old: Program) -> None:
    argv = ["swap", "--old-pid", str(old.pid), "--", "sleep", "100"]
    running = shell.start(lab.server, *argv)
    wait_until(lambda: _names(lab, "sleep") != [], 10, "the new generation is there")
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=20)
    assert running.returncode == 128 + signal.SIGTERM, said
    assert _names(lab, "sleep") == []
    assert connects_within(lab.client, (lab.server_ipv4, 8080), 2.0)


def test_a_dry_run_changes_nothing(lab: ClientServer, old: Program) -> None:
    outcome = swap(lab, old, ["--dry-run"], server("--reuseport"))
    assert outcome.status == 0, outcome
    assert "changing nothing now" in outcome.stdout
    assert f"stop process {old.pid} by SIGTERM" in outcome.stdout


def test_a_listener_that_somebody_keeps_is_refused(lab: ClientServer, old: Program) -> None:
    """It would not close with the old generation."""
    keeper = [sys.executable, "-c", _KEEP, str(old.pid)]
    with Program(lab.server, keeper) as other:
        wait_until(lambda: "have it" in other.output, 10, "somebody else has the listener open")
        outcome = swap(lab, old, [], server("--reuseport"))
    assert outcome.status == 125, outcome
    assert f"(pid {other.pid}), too" in outcome.stderr


#: Copies the listener of another process: pidfd_getfd(2), 438; its descriptor is the first socket.
_KEEP = """
import ctypes, os, signal, sys
pid = int(sys.argv[1])
links = {int(fd): os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
first = min(fd for fd, link in links.items() if link.startswith("socket:"))
mine = ctypes.CDLL(None, use_errno=True).syscall(438, os.pidfd_open(pid), first, 0)
assert mine >= 0, os.strerror(ctypes.get_errno())
print("have it", flush=True)
signal.pause()
"""


def _names(lab: ClientServer, name: str) -> list[int]:
    found = []
    for pid in lab.server.pids():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if os.path.basename(words[0]).decode() == name:
            found.append(pid)
    return found


def _servers(lab: ClientServer) -> list[int]:
    return [
        pid
        for pid in lab.server.pids()
        if str(SERVER).encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    ] + _names(lab, "sleep")
