"""When the hold ends: slow starters, probes, and health checks that use the held endpoint."""

from __future__ import annotations

import shlex
import sys

import pytest

from netlab.load import Load
from netlab.topology import ClientServer
from tests.integration import shell
from tests.integration.conftest import SimpleService

#: A health check as operators write them: tries until it succeeds, a second a try.
_HEALTH_CHECK = """
import sys, time, urllib.request
deadline = time.monotonic() + 8
while time.monotonic() < deadline:
    try:
        urllib.request.urlopen(sys.argv[1], timeout=1).read()
    except OSError:
        time.sleep(0.02)
    else:
        sys.exit(0)
sys.exit(1)
"""
_CHECK_ONCE = """
import sys, urllib.request
try:
    urllib.request.urlopen(sys.argv[1], timeout=5).read()
except OSError as error:
    print(error)
    sys.exit(1)
"""


def test_a_service_that_binds_long_after_its_start_command_returned(
    lab: ClientServer, simple: SimpleService
) -> None:
    """Held for longer than clients take to retransmit: later copies are dropped, and counted."""
    with Load(lab.client, simple.targets(lab), rate_per_s=200) as load:
        command = simple.restart_argv("--delay", "2.5")
        outcome = shell.wrap(lab.server, ["-p", "8080"], command)
        result = load.stop()
    assert outcome.status == 0, outcome
    hold = outcome.report["hold"]
    assert hold["duration_s"] > 2.5
    assert hold["duplicates"] > 100, "clients retransmit after a second"
    assert hold["released"] == hold["held"]
    assert result.failures == 0, result.summary()


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_ready_http_passes_the_hold(lab: ClientServer, simple: SimpleService, host: str) -> None:
    options = ["-p", "8080", "--ready-http", f"http://{host}:8080/health", "--max-hold", "8s"]
    with Load(lab.client, simple.targets(lab), rate_per_s=100) as load:
        outcome = shell.wrap(lab.server, options, simple.restart_argv("--delay", "0.3"))
        result = load.stop()
    assert outcome.status == 0, outcome
    assert outcome.report["hold"]["duration_s"] < 3
    assert result.failures == 0, result.summary()


def test_ready_http_that_never_passes(lab: ClientServer, simple: SimpleService) -> None:
    options = ["-p", "8080", "--ready-http", "http://127.0.0.1:8081/", "--max-hold", "2s"]
    outcome = shell.wrap(lab.server, options, simple.restart_argv())
    assert outcome.status == 124
    assert "readiness check did not pass" in " ".join(outcome.report["warnings"])


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_a_ready_command_that_connects_to_the_held_endpoint(
    lab: ClientServer, simple: SimpleService, host: str
) -> None:
    check = shlex.join([sys.executable, "-c", _CHECK_ONCE, f"http://{host}:8080/health"])
    options = ["-p", "8080", "--ready-cmd", check, "--max-hold", "8s"]
    outcome = shell.wrap(lab.server, options, simple.restart_argv("--delay", "0.3"))
    assert outcome.status == 0, outcome
    hold = outcome.report["hold"]
    assert hold["let_through"] >= 1
    assert hold["duration_s"] < 3, "it must not wait for its own release"


def test_a_command_with_a_health_check_of_its_own(lab: ClientServer, simple: SimpleService) -> None:
    """The check begins before the service listens: refused then, as without a hold."""
    check = shlex.join([sys.executable, "-c", _HEALTH_CHECK, "http://127.0.0.1:8080/health"])
    restart = simple.restart_argv("--delay", "0.7")
    # Released only when the command has ended well, which waits for its check.
    command = ["sh", "-c", f"{restart[2]}\n{check}"]
    options = ["-p", "8080", "--max-hold", "9s", "--ready-cmd", "true"]
    with Load(lab.client, simple.targets(lab), rate_per_s=100) as load:
        outcome = shell.wrap(lab.server, options, command)
        result = load.stop()
    assert outcome.status == 0, outcome
    assert outcome.report["hold"]["let_through"] >= 1
    assert outcome.report["hold"]["duration_s"] < 3
    assert result.failures == 0, result.summary()


def test_a_first_start_is_allowed_with_a_warning(lab: ClientServer, simple: SimpleService) -> None:
    first = SimpleService(
        namespace=simple.namespace, directory=simple.directory / "first", port=8088
    )
    first.directory.mkdir()
    outcome = shell.wrap(lab.server, ["-p", "8088"], first.start_argv("--delay", "0.3"))
    assert outcome.status == 0, outcome
    assert "nobody listened on *:8088" in " ".join(outcome.report["warnings"])


def test_without_a_new_listener_require_new_waits(lab: ClientServer, simple: SimpleService) -> None:
    options = ["-p", "8080", "--require-new", "--max-hold", "900ms"]
    assert shell.wrap(lab.server, options, ["true"]).status == 124
    options = ["-p", "8080", "--settle", "50ms"]
    assert shell.wrap(lab.server, options, ["true"]).status == 0


def test_a_port_named_by_mistake_does_not_keep_the_others_waiting(
    lab: ClientServer, simple: SimpleService
) -> None:
    with Load(lab.client, simple.targets(lab), rate_per_s=100) as load:
        outcome = shell.wrap(lab.server, ["-p", "8080,8081"], simple.restart_argv())
        result = load.stop()
    assert outcome.status == 0, outcome
    assert outcome.report["hold"]["duration_s"] < 3
    assert "nobody listens on *:8081 after the command" in outcome.report["warnings"]
    assert "nobody listens on *:8081 so far" in outcome.stderr
    assert result.failures == 0, result.summary()


_DRIPS = """
import socket, sys, time
ear = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    guest, _ = ear.accept()
    guest.sendall(b"HTTP/1.1 200 OK\\r\\n")
    try:
        while True:
            guest.sendall(b"X-Drop: x\\r\\n")
            time.sleep(0.1)
    except OSError:
        pass
"""


def test_an_answer_that_comes_in_drops_does_not_outlast_the_timeout(
    lab: ClientServer, simple: SimpleService
) -> None:
    dripping = lab.server.popen([sys.executable, "-S", "-c", _DRIPS, "8081"])
    try:
        options = ["-p", "8080", "--ready-http", "http://127.0.0.1:8081/", "--ready-timeout", "1s"]
        outcome = shell.run(
            lab.server, "wrap", "--json", "-", *options, "--", *simple.restart_argv(), timeout_s=20
        )
    finally:
        dripping.kill()
        dripping.wait()
    assert outcome.status == 124, outcome
    assert outcome.report["hold"]["duration_s"] < 5
