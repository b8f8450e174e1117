"""What the old listener still has when new connections are held: its queues, its requests."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from netlab.load import Load
from netlab.load_result import LoadResult
from netlab.program import wait_until
from netlab.topology import ClientServer
from tests.integration import shell
from tests.integration.conftest import SimpleService
from tests.integration.shell import Outcome

RESTARTS = 3


def test_requests_in_flight_are_finished_before_the_command(
    lab: ClientServer, simple: SimpleService
) -> None:
    """A server that dies at once on SIGTERM, with 60 ms of work in each request."""
    options = ["--think", "0.06"]
    _restart_with(simple, *options)
    control, _ = _restarts(lab, simple, ["--quiesce", "0"], options)
    kept, outcomes = _restarts(lab, simple, [], options)
    assert control.early_closed + control.reset > 0, "the control cut nobody off"
    assert kept.failures == 0, kept.summary()
    for outcome in outcomes:
        assert outcome.report["drain"] == {"empty": True, "left": 0, "quiet": True, "busy": 0}
        assert outcome.report["phases"][0]["name"] == "arm"


_SPEAK_LATE = """
import socket, sys, threading, time
lost = []
def meet(until_s):
    while time.monotonic() < until_s:
        with socket.create_connection((sys.argv[1], 8080), timeout=10) as made:
            time.sleep(0.3)
            try:
                made.sendall(b"GET / HTTP/1.1\\r\\n\\r\\n")
                lost.append(not made.recv(4096))
            except ConnectionError:
                lost.append(True)
began_s = time.monotonic()
threads = [threading.Thread(target=meet, args=(began_s + float(sys.argv[2]),)) for _ in range(20)]
for thread in threads:
    thread.start()
    time.sleep(0.015)
for thread in threads:
    thread.join()
