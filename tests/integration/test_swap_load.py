"""Swaps of real programs under load: nobody is refused, reset, cut off or kept waiting.

Each case runs its control first: the same swap without synplug, which loses connections.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pytest

from netlab.load import Load
from netlab.load_result import LoadResult
from netlab.program import wait_until
from netlab.servers import Envoy, Gunicorn, HAProxy, Nginx, Service
from netlab.topology import ClientServer, Namespace
from tests.integration import shell

SWAPS = 12
#: A control ends with the first swap that has lost somebody; one that loses nobody shows nothing.
MOST_CONTROL_SWAPS = 24
#: A SYN that is sent again is sent after a second (RFC 6298, 2.1), so this tells them apart.
SLOWEST_CONNECT_MS = 900


class Generations(Protocol):
    """A service that can be started again beside itself."""

    def generation_argv(self, generation: int, /) -> list[str]: ...


@dataclass(frozen=True, kw_only=True)
class Case:
    """A service, how hard it is used, and how its old generation is stopped."""

    name: str
    make: Callable[[Namespace], Service]
    rate_per_s: int
    stop: Callable[[Service, int], Sequence[str]]
    plainly: Callable[[Service, int, int], None]
    control_rate_per_s: int = 0


def post(service: Service, generation: int) -> list[str]:
    assert isinstance(service, Envoy)
    return ["--stop-post", f"unix:{service.admin_socket(generation)}:/drain_listeners"]


def post_plainly(service: Service, pid: int, generation: int) -> None:
    assert isinstance(service, Envoy)
    service.namespace.run(service.drain_argv(generation))


def by_signal(*options: str) -> Callable[[Service, int], Sequence[str]]:
    return lambda _service, _generation: options


def kill(number: signal.Signals) -> Callable[[Service, int, int], None]:
    return lambda _service, pid, _generation: os.kill(pid, number)


SIGTERM = by_signal("--quiesce", "1s")
CASES = [
    Case(
        name="envoy-drain-2000",
        make=Envoy,
        rate_per_s=2000,
        stop=post,
        plainly=post_plainly,
        control_rate_per_s=8000,
    ),
    Case(
        name="envoy-drain-5000",
        make=Envoy,
        rate_per_s=5000,
        stop=post,
        plainly=post_plainly,
        control_rate_per_s=8000,
    ),
    Case(
        name="envoy-sigterm-2000",
        make=Envoy,
        rate_per_s=2000,
        stop=SIGTERM,
        plainly=kill(signal.SIGTERM),
    ),
    Case(
        name="envoy-sigterm-5000",
        make=Envoy,
        rate_per_s=5000,
        stop=SIGTERM,
        plainly=kill(signal.SIGTERM),
    ),
    Case(
        name="haproxy",
        make=HAProxy,
        rate_per_s=3000,
        stop=by_signal("--stop-signal", "USR1"),
        plainly=kill(signal.SIGUSR1),
        control_rate_per_s=8000,
    ),
    Case(
        name="nginx",
        make=lambda namespace: Nginx(namespace, reuseport=True),
        rate_per_s=3000,
        stop=by_signal("--stop-signal", "QUIT"),
        plainly=kill(signal.SIGQUIT),
        control_rate_per_s=8000,
    ),
    Case(
        name="gunicorn",
        make=lambda namespace: Gunicorn(namespace, reuseport=True),
        rate_per_s=300,
        stop=by_signal("--stop-signal", "TERM"),
        plainly=kill(signal.SIGTERM),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_client_notices_a_swap(lab: ClientServer, case: Case) -> None:
    with case.make(lab.server) as service:
        lost = _control(lab, service, case)
        assert lost.failures > 0, f"the control lost nothing: {lost.summary()}"

        kept, reports = _swaps(lab, service, case)

    holds_ms = sorted(report["hold"]["duration_s"] * 1000 for report in reports)
    print(
        f"{case.name}: {len(reports)} swaps, {kept.summary()}; hold median "
        f"{statistics.median(holds_ms):.1f} max {holds_ms[-1]:.1f} ms; "
        f"control: {lost.failures} failures of {lost.attempted}"
    )
    for name in ("ready", "drain", "stop", "release"):
        took = sorted(
            phase["duration_s"] * 1000
            for report in reports
            for phase in report["phases"]
            if phase["name"] == name
        )
        print(f"  {name}: median {statistics.median(took):.1f} max {took[-1]:.1f} ms")
    print([r["hold"]["held"] for r in reports], [r["drain"] for r in reports])
    assert kept.failures == 0, kept.summary()
    assert kept.retransmitted == 0, kept.summary()
    assert kept.connect_max_ms < max(holds_ms[-1] + 250, 250), kept.summary()
    assert kept.connect_max_ms < SLOWEST_CONNECT_MS + 1000
    assert sum(report["hold"]["held"] for report in reports) > 0, "no client came during a hold"


def _swaps(
    lab: ClientServer, service: Service, case: Case
) -> tuple[LoadResult, list[dict[str, Any]]]:
    with Load(
        lab.client, service.targets(lab.server_addresses), rate_per_s=case.rate_per_s
    ) as load:
        reports = [_swap(service, case, number) for number in range(100, 100 + SWAPS)]
        return load.stop(), reports


def _swap(service: Service, case: Case, number: int) -> dict[str, Any]:
    """From generation *number* - 1 to *number*; the first one of all is the service's own."""
    before = 0 if number == 100 else number - 1
    path = service.directory / "report.json"
    outcome = shell.run_detached(
        service.namespace,
        *["swap", "--pidfile", str(service.pidfile), "--new-pidfile", str(service.pidfile)],
        *["-p", "8080", "--json", str(path), *case.stop(service, before), "--"],
        *service.generation_argv(number),  # type: ignore[attr-defined]
        output=service.log,
    )
    assert outcome == 0, service.log.read_text()[-2000:]
    report: dict[str, Any] = json.loads(path.read_text())
    assert report["outcome"] == "ready", report
    assert report["warnings"] == [], report
    assert report["hold"]["released"] == report["hold"]["held"], report
    assert report["old_generation"]["fate"] in ("ended", "terminated"), report
    return report


