"""More held SYNs than a queue takes, and more than the hold may take."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from netlab.program import wait_until
from netlab.topology import ClientServer, Namespace
from tests.integration import shell
from tests.integration.conftest import SimpleService
from tests.integration.connect import connects_within, holds_in_force

_SYN_SENDER = Path(__file__).parent / "programs" / "syn_sender.py"
_WITHIN_ONE_QUEUE = 65_536


def test_131072_held_syns_over_several_queues(lab: ClientServer, simple: SimpleService) -> None:
    report, states = _hold_and_send(lab, simple, max_held=131_072, send=131_072)
    assert sorted(waiting for waiting, _, _ in states) == [_WITHIN_ONE_QUEUE] * 2
    assert report["hold"]["held"] == 131_072
    assert report["hold"]["released"] == 131_072
    assert (report["hold"]["lost"], report["hold"]["overflowed"]) == (0, 0)


@pytest.mark.parametrize("policy", ["drop", "pass"])
def test_the_limit_holds_and_its_policy_is_followed(
    lab: ClientServer, simple: SimpleService, policy: str
) -> None:
    before = _syns_answered(lab.server)
    report, states = _hold_and_send(
        lab, simple, "--on-full", policy, max_held=1000, send=1500, expect=1000
    )
    assert sum(waiting for waiting, _, _ in states) == 1000
    assert report["hold"]["held"] == 1000
    assert report["hold"]["overflowed"] == 500
    # Nobody answers our SYN-ACKs, so what was passed shows as attempts on the listener.
    passed = states[0][2] - before
    assert (passed >= 500) if policy == "pass" else (passed == 0)


def test_a_legitimate_client_that_fits_is_served(lab: ClientServer, simple: SimpleService) -> None:
    report, _ = _hold_and_send(lab, simple, max_held=5000, send=3000)
    assert report["outcome"] == "ready"
    assert connects_within(lab.client, (lab.server_ipv6, 8080), 1.0)


def _hold_and_send(
    lab: ClientServer,
    simple: SimpleService,
    *options: str,
    max_held: int,
    send: int,
    expect: int | None = None,
) -> tuple[dict[str, Any], list[tuple[int, int, int]]]:
    """Hold, send SYNs, see how many wait, release.

    Returns the report, and per queue: packets waiting, packets dropped, SYNs that the listener
    has met so far.
    """
    command = ["sh", "-c", f"read line < {simple.directory / 'go'}"]
    subprocess.run(["mkfifo", simple.directory / "go"], check=True)
    argv = ["wrap", "--json", "-", "-p", "8080", "--max-hold", "60s", "--release", "burst"]
    argv += ["--max-held", str(max_held), "--settle", "0", *options, "--", *command]
    run = shell.start(lab.server, *argv)
    wait_until(lambda: bool(holds_in_force(lab.server)), 10, "connections are held")
    sender = [sys.executable, "-S", str(_SYN_SENDER), lab.interface, _mac(lab), lab.server_ipv4]
    lab.client.run([*sender, "8080", str(send)], timeout_s=60)
    wait_until(lambda: _total_waiting(lab.server) >= (expect or send), 20, "they wait")
    state = [(waiting, dropped, _syns_answered(lab.server)) for waiting, dropped in _queues(lab)]
    with open(simple.directory / "go", "w", encoding="ascii") as go:
        go.write("\n")
    stdout, stderr = run.communicate(timeout=60)
    assert run.returncode == 0, stderr
    return json.loads(stdout), state


def _mac(lab: ClientServer) -> str:
    """The server's hardware address, as its own namespace's ip(8) shows it."""
    links = json.loads(lab.server.run(["ip", "-j", "link", "show", lab.interface]).stdout)
    return str(links[0]["address"])


def _queues(lab: ClientServer) -> list[tuple[int, int]]:
    lines = lab.server.run(["cat", "/proc/net/netfilter/nfnetlink_queue"]).stdout.splitlines()
    return [(int(line.split()[2]), int(line.split()[5])) for line in lines]


def _total_waiting(server: Namespace) -> int:
    lines = server.run(["cat", "/proc/net/netfilter/nfnetlink_queue"]).stdout.splitlines()
    return sum(int(line.split()[2]) for line in lines)


def _syns_answered(server: Namespace) -> int:
    """Passive handshakes begun or refused: SYNs that came as far as TCP (in segments)."""
    lines = server.run(["cat", "/proc/net/snmp"]).stdout.splitlines()
    names, values = (line.split()[1:] for line in lines if line.startswith("Tcp:"))
    return int(dict(zip(names, values, strict=True))["InSegs"])