print(sum(lost), len(lost))
"""


def test_who_speaks_a_moment_after_connecting_is_waited_for(
    lab: ClientServer, simple: SimpleService
) -> None:
    """As when a first request is lost on its way; of the late ones some are always silent."""
    options = ["--think", "0.001"]
    _restart_with(simple, *options)
    lost = {}
    for quiesce in ("0", "1s"):
        argv = [sys.executable, "-c", _SPEAK_LATE, lab.server_ipv4, "3"]
        with lab.client.popen(argv, stdout=subprocess.PIPE) as clients:
            time.sleep(1.0)
            command = simple.restart_argv(*options)
            wrapped = shell.wrap(lab.server, ["-p", "8080", "--quiesce", quiesce], command)
            said, _ = clients.communicate(timeout=20)
        assert wrapped.status == 0, wrapped
        lost[quiesce], met = map(int, said.split())
        assert met > 40, said
    assert lost["0"] > 0, "the control cut nobody off"
    assert lost["1s"] == 0, lost


def test_the_accept_queue_runs_empty_before_the_command(
    lab: ClientServer, simple: SimpleService
) -> None:
    """A server that takes one connection every 4 ms, with 200 a second coming: some queue up."""
    options = ["--lazy", "0.004"]
    _restart_with(simple, *options)
    hasty = ["--drain-timeout", "0", "--quiesce", "0"]
    control, hasty_outcomes = _restarts(lab, simple, hasty, options, rate_per_s=220)
    kept, _ = _restarts(lab, simple, [], options, rate_per_s=220)
    assert control.reset > 0, "the control reset nobody"
    assert any(outcome.report["drain"]["left"] for outcome in hasty_outcomes)
    assert any("old listener's queues" in outcome.stderr for outcome in hasty_outcomes)
    assert kept.failures == 0, kept.summary()


def test_a_listener_that_never_runs_empty(lab: ClientServer, simple: SimpleService) -> None:
    """It takes a connection every 5 s: proceed, or abort, as was asked for."""
    _restart_with(simple, "--lazy", "5")
    with Load(lab.client, simple.targets(lab), rate_per_s=50, timeout_s=1, expect_ready=False):
        wait_until(lambda: _queued(lab) > 3, 10, "connections wait in its accept queue")
        options = ["-p", "8080", "--drain-timeout", "200ms", "--quiesce", "0"]
        aborted = shell.wrap(lab.server, [*options, "--on-drain-timeout", "abort"], ["true"])
        proceeded = shell.wrap(lab.server, [*options, "--settle", "0"], ["true"])
    assert aborted.status == 125
    assert aborted.report["command"]["ran"] is False
    assert "still in the old listener's queues" in aborted.stderr
    assert aborted.report["hold"]["duration_s"] < 1.0, "released at once"
    assert proceeded.status == 0
    assert proceeded.report["drain"]["left"] > 3
    assert "still in the old listener's queues" in " ".join(proceeded.report["warnings"])


_STUCK = """
import socket, sys
made = [socket.create_connection((sys.argv[1], int(sys.argv[2]))) for _ in range(5)]
print("connected", flush=True)
sys.stdin.read()
"""


def test_a_stuck_neighbour_on_the_same_port_delays_nothing(
    lab: ClientServer, simple: SimpleService, tmp_path: Path
) -> None:
    """Two services on port 8080, each at its own address; the neighbour accepts no more."""
    _restart_with(simple, "--address", lab.server_ipv4)
    (tmp_path / "neighbour").mkdir()
    neighbour = SimpleService(namespace=lab.server, directory=tmp_path / "neighbour")
    lab.server.run(neighbour.start_argv("--address", "127.0.0.1", "--lazy", "60"))
    wait_until(neighbour.listens, 10, "the neighbour listens")
    argv = [sys.executable, "-c", _STUCK, "127.0.0.1", "8080"]
    with lab.server.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as stuck:
        assert stuck.stdout is not None
        assert stuck.stdout.readline() == "connected\n"
        hasty = ["--drain-timeout", "100ms", "--quiesce", "100ms", "--settle", "0"]
        control = shell.wrap(lab.server, ["-p", "127.0.0.1:8080", *hasty], ["true"])
        before = simple.pid
        command = simple.restart_argv("--address", lab.server_ipv4)
        kept = shell.wrap(lab.server, ["-p", f"{lab.server_ipv4}:8080"], command)
        wait_until(lambda: simple.pid != before, 10, "it listens anew")
        stuck.communicate(timeout=10)
    assert control.report["drain"]["left"] >= 4, "the neighbour was not stuck"
    assert control.report["drain"]["busy"] >= 4, "the neighbour was not stuck"
    assert kept.status == 0, kept
    assert kept.report["drain"] == {"empty": True, "left": 0, "quiet": True, "busy": 0}
    (drain,) = [phase for phase in kept.report["phases"] if phase["name"] == "drain"]
    assert drain["duration_s"] < 0.5, "it waited for the neighbour's connections"


def _restart_with(simple: SimpleService, *options: str) -> None:
    before = simple.pid
    simple.namespace.run(simple.restart_argv(*options))
    wait_until(lambda: simple.pid != before and simple.listens(), 10, "it listens anew")


def _restarts(
    lab: ClientServer,
    simple: SimpleService,
    wrap_options: list[str],
    server_options: list[str],
    rate_per_s: int = 300,
) -> tuple[LoadResult, list[Outcome]]:
    outcomes = []
    with Load(lab.client, simple.targets(lab), rate_per_s=rate_per_s) as load:
        for _ in range(RESTARTS):
            before = simple.pid
            command = simple.restart_argv(*server_options)
            outcomes.append(shell.wrap(lab.server, ["-p", "8080", *wrap_options], command))
            assert outcomes[-1].status == 0, outcomes[-1]
            wait_until(lambda: simple.pid != before, 10, "it listens anew")  # noqa: B023
        return load.stop(), outcomes


def _queued(lab: ClientServer) -> int:
    """Connections in the accept queues, as ss(8) shows them."""
    lines = lab.server.run(["ss", "-Htln", "sport = :8080"]).stdout.splitlines()
    return sum(int(line.split()[1]) for line in lines)
