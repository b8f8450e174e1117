"""Real services restarted under load, with each backend that the kernel has; inside the guest.

Its processor is slow: rates are low, and the time of day is not what is measured.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
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
#: Timers and devices that have work to do in the same moment: a copy sent then may come before one
#: that has waited.
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
    backends = backends_of(kernel)
    releases_ns: list[tuple[int, int]] = []

    def restart_wrapped(service: Service, backend: str) -> None:
        releases_ns.append(_restart_wrapped(service, backend))

    with make(lab.server) as service:
        lost = _under_load(lab, service, path, backends, _restart_plainly)
        assert lost.failures > 0, "the control lost nothing: the test shows nothing"
        before, dropped = tcp_counters(lab.server), dropped_before_ip()
        with standing_clsact(lab.server):
            kept = _under_load(lab, service, path, backends, restart_wrapped)
        after = tcp_counters(lab.server)
    assert kept.failures == 0, f"{kept.summary()}: {kept.failed}"
    assert dropped_before_ip() == dropped, "the guest's own wire lost packets"
    assert kept.attempted > RATE_PER_S
    assert {name: after[name] - before[name] for name in NO_ROOM} == dict.fromkeys(NO_ROOM, 0)
    late = [own for own in kept.samples if _has_lost_a_syn(releases_ns, own)]
    assert not late, f"a later SYN was answered; released, all gone {releases_ns}: {late}"


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
            time.sleep(1)  # for those who come behind
        return load.stop()


def _restart_plainly(service: Service, _: str) -> None:
    service.namespace.run(service.restart_argv, timeout_s=PATIENCE_S)


def _restart_wrapped(service: Service, backend: str) -> tuple[int, int]:
    """From when to when it was released, on the clock of the load."""
    options = ["--backend", backend, "--max-hold", "60s", "-p", "8080"]
    outcome = shell.wrap(service.namespace, options, service.restart_argv)
    assert outcome.status == 0, outcome
    held = outcome.report["hold"]
    assert held["backend"] == backend
    assert held["held"] > 0, "the restart was too fast to show anything"
    assert held["released"] == held["held"]
    assert (held["lost"], held["overflowed"]) == (0, 0)
    return _release_ns(outcome.report)


def _release_ns(report: dict[str, Any]) -> tuple[int, int]:
    """The begin of the release, and when it was seen that nobody waits or is on the way any more.

    Emulated, it can take seconds, in which who comes may be served before one who waited: they pass
    by a device that has work to do.
    """
    starts_s = {phase["name"]: phase["start_s"] for phase in report["phases"]}
    since_epoch_ns = time.time_ns() - time.monotonic_ns()
    began_ns, gone_ns = (
        int((report["started_at"] + starts_s[name]) * 1e9) - since_epoch_ns
        for name in ("release", "clean-up")
    )
    return began_ns, gone_ns


def _has_lost_a_syn(releases_ns: Sequence[tuple[int, int]], sample: Sample) -> bool:
    """Whether the SYN that was answered is one sent again when all that waited were gone.

    Or, where it waited for no release, sent again at all.
    """
    established_ns = sample.opened_at_ns + sample.connect_ns
    until_ns = min(
        (
            gone_ns + MOMENT_NS
            for at_ns, gone_ns in releases_ns
            if sample.opened_at_ns < gone_ns and at_ns <= established_ns + STAMP_NS
        ),
        default=0,
    )
    answered_at_ns = sample.opened_at_ns + sample.answered_ns
    return sample.answered_ns >= SENT_AGAIN_NS and answered_at_ns > until_ns


def test_a_lost_syn_is_told_from_one_that_waited() -> None:
    """The control of the judgement above; times in nanoseconds."""
    held = Sample(0, 3_500_000_000, 2_000_000_000, 2_000_000_000, 0, 0, Outcome.OK, 1)
    releases_ns = [(5_000_000_000, 5_050_000_000)]
    answered = {0: False, 1_000_000_000: False, 1_600_000_000: False, 1_800_000_000: True}
    for answered_ns, is_lost in answered.items():
        assert _has_lost_a_syn(releases_ns, held._replace(answered_ns=answered_ns)) == is_lost
    slow = held._replace(connect_ns=4_000_000_000, retransmits=2)
    assert not _has_lost_a_syn(releases_ns, slow), "a slow guest lost nothing"
    meanwhile = held._replace(opened_at_ns=5_040_000_000, answered_ns=1_000_000_000)
    assert _has_lost_a_syn(releases_ns, meanwhile)
    assert not _has_lost_a_syn([(5_000_000_000, 7_000_000_000)], meanwhile)
    assert _has_lost_a_syn(releases_ns, slow._replace(answered_ns=3_000_000_000))
    alone = held._replace(opened_at_ns=6_500_000_000, connect_ns=1_100_000_000)
    assert not _has_lost_a_syn(releases_ns, alone)
    assert _has_lost_a_syn(releases_ns, alone._replace(answered_ns=1_000_000_000))


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
