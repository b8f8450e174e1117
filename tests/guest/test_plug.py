"""The plug backend on a kernel that has sch_plug: these tests run inside the guest.

Its processor is slow: rates are low, and the time of day is not what is measured.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from netlab.counters import NO_ROOM, tcp_counters
from netlab.load import Load
from netlab.load_result import LoadResult, Outcome, Sample
from netlab.program import wait_until
from netlab.servers import HAProxy, Nginx, Service
from netlab.topology import ClientServer, Namespace
from tests.document_blocks import block
from tests.guest.plug import PLUG, backlog, device, hold, ifb, kill_everything, ledger
from tests.integration import shell
from tests.integration.conftest import SimpleService
from tests.integration.connect import connecting, connects_within, holds_in_force

RATE_PER_S = 60
RESTARTS = 2
#: A SYN that was lost is sent again after a second.
SPARE_MS = 900
#: The report's time of a release is taken when all has been let go, which takes a guest a while.
STAMP_NS = 200_000_000


pytestmark = pytest.mark.guests_only


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
    lab: ClientServer, make: Callable[[Namespace], Service], path: str
) -> None:
    """With the plug, and with the netfilter queues that a guest's kernel has: legacy iptables."""
    with make(lab.server) as service:
        lost = _restarts(lab, service, path, _plainly)
        assert lost.failures > 0, "the control lost nothing: the test shows nothing"
        before = tcp_counters(lab.server)
        released_ns: list[int] = []
        kept = _restarts(lab, service, path, partial(_wrapped, released_ns))
        after = tcp_counters(lab.server)
    assert kept.failures == 0, kept.summary()
    assert kept.attempted > RATE_PER_S
    assert {name: after[name] - before[name] for name in NO_ROOM} == dict.fromkeys(NO_ROOM, 0)
    late = [own for own in kept.samples if _waited_after(released_ns, own) / 1e6 >= SPARE_MS]
    assert not late, f"waited for a retransmission, releases at {released_ns}: {late}"


def _restarts(
    lab: ClientServer, service: Service, path: str, restart: Callable[[Service], None]
) -> LoadResult:
    client = lab.client if path == "inbound" else lab.server
    addresses = lab.server_addresses if path == "inbound" else ("127.0.0.1", "::1")
    targets = service.targets(addresses)
    with Load(client, targets, rate_per_s=RATE_PER_S, protocol=service.protocol) as load:
        for _ in range(RESTARTS):
            restart(service)
            service.wait_until_listening()
        return load.stop()


def _plainly(service: Service) -> None:
    service.namespace.run(service.restart_argv, timeout_s=60)


def _waited_after(released_ns: list[int], sample: Sample) -> int:
    """How long a connection took from its beginning, or from the release that it waited for."""
    established_ns = sample.opened_at_ns + sample.connect_ns
    until = (
        min(at_ns, established_ns)
        for at_ns in released_ns
        if sample.opened_at_ns < at_ns <= established_ns + STAMP_NS
    )
    return established_ns - max(until, default=sample.opened_at_ns)


def test_a_syn_that_waits_on_after_the_release_is_seen() -> None:
    """The control of the judgement above; times in nanoseconds."""
    released_ns = [5_000_000_000, 9_000_000_000]
    held = Sample(0, 2_000_000_000, 3_100_000_000, 3_100_000_000, 0, 0, Outcome.OK, 1)
    assert _waited_after(released_ns, held) == 100_000_000
    late = held._replace(connect_ns=4_000_000_000)
    assert _waited_after(released_ns, late) / 1e6 > SPARE_MS
    alone = held._replace(opened_at_ns=6_000_000_000, connect_ns=1_000_000_000)
    assert _waited_after(released_ns, alone) / 1e6 > SPARE_MS


