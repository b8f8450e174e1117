"""What the old listener still has when new connections are held: its queues, its requests."""

from __future__ import annotations

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
