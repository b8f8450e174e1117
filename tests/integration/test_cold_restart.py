"""Cold restarts of real services under load: nobody is refused, reset, cut off or kept waiting.

Each case runs its control first: the same restarts without synplug, which lose connections.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from netlab.listenwatch import ListenWatch
from netlab.load import Load
from netlab.load_result import LoadResult
from netlab.program import wait_until
from netlab.servers import Gunicorn, HAProxy, HttpServer, Nginx, Redis, Service
from netlab.topology import ClientServer, Namespace
from tests.integration import shell

RESTARTS = 10
CONTROL_RESTARTS = 4
#: A SYN that is sent again is sent after a second (RFC 6298, 2.1), so these tell them apart: the
#: first where the load client was on time, the other where the machine kept even that waiting.
RETRANSMISSION_MS = 1000
SPARE_MS, SPARE_BUSY_MS = 250, 700
LATE_MS = 20
#: So often is it measured anew when the load client was late: that bounds nothing well.
TRIES = 3


@dataclass(frozen=True, kw_only=True)
class Case:
    """A service, how hard it is used, and over which path."""

    name: str
    make: Callable[[Namespace], Service]
    rate_per_s: int


CASES = [
    Case(name="haproxy", make=HAProxy, rate_per_s=3000),
    Case(name="haproxy-two-ports", make=lambda n: HAProxy(n, ports=(8080, 8443)), rate_per_s=2000),
    Case(name="nginx", make=Nginx, rate_per_s=3000),
    Case(name="gunicorn", make=Gunicorn, rate_per_s=300),
    Case(name="redis", make=Redis, rate_per_s=3000),
    Case(name="http.server", make=lambda n: HttpServer(n, backlog=128), rate_per_s=300),
    # With its own backlog of 5, more wait than fit: what is released must be paced.
    # Without synplug it overflows when it is late by 5 connections, so they are not many.
    Case(name="http.server-backlog-5", make=HttpServer, rate_per_s=30),
]


@pytest.mark.parametrize("path", ["inbound", "loopback"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_client_notices_a_cold_restart(lab: ClientServer, case: Case, path: str) -> None:
    with case.make(lab.server) as service:
        lost = _under_load(lab, service, case, path, CONTROL_RESTARTS, _restart_plainly)
        assert lost.load.failures > 0, "the control lost nothing: the test shows nothing"

        for _ in range(TRIES):
            kept = _under_load(lab, service, case, path, RESTARTS, _restart_wrapped)
            assert kept.load.failures == 0, kept.load.summary()
            if kept.load.late_p99_ms < LATE_MS:
                break

    assert kept.load.attempted > case.rate_per_s
    assert kept.gap_ms > 0, "the restarts were not cold"
    is_busy = kept.load.late_p99_ms >= LATE_MS
    spare_ms = SPARE_BUSY_MS if is_busy else SPARE_MS
    # Some are sent again while they wait, if that takes so long.
    if kept.gap_ms + spare_ms < RETRANSMISSION_MS:
        assert kept.load.retransmitted == 0, kept.load.summary()
    assert kept.load.connect_max_ms < kept.gap_ms + spare_ms, kept


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the clients saw, and the longest time without a listener."""

    load: LoadResult
    gap_ms: float


def _under_load(
    lab: ClientServer,
    service: Service,
    case: Case,
    path: str,
    restarts: int,
    restart: Callable[[Service], None],
) -> Seen:
    client = lab.client if path == "inbound" else lab.server
    addresses = lab.server_addresses if path == "inbound" else ("127.0.0.1", "::1")
    targets = service.targets(addresses)
    with (
        ListenWatch(lab.server, service.ports) as watch,
        Load(client, targets, rate_per_s=case.rate_per_s, protocol=service.protocol) as load,
    ):
        for _ in range(restarts):
            restart(service)
            service.wait_until_listening()
        result = load.stop()
    return Seen(load=result, gap_ms=max((gap.duration_ms for gap in watch.gaps), default=0.0))


def _restart_plainly(service: Service) -> None:
    service.namespace.run(service.restart_argv, timeout_s=30)


def _restart_wrapped(service: Service) -> None:
    ports = ",".join(map(str, service.ports))
    outcome = shell.wrap(service.namespace, ["-p", ports], service.restart_argv)
    assert outcome.status == 0, outcome
    report = outcome.report
    assert report["outcome"] == "ready", report
    assert report["warnings"] == [], report
    hold = report["hold"]
    assert hold["released"] == hold["held"], report
    assert (hold["lost"], hold["overflowed"]) == (0, 0), report
    # A gap of a few milliseconds may fall between two looks; that there was one, ListenWatch saw.
    assert report["gap_s"] is None or report["gap_s"] > 0, report
    wait_until(lambda: service.running, 5, "service running after the restart")
