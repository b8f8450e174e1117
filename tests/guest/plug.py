"""What tests of the plug backend have in common."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from netlab.program import wait_until
from netlab.topology import ClientServer, Namespace
from tests.integration import shell
from tests.integration.connect import connects_within, holds_in_force

PLUG = ["--backend", "plug", "--max-hold", "60s"]
_LISTEN = (
    "import socket, sys, time; at = ('', int(sys.argv[1])); family = socket.AF_INET6; "
    "ours = socket.create_server(at, family=family, dualstack_ipv6=True); time.sleep(300)"
)


@contextmanager
def standing_clsact(server: Namespace) -> Iterator[None]:
    """On each of its devices; the kernel drops what a device sends while one is put on or off."""
    devices = ("lo", wire(server))
    for name in devices:
        server.run(["tc", "qdisc", "add", "dev", name, "clsact"])
    try:
        yield
    finally:
        for name in devices:
            server.run(["tc", "qdisc", "del", "dev", name, "clsact"])


def hold(lab: ClientServer, *options: str) -> None:
    """Hold port 8080 as `web`."""
    outcome = shell.run(lab.server, "hold", "-p", "8080", "--name", "web", *PLUG, *options)
    assert outcome.status == 0, outcome


def listen_at(server: Namespace, port: int) -> None:
    """Start somebody else, who listens there."""
    server.popen([sys.executable, "-S", "-c", _LISTEN, str(port)])
    wait_until(lambda: connects_within(server, ("127.0.0.1", port), 2), 30, "it listens")


def ledger(lab: ClientServer) -> list[object]:
    """Its entries."""
    found: list[object] = json.loads(shell.run(lab.server, "status", "--json").stdout)
    return found


def ifb(lab: ClientServer) -> str:
    """The name of the run's own device."""
    links = json.loads(lab.server.run(["ip", "-j", "link", "show"]).stdout)
    (name,) = [link["ifname"] for link in links if link["ifname"].startswith("synplug")]
    return str(name)


def device(lab: ClientServer) -> str:
    """The name of the server's wire."""
    return wire(lab.server)


def wire(namespace: Namespace) -> str:
    """The name of its one device besides ``lo``."""
    links = json.loads(namespace.run(["ip", "-j", "link", "show"]).stdout)
    (name,) = [link["ifname"] for link in links if link["ifname"] != "lo"]
    return str(name)


def backlog(lab: ClientServer) -> int:
    """Packets in the plug, as tc(8) shows them."""
    shown = json.loads(lab.server.run(["tc", "-s", "-j", "qdisc", "show", "dev", ifb(lab)]).stdout)
    return int(shown[0]["qlen"])


def waits(lab: ClientServer, number: int) -> None:
    """Wait until so many packets are in the plug."""
    wait_until(lambda: backlog(lab) >= number, 30, f"{number} SYNs wait in the plug")


def kill_everything(lab: ClientServer) -> None:
    """The keeper, and its watcher before it could clean up."""
    keeper = holds_in_force(lab.server)[0]["keeper"]
    with open(f"/proc/{keeper}/task/{keeper}/children") as file:
        (watcher,) = map(int, file.read().split())
    os.kill(keeper, signal.SIGSTOP)
    os.kill(watcher, signal.SIGKILL)
    os.kill(keeper, signal.SIGKILL)
