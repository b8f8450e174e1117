"""Clients that are far away: their request sockets take the room of a listener for a round trip.

netem, which the machine's own kernel may lack, delays what the clients' wire carries.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from netlab.counters import NO_ROOM
from netlab.topology import ClientServer
from tests.guest.plug import wire
from tests.integration.cold import Cold, Seen
from tests.integration.conftest import SimpleService

pytestmark = [pytest.mark.guests_only, pytest.mark.needs("nfqueue-iptables")]

ROUND_TRIP_MS = 100
CLIENTS, BACKLOG = 300, 64


def _seen(lab: ClientServer, folder: Path, release: str) -> Seen:
    delay = f"root netem delay {ROUND_TRIP_MS // 2}ms limit 10000".split()
    for namespace in (lab.client, lab.server):
        namespace.run(["tc", "qdisc", "add", "dev", wire(namespace), *delay])
    cold = Cold(lab=lab, service=SimpleService(namespace=lab.server, directory=folder))
    options = ["--backend", "nfqueue-iptables", "--release", release]
    try:
        return cold.play(options, clients=CLIENTS, rate_per_s=100, backlog=BACKLOG)
    finally:
        for namespace in (lab.client, lab.server):
            namespace.run(["tc", "qdisc", "del", "dev", wire(namespace), "root"])


def test_nobody_far_away_meets_a_full_listener(lab: ClientServer, tmp_path: Path) -> None:
    seen = _seen(lab, tmp_path, "paced")
    assert seen.cliff == dict.fromkeys(NO_ROOM, 0), str(seen.report["hold"])
    assert seen.load.failures == 0, seen.load.summary()
    assert seen.load.attempted >= CLIENTS * 0.99
    assert seen.load.connect_max_ms > ROUND_TRIP_MS


def test_the_control_a_burst_meets_it(lab: ClientServer, tmp_path: Path) -> None:
    seen = _seen(lab, tmp_path, "burst")
    assert sum(seen.cliff.values()) > CLIENTS / 4, seen.cliff
