"""Real services restarted under load, with each backend that the kernel has; inside the guest.

Its processor is slow: rates are low, and the time of day is not what is measured.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from typing import Any

import pytest

from netlab.counters import NO_ROOM, dropped_before_ip, tcp_counters
from netlab.load import Load
from netlab.load_result import LoadResult, Outcome, Sample
from netlab.servers import HAProxy, Nginx, Service
from netlab.topology import ClientServer, Namespace
from tests.document_blocks import block
from tests.guest.features import backends_of
from tests.guest.plug import standing_clsact, wire
from tests.integration import shell

#: So few that a guest bears them whose processor is emulated, and shared with other tests.
RATE_PER_S = 20
#: A hold lasts for seconds where the processor is emulated.
PATIENCE_S = 60.0
#: A SYN that is not answered is sent again after a second.
SENT_AGAIN_NS = 900_000_000
#: The report's time of a release is taken when the rule is out, too, which takes a guest a while.
STAMP_NS = 1_000_000_000
#: A copy that is sent in the moment in which the last go may come before its first.
MOMENT_NS = 200_000_000

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
    with make(lab.server) as service:
        lost = _under_load(lab, service, path, lambda: _restart_plainly(service))
        assert lost.failures > 0, "the control lost nothing: the test shows nothing"
        before, dropped = tcp_counters(lab.server), dropped_before_ip()
        with standing_clsact(lab.server):
            for backend in backends_of(kernel):
                _restart_unnoticed(lab, service, path, backend)
        after = tcp_counters(lab.server)
    assert dropped_before_ip() == dropped, "the guest's own wire lost packets"
    assert {name: after[name] - before[name] for name in NO_ROOM} == dict.fromkeys(NO_ROOM, 0)


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
    assert result.failures == 0, f"{result.summary()}: {result.failed}, {done}"


def _under_load(
    lab: ClientServer, service: Service, path: str, restart: Callable[[], None]
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
        restart()
        service.wait_until_listening()
        time.sleep(1)  # for those who come behind
        return load.stop()


def _restart_plainly(service: Service) -> None:
    service.namespace.run(service.restart_argv, timeout_s=PATIENCE_S)


def _restart_unnoticed(lab: ClientServer, service: Service, path: str, backend: str) -> None:
    outcome = None

    def restart() -> None:
        nonlocal outcome
        options = ["--backend", backend, "--max-hold", "60s", "-p", "8080"]
        outcome = shell.wrap(service.namespace, options, service.restart_argv)

    kept = _under_load(lab, service, path, restart)
    assert outcome is not None
    assert outcome.status == 0, outcome
    held = outcome.report["hold"]
    assert held["backend"] == backend
    assert held["held"] > 0, "the restart was too fast to show anything"
    assert held["released"] == held["held"]
    assert (held["lost"], held["overflowed"]) == (0, 0)
    assert kept.failures == 0, f"{backend}: {kept.summary()}: {kept.failed}"
    assert kept.attempted > RATE_PER_S
    release_ns = _release_ns(outcome.report)
    late = [own for own in kept.samples if _has_lost_a_syn(own, release_ns)]
    assert not late, f"{backend}: a later SYN was answered; released {release_ns}: {late}"


def _release_ns(report: dict[str, Any]) -> tuple[int, int]:
    """When the release began, and nobody waited any more, on the clock of the load."""
    starts_s = {phase["name"]: phase["start_s"] for phase in report["phases"]}
    since_epoch_ns = time.time_ns() - time.monotonic_ns()
    began_ns, gone_ns = (
        int((report["started_at"] + starts_s[name]) * 1e9) - since_epoch_ns
        for name in ("release", "clean-up")
    )
    return began_ns, gone_ns


def _has_lost_a_syn(sample: Sample, release_ns: tuple[int, int]) -> bool:
    """Whether the SYN that was answered is one sent again because the first was lost.

    Until all have gone a copy takes the place of the one that waits in a queue, and may overtake it
    on its way out of a plug, where the processor pauses for longer than a plug keeps order.
    """
    if sample.answered_ns < SENT_AGAIN_NS:
        return False
    began_ns, gone_ns = release_ns
    was_over = sample.opened_at_ns + sample.connect_ns < began_ns - STAMP_NS
    return was_over or sample.opened_at_ns + sample.answered_ns > gone_ns + MOMENT_NS


def test_a_lost_syn_is_told_from_one_that_waited() -> None:
    """The control of the judgement above; times in nanoseconds."""
    held = Sample(0, 3_500_000_000, 2_000_000_000, 2_000_000_000, 0, 0, Outcome.OK, 1)
    release_ns = (5_000_000_000, 5_050_000_000)
    for answered_ns in (0, 1_000_000_000, 1_600_000_000, 1_800_000_000):
        own = held._replace(answered_ns=answered_ns)
        assert _has_lost_a_syn(own, release_ns) == (answered_ns == 1_800_000_000)
    slow = held._replace(connect_ns=4_000_000_000, retransmits=2)
    assert not _has_lost_a_syn(slow, release_ns), "a slow guest lost nothing"
    assert _has_lost_a_syn(slow._replace(answered_ns=3_000_000_000), release_ns)
    for opened_at_ns in (1_000_000_000, 6_500_000_000):
        alone = held._replace(opened_at_ns=opened_at_ns, connect_ns=1_100_000_000)
        assert not _has_lost_a_syn(alone, release_ns)
        assert _has_lost_a_syn(alone._replace(answered_ns=1_000_000_000), release_ns)


@pytest.mark.stock
def test_a_kernel_tells_which_syn_it_answered(lab: ClientServer) -> None:
    """What the judgement above stands on: SYNs that are dropped for a while."""
    device = wire(lab.server)
    drop = "protocol ip flower ip_proto tcp tcp_flags 0x2/0x17 action drop"
    with (
        standing_clsact(lab.server),
        HAProxy(lab.server) as service,
        Load(
            lab.client,
            service.targets(lab.server_addresses[:1]),
            rate_per_s=RATE_PER_S,
            timeout_s=PATIENCE_S,
        ) as load,
    ):
        lab.server.run(["tc", "filter", "add", "dev", device, "ingress", *drop.split()])
        time.sleep(0.5)
        lab.server.run(["tc", "filter", "del", "dev", device, "ingress"])
        result = load.stop()
    assert result.failures == 0, result.summary()
    seen = {(own.retransmits > 0, own.answered_ns >= SENT_AGAIN_NS) for own in result.samples}
    again = [own for own in result.samples if own.retransmits]
    assert {(True, True), (False, False)} <= seen, again
    assert (False, True) not in seen, again