def _wrapped(released_ns: list[int], service: Service) -> None:
    """By one backend after the other."""
    backend = ("plug", "nfqueue-iptables")[len(released_ns) % 2]
    options = ["--backend", backend, "--max-hold", "60s", "-p", "8080"]
    outcome = shell.wrap(service.namespace, options, service.restart_argv)
    assert outcome.status == 0, outcome
    held = outcome.report["hold"]
    assert held["backend"] == backend
    assert held["held"] > 0, "the restart was too fast to show anything"
    assert held["released"] == held["held"]
    assert (held["lost"], held["overflowed"]) == (0, 0)
    released_ns.append(_released_at_ns(outcome.report))


def _released_at_ns(report: dict[str, Any]) -> int:
    """The end of the hold, on the clock of the load."""
    (phase,) = [phase for phase in report["phases"] if phase["name"] == "hold"]
    at_s = report["started_at"] + phase["start_s"] + phase["duration_s"]
    return time.monotonic_ns() - time.time_ns() + int(at_s * 1e9)


def test_a_held_connection_waits_and_is_not_refused(
    lab: ClientServer, simple: SimpleService
) -> None:
    hold(lab)
    waiting = [connecting(lab.client, (host, 8080), 60) for host in lab.server_addresses]
    wait_until(lambda: backlog(lab) >= len(waiting), 30, "both SYNs wait in the plug")
    lab.server.run(["sh", "-c", simple.stop_line()])
    lab.server.run(simple.start_argv())
    outcome = shell.run(lab.server, "release", "--name", "web", "--json", "-")
    assert outcome.status == 0, outcome
    assert outcome.report["hold"]["released"] >= len(waiting)
    for client in waiting:
        assert float(client.communicate(timeout=60)[0]) < 60


def test_other_ports_and_answers_pass(lab: ClientServer, simple: SimpleService) -> None:
    """Only the SYNs to the held port: not those to another one, nor any other packet."""
    shell.run(lab.server, "hold", "-p", "9", "--name", "other", *PLUG)
    done = lab.client.run(
        [sys.executable, "-c", _ASK, lab.server_ipv4, "8080"], check=False, timeout_s=60
    )
    assert done.stdout.strip() == "HTTP/1.1 200 OK"
    assert shell.run(lab.server, "release", "--name", "other", "--now").status == 0


_ASK = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=30) as ours:
    ours.sendall(b"GET / HTTP/1.1\\r\\n\\r\\n")
    print(ours.recv(100).decode().splitlines()[0])
