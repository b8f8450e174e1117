"""Real services restarted under load, with each backend that the kernel has; inside the guest.

Its processor is slow: rates are low, and the time of day is not what is measured.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence

import pytest

from netlab.counters import NO_ROOM, dropped_before_ip, tcp_counters
from netlab.load import Load
from netlab.load_result import LoadResult
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
    """By one backend after the other; with a clsact that stands, as docs/recipes.md advises.

    Which of a client's SYNs was answered tells whether one was lost, however slow the guest is: a
    copy comes behind what waits, so it is answered only where the first was lost.
    """
    backends = backends_of(kernel)
    with make(lab.server) as service:
        lost = _under_load(lab, service, path, backends, _restart_plainly)
        assert lost.failures > 0, "the control lost nothing: the test shows nothing"
        before, dropped = tcp_counters(lab.server), dropped_before_ip()
        with standing_clsact(lab.server):
            kept = _under_load(lab, service, path, backends, _restart_wrapped)
        after = tcp_counters(lab.server)
    assert kept.failures == 0, f"{kept.summary()}: {kept.failed}"
    assert dropped_before_ip() == dropped, "the guest's own wire lost packets"
    assert kept.attempted > RATE_PER_S
    assert {name: after[name] - before[name] for name in NO_ROOM} == dict.fromkeys(NO_ROOM, 0)
    late = [own for own in kept.samples if own.answered_ns >= SENT_AGAIN_NS]
    assert not late, f"a later SYN was answered: {late}"


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


def _restart_wrapped(service: Service, backend: str) -> None:
    options = ["--backend", backend, "--max-hold", "60s", "-p", "8080"]
    outcome = shell.wrap(service.namespace, options, service.restart_argv)
    assert outcome.status == 0, outcome
    held = outcome.report["hold"]
    assert held["backend"] == backend
    assert held["held"] > 0, "the restart was too fast to show anything"
    assert held["released"] == held["held"]
    assert (held["lost"], held["overflowed"]) == (0, 0)


@pytest.mark.stock
def test_a_kernel_tells_which_syn_it_answered(lab: ClientServer) -> None:
    """What the judgement of a restart stands on: SYNs that are dropped for a while."""
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
