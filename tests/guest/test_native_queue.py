"""The first choice of `auto` on an ordinary kernel: nft's queue statement in a table with an owner.

Real services are restarted with it in test_restarts.py.
"""

from __future__ import annotations

import os
import re
import signal

import pytest

from netlab.program import wait_until
from netlab.topology import ClientServer
from tests.integration import shell
from tests.integration.conftest import SimpleService
from tests.integration.connect import connecting, connects_within, holds_in_force

pytestmark = [pytest.mark.guests_only, pytest.mark.stock(only=True)]

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