def _control(lab: ClientServer, service: Service, case: Case) -> LoadResult:
    """The same without synplug: the old one is stopped as soon as the new one listens."""
    rate = case.control_rate_per_s or case.rate_per_s
    attempted: list[Any] = []
    for number in range(1, MOST_CONTROL_SWAPS + 1):
        with Load(lab.client, service.targets(lab.server_addresses), rate_per_s=rate) as load:
            _swap_plainly(service, case, number)
            attempted += load.stop().samples
        if LoadResult(samples=tuple(attempted)).failures:
            break
    # the tests that follow begin with the service's own first generation
    service.stop()
    service.start()
    return LoadResult(samples=tuple(attempted))


def _swap_plainly(service: Service, case: Case, number: int) -> None:
    (old,) = service.pids
    argv = service.generation_argv(number)  # type: ignore[attr-defined]
    before = _listeners(service)
    with service.log.open("a") as log:
        new = service.namespace.popen(argv, stdout=log, stderr=log, start_new_session=True)
    wait_until(lambda: len(_listeners(service) - before) >= len(before), 15, "it stands")
    case.plainly(service, old, number - 1)
    wait_until(lambda: not _listeners(service) & before, 15, "the old listeners are gone")
    os.kill(old, signal.SIGTERM)
    service.pidfile.write_text(f"{new.pid}\n")


def _listeners(service: Service) -> set[int]:
    """The inodes of the listening sockets on the service's port."""
    lines = service.namespace.run(["ss", "-Htlne", "sport = :8080"]).stdout.splitlines()
    return {int(word[4:]) for line in lines for word in line.split() if word.startswith("ino:")}
