"""Real services restarted under load, with each backend that the kernel has; inside the guest.

Its processor is slow: rates are low, and the time of day is not what is measured.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from netlab.counters import NO_ROOM, dropped_before_ip, tcp_counters
from netlab.load import Load
from netlab.load_result import LoadResult, Outcome, Sample
from netlab.servers import HAProxy, Nginx, Service
from netlab.topology import ClientServer, Namespace
from tests.document_blocks import block
from tests.guest.features import backends_of
from tests.guest.plug import standing_clsact
from tests.integration import shell

#: So few that a guest bears them whose processor is emulated, and shared with other tests.
RATE_PER_S = 20
#: A hold lasts for seconds where the processor is emulated.
PATIENCE_S = 60.0
#: A SYN that was lost is sent again after a second. Of those that waited and were lost at the
#: release, whose next one was due at any time since the last, this sees a part: enough to see a
#: backend that loses them. One by one they are in the report's counts.
SPARE_MS = 900
#: The report's time of a release is taken when the rule is out, too, which takes a guest a while.
STAMP_NS = 1_000_000_000
#: Linux 6.5; where it is not known, none is sent evenly.
_SYSCTL = Path("/proc/sys/net/ipv4/tcp_syn_linear_timeouts")
LINEAR = int(_SYSCTL.read_text(encoding="ascii")) if _SYSCTL.exists() else 0

pytestmark = pytest.mark.guests_only


@pytest.mark.stock
@pytest.mark.parametrize(
    ("make", "path"),
    [
        pytest.param(Nginx, "inbound", marks=pytest.mark.kernels),
        (Nginx, "loopback"),
        (HAProxy, "inbound"),
        pytest.param(HAProxy, "loopback", marks=pytest.mark.kernels),
    ],
)
def test_no_client_notices_a_cold_restart(
    lab: ClientServer, kernel: str, make: Callable[[Namespace], Service], path: str
) -> None:
    """By one backend after the other; with a clsact that stands, as docs/recipes.md advises."""
    backends = backends_of(kernel)
    released_ns: list[int] = []

    def restart_wrapped(service: Service, backend: str) -> None:
        released_ns.append(_restart_wrapped(service, backend))

    with make(lab.server) as service:
        lost = _under_load(lab, service, path, backends, _restart_plainly)
        assert lost.failures > 0, "the control lost nothing: the test shows nothing"
        before, dropped = tcp_counters(lab.server), dropped_before_ip()
        with standing_clsact(lab.server):
            kept = _under_load(lab, service, path, backends, restart_wrapped)
        after = tcp_counters(lab.server)
    assert kept.failures == 0, kept.summary()
    assert dropped_before_ip() == dropped, "the guest's own wire lost packets"
    assert kept.attempted > RATE_PER_S
    assert {name: after[name] - before[name] for name in NO_ROOM} == dict.fromkeys(NO_ROOM, 0)
    late = [own for own in kept.samples if _waited_for_retransmission(released_ns, own)]
    assert not late, f"waited for a retransmission, releases at {released_ns}: {late}"


def test_the_recipe_for_a_local_proxy(lab: ClientServer) -> None:
    """Its last line, with the real HAProxy: the first installs, the second only looks."""
    with HAProxy(lab.server) as service:
        line = block("docs/recipes.md", "--loopback-egress").splitlines()[-1]
        for there, here in (
            ("-p 3212", f"-p {service.ports[0]} --max-hold 60s"),
            ("systemctl restart haproxy", shlex.join(service.restart_argv)),
            ("synplug wrap", f"{shlex.join(shell.SYNPLUG)} wrap"),
        ):
            assert there in line, there
            line = line.replace(there, here)
        targets = service.targets(("127.0.0.1", "::1"))
        with Load(lab.server, targets, rate_per_s=RATE_PER_S, timeout_s=PATIENCE_S) as load:
            done = shell.run_plainly(lab.server, ["sh", "-c", line])
            service.wait_until_listening()
            result = load.stop()
    assert done.status == 0, done
    assert result.failures == 0, result.summary()


def _under_load(
    lab: ClientServer,
    service: Service,
    path: str,
    backends: Sequence[str],
    restart: Callable[[Service, str], None],
) -> LoadResult:
    client = lab.client if path == "inbound" else lab.server
    addresses = lab.server_addresses if path == "inbound" else ("127.0.0.1", "::1")
    targets = service.targets(addresses)
    with Load(
        client,
        targets,
        rate_per_s=RATE_PER_S,
        timeout_s=PATIENCE_S,
        protocol=service.protocol,
    ) as load:
        for backend in backends:
            restart(service, backend)
            service.wait_until_listening()
        return load.stop()


def _restart_plainly(service: Service, _: str) -> None:
    service.namespace.run(service.restart_argv, timeout_s=PATIENCE_S)


def _restart_wrapped(service: Service, backend: str) -> int:
    """When it was released, on the clock of the load."""
    options = ["--backend", backend, "--max-hold", "60s", "-p", "8080"]
    outcome = shell.wrap(service.namespace, options, service.restart_argv)
    assert outcome.status == 0, outcome
    held = outcome.report["hold"]
    assert held["backend"] == backend
    assert held["held"] > 0, "the restart was too fast to show anything"
    assert held["released"] == held["held"]
    assert (held["lost"], held["overflowed"]) == (0, 0)
    return _released_at_ns(outcome.report)


def _released_at_ns(report: dict[str, Any]) -> int:
    """The end of the hold, on the clock of the load."""
    (phase,) = [phase for phase in report["phases"] if phase["name"] == "hold"]
    at_s = report["started_at"] + phase["start_s"] + phase["duration_s"]
    return time.monotonic_ns() - time.time_ns() + int(at_s * 1e9)


def _waited_for_retransmission(released_ns: list[int], sample: Sample) -> bool:
    """Not so where the last one was sent before the release: then the guest had no time."""
    until_ns = _waited_until_ns(released_ns, sample)
    last_sent_ns = sample.opened_at_ns + _sent_again_after_s(sample.retransmits) * 1_000_000_000
    can_be_since = sample.retransmits > 0 and last_sent_ns > until_ns
    waited_ns = sample.opened_at_ns + sample.connect_ns - until_ns
    return can_be_since and waited_ns / 1e6 >= SPARE_MS


def _sent_again_after_s(times: int) -> int:
    """When a SYN is sent again for the last of so many times, at the latest.

    After 1, 3, 7 s; so often as tcp_syn_linear_timeouts says, first after a second each.
    """
    evenly = min(times, LINEAR)
    first_s = 2 if evenly else 1
    return evenly + first_s * (int(2 ** (times - evenly)) - 1)


def _waited_until_ns(released_ns: list[int], sample: Sample) -> int:
    """The release that a connection waited for, or its beginning."""
    established_ns = sample.opened_at_ns + sample.connect_ns
    until = (
        min(at_ns, established_ns)
        for at_ns in released_ns
        if sample.opened_at_ns < at_ns <= established_ns + STAMP_NS
    )
    return max(until, default=sample.opened_at_ns)


def test_a_syn_that_waits_on_after_the_release_is_seen() -> None:
    """The control of the judgement above; times in nanoseconds."""
    assert _sent_again_after_s(1) == 1
    assert _sent_again_after_s(3) == (3 if LINEAR else 7)
    released_ns = [5_000_000_000, 9_000_000_000]
    held = Sample(0, 3_500_000_000, 1_600_000_000, 1_600_000_000, 0, 0, Outcome.OK, 1)
    assert _waited_until_ns(released_ns, held) == 5_000_000_000
    assert not _waited_for_retransmission(released_ns, held)
    slow = held._replace(connect_ns=2_600_000_000)
    assert not _waited_for_retransmission(released_ns, slow), "its last one was before it"
    assert not _waited_for_retransmission(released_ns, slow._replace(retransmits=0))
    assert _waited_for_retransmission(released_ns, slow._replace(retransmits=2))
    alone = held._replace(opened_at_ns=6_000_000_000, connect_ns=1_000_000_000)
    assert _waited_for_retransmission(released_ns, alone)
