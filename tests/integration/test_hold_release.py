"""``synplug hold`` and ``synplug release``: the restart is the script's own."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from netlab.load import Load
from netlab.program import wait_until
from netlab.topology import ClientServer
from tests.integration import shell
from tests.integration.conftest import SimpleService
from tests.integration.connect import connecting, connects_within, holds_in_force

BACKENDS = ["nfqueue", "nfqueue-iptables"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_restart_by_a_script_loses_nothing(
    lab: ClientServer, simple: SimpleService, backend: str
) -> None:
    with Load(lab.client, simple.targets(lab), rate_per_s=300) as load:
        for _ in range(5):
            _hold(lab, "--backend", backend)
            lab.server.run(["sh", "-c", simple.stop_line()])
            lab.server.run(simple.start_argv("--delay", "0.2"))
            released = _release(lab)
            assert released["outcome"] == "ready"
            assert released["hold"]["held"] > 0
        result = load.stop()
    assert result.failures == 0, result.summary()


def test_the_same_script_without_a_hold_loses(lab: ClientServer, simple: SimpleService) -> None:
    with Load(lab.client, simple.targets(lab), rate_per_s=300) as load:
        lab.server.run(["sh", "-c", simple.stop_line()])
        lab.server.run(simple.start_argv("--delay", "0.2"))
        wait_until(simple.listens, 5, "it listens again")
        result = load.stop()
    assert result.failures > 0


_LISTENERS = 1500
_MANY = """
import resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
kept = []
for _ in range(int(sys.argv[2])):
    kept.append(socket.socket(socket.AF_INET6))
    kept[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    kept[-1].bind(("::", int(sys.argv[1])))
    kept[-1].listen(16)
print("listening", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_there_may_be_many_listeners(lab: ClientServer, backend: str) -> None:
    service = lab.server.popen(
        [sys.executable, "-S", "-c", _MANY, "8080", str(_LISTENERS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert service.stdin is not None
    assert service.stdout is not None
    assert service.stdout.readline() == "listening\n"
    _hold(lab, "--backend", backend)
    waiting = connecting(lab.client, (lab.server_ipv4, 8080), 10)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(timeout=0.5)
    report = _release(lab, "--now")
    assert len(report["old_listeners"]) == _LISTENERS
    assert float(waiting.communicate(timeout=10)[0]) < 5
    service.stdin.close()
    assert service.wait(10) == 0
    service.stdout.close()


def test_it_is_held_when_hold_returns_and_the_keeper_needs_nobody(
    lab: ClientServer, simple: SimpleService
) -> None:
    _hold(lab)
    assert not connects_within(lab.client, (lab.server_ipv6, 8080), 0.3)
    (entry,) = holds_in_force(lab.server)
    assert entry["name"] == "web"
    assert os.getsid(entry["keeper"]) == entry["keeper"], "a session of its own"
    waiting = connecting(lab.client, (lab.server_ipv4, 8080), 5)
    time.sleep(0.3)
    report = _release(lab)
    assert report["hold"]["reason"] == "asked"
    assert float(waiting.communicate(timeout=10)[0]) < 1.0, "it was let go, not dropped"
    assert not holds_in_force(lab.server)


def test_release_waits_for_the_listener(lab: ClientServer, simple: SimpleService) -> None:
    _hold(lab)
    lab.server.run(["sh", "-c", simple.stop_line()])
    waiting = connecting(lab.client, (lab.server_ipv4, 8080), 8)
    release = shell.start(lab.server, "release", "--name", "web", "--json", "-")
    with pytest.raises(subprocess.TimeoutExpired):
        release.wait(timeout=1.0)
    lab.server.run(simple.start_argv())
    stdout, stderr = release.communicate(timeout=10)
    assert release.returncode == 0, stderr
    assert json.loads(stdout)["readiness"] == "replaced"
    assert float(waiting.communicate(timeout=10)[0]) < 8


def test_release_now_does_not_wait(lab: ClientServer, simple: SimpleService) -> None:
    _hold(lab)
    lab.server.run(["sh", "-c", simple.stop_line()])
    waiting = connecting(lab.client, (lab.server_ipv4, 8080), 8)
    time.sleep(0.3)
    report = _release(lab, "--now")
    assert waiting.communicate(timeout=5)[0].strip() == "ConnectionRefusedError"
    assert any("nobody listens" in warning for warning in report["warnings"])


def test_a_probe_of_the_release_passes_the_hold(lab: ClientServer, simple: SimpleService) -> None:
    _hold(lab)
    url = f"http://{lab.server_ipv4}:8080/"
    report = _release(lab, "--ready-http", url, "--ready-cmd", f"curl -sf -o /dev/null {url}")
    assert report["outcome"] == "ready"
    assert report["hold"]["let_through"] >= 1


def test_the_deadline_ends_it_and_release_says_so(lab: ClientServer, simple: SimpleService) -> None:
    _hold(lab, max_hold="700ms")
    keeper = holds_in_force(lab.server)[0]["keeper"]
    wait_until(lambda: not _runs(keeper), 5, "the keeper has ended")
    assert connects_within(lab.client, (lab.server_ipv4, 8080), 0.5)
    late = shell.run(lab.server, "release", "--name", "web")
    assert late.status == 3
    assert "no hold named 'web'" in late.stderr
    assert "deadline" in late.stderr


def test_release_that_is_overtaken_by_the_deadline(
    lab: ClientServer, simple: SimpleService
) -> None:
    _hold(lab, max_hold="1500ms")
    lab.server.run(["sh", "-c", simple.stop_line()])
    late = shell.run(lab.server, "release", "--name", "web", "--json", "-")
    assert late.status == 124
    assert late.report["hold"]["reason"] == "deadline"


def test_a_second_release_hurries_the_first_and_nobody_is_dropped(
    lab: ClientServer, simple: SimpleService
) -> None:
    """The first paces for a listener that accepts nobody; --now of the second lets go."""
    lab.server.run(simple.restart_argv("--backlog", "2", "--lazy", "60"))
    wait_until(simple.listens, 10, "it listens")
    _hold(lab, "--drain-timeout", "0", "--quiesce", "0", max_hold="40s")
    clients = [connecting(lab.client, (lab.server_ipv4, 8080), 20) for _ in range(8)]
    time.sleep(0.5)
    first = shell.start(lab.server, "release", "--name", "web", "--json", "-")
    with pytest.raises(subprocess.TimeoutExpired):
        first.wait(timeout=3.0)
    second = shell.run(lab.server, "release", "--name", "web", "--now", "--json", "-")
    assert second.status == 0, second
    stdout, stderr = first.communicate(timeout=10)
    assert first.returncode == 0, stderr
    assert json.loads(stdout)["hold"] == second.report["hold"]
    assert second.report["hold"]["released"] == second.report["hold"]["held"]
    assert second.report["hold"]["duration_s"] < 30, "hurried, and not ended by the deadline"
    for client in clients:
        client.kill()
        client.communicate()


def test_release_waits_for_every_address_that_was_served(
    lab: ClientServer, simple: SimpleService
) -> None:
    """Two listeners on one port; only one is back: the other is waited for, and then named."""
    lab.server.run(["sh", "-c", simple.stop_line()])
    both = [_listening(lab, host) for host in (lab.server_ipv4, lab.server_ipv6)]
    _hold(lab)
    for process in both:
        process.kill()
        process.communicate()
    back = _listening(lab, lab.server_ipv4)
    release = shell.start(lab.server, "release", "--name", "web", "--json", "-")
    with pytest.raises(subprocess.TimeoutExpired):
        release.wait(timeout=1.5)
    late = _listening(lab, lab.server_ipv6)
    stdout, stderr = release.communicate(timeout=10)
    assert release.returncode == 0, stderr
    assert json.loads(stdout)["readiness"] == "replaced"
    for process in (back, late):
        process.kill()
        process.communicate()


def test_release_without_a_restart_says_that_nothing_changed(
    lab: ClientServer, simple: SimpleService
) -> None:
    _hold(lab)
    assert _release(lab)["readiness"] == "settled"


def test_a_probe_that_is_never_answered_does_not_delay_the_release(
    lab: ClientServer, simple: SimpleService
) -> None:
    """--ready-timeout is kept, whatever the probe waits for."""
    lab.server.run(simple.restart_argv("--lazy", "60", "--think", "60"))
    wait_until(simple.listens, 10, "it listens")
    _hold(lab, "--quiesce", "0")
    url = f"http://{lab.server_ipv4}:8080/"
    options = ["--name", "web", "--ready-http", url, "--ready-timeout", "600ms", "--json", "-"]
    outcome = shell.run(lab.server, "release", *options)
    assert outcome.status == 124
    ready = [phase for phase in outcome.report["phases"] if phase["name"] == "ready"]
    release = [phase for phase in outcome.report["phases"] if phase["name"] == "release"]
    assert release[0]["start_s"] - ready[0]["start_s"] < 1.2


def test_a_probe_that_cannot_be_run_is_said_before_anything(
    lab: ClientServer, simple: SimpleService
) -> None:
    _hold(lab)
    outcome = shell.run(lab.server, "release", "--name", "web", "--ready-cmd", "/no/such")
    assert outcome.status == 127
    assert len(holds_in_force(lab.server)) == 1
    _release(lab)


def test_a_busy_lock_of_iptables_at_the_deadline_makes_nobody_wait(
    lab: ClientServer, simple: SimpleService
) -> None:
    _hold(lab, "--backend", "nfqueue-iptables", max_hold="2s")
    keeper = holds_in_force(lab.server)[0]["keeper"]
    busy = lab.server.popen(["flock", "/run/xtables.lock", "sleep", "3.5"])
    waiting = connecting(lab.client, (lab.server_ipv4, 8080), 10)
    assert float(waiting.communicate(timeout=15)[0]) < 2.3, "let go at the deadline, not dropped"
    assert connects_within(lab.client, (lab.server_ipv4, 8080), 0.5), "and newcomers with them"
    busy.wait()
    wait_until(lambda: not _runs(keeper), 5, "the keeper has removed the rest")


def test_a_lock_of_iptables_that_stays_busy_holds_nobody_and_is_told(
    lab: ClientServer, simple: SimpleService
) -> None:
    """Longer than it is waited for; the rule lets all pass meanwhile."""
    _hold(lab, "--backend", "nfqueue-iptables", max_hold="20s")
    keeper = holds_in_force(lab.server)[0]["keeper"]
    waiting = connecting(lab.client, (lab.server_ipv4, 8080), 10)
    queue = "/proc/net/netfilter/nfnetlink_queue"
    wait_until(lambda: lab.server.run(["cat", queue]).stdout.split()[2:3] == ["1"], 5, "it waits")
    busy = lab.server.popen(["flock", "/run/xtables.lock", "sleep", "9"])
    wait_until(lambda: _is_locked("/run/xtables.lock"), 5, "somebody has the lock")
    run = shell.start(lab.server, "release", "--name", "web", "--json", "-")
    assert float(waiting.communicate(timeout=15)[0]) < 3
    while busy.poll() is None:
        assert connects_within(lab.client, (lab.server_ipv4, 8080), 0.5)
        time.sleep(0.1)
    stdout, stderr = run.communicate(timeout=20)
    report = json.loads(stdout)
    assert (run.returncode, report["outcome"]) == (0, "ready"), stderr
    assert (report["hold"]["lost"], report["hold"]["overflowed"]) == (0, 0)
    assert report["hold"]["held"] == report["hold"]["released"] >= 1
    assert "another program has /run/xtables.lock" in " ".join(report["warnings"])
    wait_until(lambda: not _runs(keeper), 10, "the keeper has removed the rest")


def _is_locked(path: str) -> bool:
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["hold", "-p", "8080", "--name", "web", "--max-hold", "5s"], "a hold named 'web' is"),
        (["hold", "-p", "8080", "--name", "other", "--max-hold", "5s"], "has port 8080"),
        (["wrap", "-p", "8080", "--", "true"], "has port 8080"),
    ],
)
def test_a_second_hold_fails_clearly_and_the_first_stays(
    lab: ClientServer, simple: SimpleService, argv: list[str], words: str
) -> None:
    _hold(lab)
    second = shell.run(lab.server, *argv)
    assert second.status == 125
    assert words in second.stderr
    assert len(second.stderr.splitlines()) == 1 or argv[0] == "wrap"
    assert not connects_within(lab.client, (lab.server_ipv4, 8080), 0.2)
    assert _release(lab)["hold"]["held"] >= 1, "its SYN above"


def test_two_names_side_by_side(lab: ClientServer, simple: SimpleService) -> None:
    _hold(lab)
    other = shell.run(lab.server, "hold", "-p", "9090", "--name", "api", "--max-hold", "9s")
    assert other.status == 0, other
    keepers = [entry["keeper"] for entry in holds_in_force(lab.server)]
    _release(lab)
    assert connects_within(lab.client, (lab.server_ipv4, 8080), 0.5)
    assert [entry["name"] for entry in holds_in_force(lab.server)] == ["api"]
    assert shell.run(lab.server, "release", "--name", "api", "--now").status == 0
    # The keeper of web has waited with its empty table until nobody else held.
    wait_until(lambda: not any(map(_runs, keepers)), 5, "both keepers have ended")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["hold", "-p", "8080", "--name", "web"], "--max-hold"),
        (["hold", "-p", "8080", "--max-hold", "5s"], "--name"),
        (["hold", "--name", "web", "--max-hold", "5s"], "name it with -p"),
        (["hold", "-p", "8080", "--name", "../x", "--max-hold", "5s"], "no name for a hold"),
        (["release", "--name", "../x"], "no name for a hold"),
        (["release"], "--name"),
    ],
)
def test_bad_input_touches_nothing(
    lab: ClientServer, simple: SimpleService, argv: list[str], words: str
) -> None:
    outcome = shell.run(lab.server, *argv)
    assert outcome.status == 125
    assert words in outcome.stderr
    assert outcome.stderr.startswith("synplug: ")


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def _stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