"""


def test_the_keeper_is_killed_and_who_waited_is_let_go(
    lab: ClientServer, simple: SimpleService
) -> None:
    hold(lab)
    waiting = connecting(lab.client, (lab.server_ipv4, 8080), 60)
    wait_until(lambda: backlog(lab) >= 1, 30, "its SYN waits in the plug")
    os.kill(holds_in_force(lab.server)[0]["keeper"], signal.SIGKILL)
    assert float(waiting.communicate(timeout=60)[0]) < 60
    wait_until(lambda: not ledger(lab), 30, "the watcher has cleaned up")


def test_everything_is_killed_and_recover_lets_go(lab: ClientServer, simple: SimpleService) -> None:
    hold(lab)
    waiting = connecting(lab.client, (lab.server_ipv4, 8080), 60)
    wait_until(lambda: backlog(lab) >= 1, 30, "its SYN waits in the plug")
    kill_everything(lab)
    time.sleep(1)
    assert waiting.poll() is None, "this is what docs/failure-modes.md warns of"
    assert "cleaned up" in shell.run(lab.server, "recover").stdout
    assert float(waiting.communicate(timeout=60)[0]) < 60


def test_the_readme_s_lines_clear_a_plug_that_stayed(
    lab: ClientServer, simple: SimpleService
) -> None:
    """As they stand there, but for the run, the devices and what is shown of their filters."""
    names = [device(lab), "lo"]
    hold(lab)
    waiting = connecting(lab.client, (lab.server_ipv4, 8080), 60)
    wait_until(lambda: backlog(lab) >= 1, 30, "its SYN waits in the plug")
    run_id = ifb(lab).removeprefix("synplug")
    kill_everything(lab)
    lines = block("README.md", "tc qdisc change").splitlines()
    assigned, let_go, show, of_probes, delete, remove = lines
    (probes,) = re.findall("handle (0x[0-9a-f]+)", of_probes)
    run = assigned.replace("1a2b3c4d", run_id)
    lab.server.run(["sh", "-e", "-c", f"{run}\n{let_go}"])
    assert float(waiting.communicate(timeout=60)[0]) < 60
    for name in names:
        shown = lab.server.run(["sh", "-c", show.replace("eth0", name)]).stdout
        told = (f"synplug{run_id}", f"handle {probes}")
        ours = [text for text in shown.split("filter ") if any(word in text for word in told)]
        prefs = {found for text in ours for found in re.findall(r" pref (\d+) ", text)}
        assert prefs
        for pref in prefs:
            line = delete.replace("eth0", name).replace("pref 4 ", f"pref {pref} ")
            assert f"pref {pref} " in line
            lab.server.run(["sh", "-e", "-c", line])
    lab.server.run(["sh", "-e", "-c", f"{run}\n{remove}"])
    assert run_id not in lab.server.run(["ip", "link"]).stdout
    assert connects_within(lab.client, (lab.server_ipv4, 8080), 30)
    assert "cleaned up" in shell.run(lab.server, "recover").stdout


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
        with Load(lab.server, targets, rate_per_s=RATE_PER_S, timeout_s=60) as load:
            done = shell.run_plainly(lab.server, ["sh", "-c", line], timeout_s=120)
            service.wait_until_listening()
            result = load.stop()
    assert done.status == 0, done
    assert result.failures == 0, result.summary()


def test_the_deadline_lets_go(lab: ClientServer, simple: SimpleService) -> None:
    options = ["--backend", "plug", "--max-hold", "3s"]
    assert shell.run(lab.server, "hold", "-p", "8080", "--name", "web", *options).status == 0
    waiting = connecting(lab.client, (lab.server_ipv6, 8080), 60)
    assert float(waiting.communicate(timeout=60)[0]) < 60
    wait_until(lambda: not ledger(lab), 30, "nothing is left")


def test_our_clsact_is_taken_away_and_comes_back(lab: ClientServer, simple: SimpleService) -> None:
    """By somebody who tidies up: who waits waits on, and who comes later waits, too."""
    wire = device(lab)
    hold(lab)
    first = connecting(lab.client, (lab.server_ipv4, 8080), 60)
    wait_until(lambda: backlog(lab) >= 1, 30, "its SYN waits in the plug")
    lab.server.run(["tc", "qdisc", "del", "dev", wire, "clsact"])
    show = ["tc", "filter", "show", "dev", wire, "ingress"]
    wait_until(lambda: "Redirect" in lab.server.run(show, check=False).stdout, 20, "it is back")
    second = connecting(lab.client, (lab.server_ipv4, 8080), 60)
    wait_until(lambda: backlog(lab) >= 2, 30, "both wait")
    outcome = shell.run(lab.server, "release", "--name", "web", "--json", "-")
    assert any("removed filters of the hold" in text for text in outcome.report["warnings"])
    for waiting in (first, second):
        assert float(waiting.communicate(timeout=60)[0]) < 60
    assert not lab.server.run(["tc", "qdisc", "show", "dev", wire, "clsact"]).stdout


def test_the_ifb_is_taken_away(lab: ClientServer, simple: SimpleService) -> None:
    """By somebody who tidies up: what waited is lost, what comes passes."""
    hold(lab)
    waiting = connecting(lab.client, (lab.server_ipv4, 8080), 60)
    wait_until(lambda: backlog(lab) >= 1, 30, "its SYN waits in the plug")
    lab.server.run(["ip", "link", "del", ifb(lab)])
    assert float(waiting.communicate(timeout=60)[0]) < 60, "its next SYN passed"
    outcome = shell.run(lab.server, "release", "--name", "web", "--json", "-")
    assert outcome.report["hold"]["lost"] >= 1
    assert any("dropped by somebody else" in text for text in outcome.report["warnings"])
