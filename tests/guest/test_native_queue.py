"""The first choice of `auto` on an ordinary kernel: nft's queue statement in a table with an owner.

Real services are restarted with it in test_restarts.py.
"""

from __future__ import annotations

import os
import re
import signal

import pytest

from netlab.program import wait_until
from netlab.snapshot import NetworkState
from netlab.topology import ClientServer
from tests.guest.plug import device, listen_at
from tests.integration import shell
from tests.integration.conftest import SimpleService
from tests.integration.connect import connect_s, connecting, connects_within, holds_in_force

pytestmark = [
    pytest.mark.guests_only,
    pytest.mark.stock(only=True),
    pytest.mark.needs("nfqueue"),
]

_HOLD = ["hold", "-p", "8080", "--name", "web", "--max-hold", "60s"]


def _rules(lab: ClientServer) -> str:
    return lab.server.run(["nft", "list", "ruleset"]).stdout


def _packets(rules: str) -> list[int]:
    """What went to the queue, rule by rule."""
    counted = re.findall(r"counter packets (\d+) bytes \d+ queue flags bypass to \d+\n", rules)
    return [int(count) for count in counted]


def test_clients_wait_in_the_queue_of_the_statement(
    lab: ClientServer, simple: SimpleService
) -> None:
    """And nothing is said of iptables-nft: the ruleset is shown as nft(8) would make it."""
    held = shell.run(lab.server, *_HOLD)
    assert held.status == 0, held
    (entry,) = holds_in_force(lab.server)
    assert entry["backend"] == "nfqueue", "auto takes it"
    shown = lab.server.run(["nft", "list", "ruleset"])
    table = r"table inet synplug-\w+ \{ # progname synplug.*\n\tflags owner\n"
    assert re.search(table, shown.stdout), shown.stdout
    assert (shown.stderr, "xt target" in shown.stdout) == ("", False)
    assert set(_packets(shown.stdout)) == {0}, "the control"
    waiting = [connecting(lab.client, (host, 8080), 60) for host in lab.server_addresses]
    waiting += [connecting(lab.server, (host, 8080), 60) for host in ("127.0.0.1", "::1")]
    wait_until(lambda: sum(_packets(_rules(lab))) >= len(waiting), 30, "they wait")
    assert all(client.poll() is None for client in waiting)
    outcome = shell.run(lab.server, "release", "--name", "web", "--json", "-")
    assert outcome.status == 0, outcome
    assert outcome.report["hold"]["released"] >= len(waiting)
    assert (outcome.report["hold"]["lost"], outcome.report["warnings"]) == (0, [])
    for client in waiting:
        assert float(client.communicate(timeout=60)[0]) < 60
    assert _rules(lab) == ""


def test_the_keeper_is_killed_and_nobody_is_held_any_more(
    lab: ClientServer, simple: SimpleService
) -> None:
    """It is all there is: the kernel takes away the table whose owner has died, and the queue."""
    held = shell.run(lab.server, *_HOLD)
    assert held.status == 0, held
    waiting = connecting(lab.client, (lab.server_ipv4, 8080), 60)
    wait_until(lambda: sum(_packets(_rules(lab))) >= 1, 30, "it waits")
    assert not connects_within(lab.client, (lab.server_ipv6, 8080), 0.5), "the control"
    os.kill(holds_in_force(lab.server)[0]["keeper"], signal.SIGKILL)
    wait_until(lambda: _rules(lab) == "", 10, "the table is gone")
    assert connects_within(lab.client, (lab.server_ipv6, 8080), 5)
    assert float(waiting.communicate(timeout=60)[0]) < 60
    assert shell.run(lab.server, "recover").status == 0


def test_a_foreign_delay_filters_and_marks_stay_and_work(
    lab: ClientServer, simple: SimpleService
) -> None:
    """One filter drops a port, the other one marks SYNs: a chain behind the queue counts these."""
    wire, delay_s = device(lab), 0.3
    listen_at(lab.server, 9090)
    assert connect_s(lab.client, (lab.server_ipv4, 9090)) < delay_s, "the control"
    for words in _OTHERS:
        lab.server.run(words.format(wire=wire, delay_ms=delay_s * 1000).split())
    try:
        before = NetworkState.capture(lab.server)
        assert connect_s(lab.client, (lab.server_ipv4, 8080)) > delay_s
        assert _marked(lab) == 1, "the control"
        held = shell.run(lab.server, *_HOLD)
        assert held.status == 0, held
        waiting = connecting(lab.client, (lab.server_ipv4, 8080), 60)
        wait_until(lambda: sum(_packets(_rules(lab))) >= 1, 30, "it waits")
        assert connect_s(lab.client, (lab.server_ipv4, 9090)) > delay_s, "who passes is delayed"
        dropped = connecting(lab.client, (lab.server_ipv4, 9), 2)
        assert dropped.communicate(timeout=60)[0].strip() == "TimeoutError", "nobody refuses"
        assert _marked(lab) == 1, "it has not come by there"
        outcome = shell.run(lab.server, "release", "--name", "web", "--json", "-")
        assert (outcome.status, outcome.report["warnings"]) == (0, []), outcome
        assert float(waiting.communicate(timeout=60)[0]) < 60
        # Its SYN may be sent once more after the release, before it hears the delayed answer.
        sent_since = _marked(lab) - 1 - outcome.report["hold"]["released"]
        assert sent_since in (0, 1), "each with its mark"
        assert connect_s(lab.client, (lab.server_ipv4, 8080)) > delay_s
        assert not before.difference(NetworkState.capture(lab.server))
    finally:
        lab.server.run(["nft", "delete", "table", "inet", "theirs"])
        for place in ("root", "clsact"):
            lab.server.run(["tc", "qdisc", "del", "dev", wire, place])


_OTHERS = (
    "tc qdisc add dev {wire} root netem delay {delay_ms:.0f}ms",
    "tc qdisc add dev {wire} clsact",
    "tc filter add dev {wire} ingress pref 7 protocol ip"
    " flower ip_proto tcp dst_port 9 action drop",
    "tc filter add dev {wire} ingress pref 8 protocol ip"
    " flower ip_proto tcp dst_port 8080 tcp_flags 0x2/0x12 action skbedit mark 0x77",
    "nft add table inet theirs",
    "nft add chain inet theirs in {{ type filter hook input priority 0; }}",
    "nft add rule inet theirs in meta mark 0x77 counter",
)


def _marked(lab: ClientServer) -> int:
    (count,) = re.findall(r"meta mark 0x0*77 counter packets (\d+) ", _rules(lab))
    return int(count)