@pytest.mark.parametrize("harm", [_kill, _stop], ids=["killed", "stopped"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_keeper_that_is_harmed_holds_nobody_for_ever(
    lab: ClientServer, simple: SimpleService, harm: Callable[[int], None], backend: str
) -> None:
    _hold(lab, "--backend", backend, max_hold="1s")
    harm(holds_in_force(lab.server)[0]["keeper"])
    time.sleep(1.7)
    assert connects_within(lab.client, (lab.server_ipv4, 8080), 0.5)
    again = shell.run(lab.server, "release", "--name", "web")
    assert again.status == 3, again


def test_a_stopped_keeper_is_not_waited_for(lab: ClientServer, simple: SimpleService) -> None:
    _hold(lab, max_hold="60s")
    os.kill(holds_in_force(lab.server)[0]["keeper"], signal.SIGSTOP)
    outcome = shell.run(lab.server, "release", "--name", "web")
    assert outcome.status == 125
    assert "no longer held" in outcome.stderr
    assert connects_within(lab.client, (lab.server_ipv4, 8080), 0.5)


def test_a_release_that_is_interrupted_leaves_the_hold(
    lab: ClientServer, simple: SimpleService
) -> None:
    _hold(lab)
    lab.server.run(["sh", "-c", simple.stop_line()])
    release = shell.start(lab.server, "release", "--name", "web")
    with pytest.raises(subprocess.TimeoutExpired):
        release.wait(timeout=1.0)
    release.send_signal(signal.SIGINT)
    release.communicate(timeout=10)
    assert release.returncode == 130
    assert len(holds_in_force(lab.server)) == 1
    lab.server.run(simple.start_argv())
    assert _release(lab)["outcome"] == "ready"


def test_a_hold_that_is_killed_while_it_drains_leaves_nothing(
    lab: ClientServer, simple: SimpleService
) -> None:
    """Not left to its keeper yet: the keeper releases, as it does for a run that died."""
    busy = connecting(lab.client, (lab.server_ipv4, 8080), 5)
    busy.communicate()
    lazy = simple.restart_argv("--lazy", "60")
    lab.server.run(lazy)
    wait_until(simple.listens, 5, "it listens")
    clients = [connecting(lab.client, (lab.server_ipv4, 8080), 20) for _ in range(3)]
    time.sleep(0.5)
    options = ["-p", "8080", "--name", "web", "--max-hold", "30s", "--drain-timeout", "20s"]
    hold = shell.start(lab.server, "hold", *options)
    wait_until(lambda: bool(holds_in_force(lab.server)), 10, "it holds")
    hold.kill()
    hold.communicate()
    wait_until(lambda: not holds_in_force(lab.server), 5, "it is released")
    for client in clients:
        client.kill()
        client.communicate()


def _listening(lab: ClientServer, host: str) -> subprocess.Popen[str]:
    """A listener at one address; there when this returns."""
    program = (
        "import socket, sys, time; "
        "s = socket.create_server((sys.argv[1], 8080), "
        "family=socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET); "
        "print('ready', flush=True); time.sleep(60)"
    )
    process = lab.server.popen([sys.executable, "-c", program, host], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def _hold(lab: ClientServer, *options: str, max_hold: str = "20s") -> shell.Outcome:
    argv = ["hold", "-p", "8080", "--name", "web", "--max-hold", max_hold, *options]
    outcome = shell.run(lab.server, *argv)
    assert outcome.status == 0, outcome
    return outcome


def _release(lab: ClientServer, *options: str) -> dict[str, Any]:
    outcome = shell.run(lab.server, "release", "--name", "web", "--json", "-", *options)
    assert outcome.status == 0, outcome
    return outcome.report


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
