"""A flood of SYNs while connections are held: who is there is served, and memory stays bounded.

The sources are forged, in namespaces of the test's own: the client sends, and drops what comes
back to them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from netlab.compiled import compiled
from netlab.load import Load
from netlab.load_result import LoadResult
from netlab.topology import ClientServer
from tests.integration import shell
from tests.integration.conftest import SimpleService
from tests.integration.connect import holds_in_force

FLOOD = 30_000
FLOOD_RATE = 20_000
#: New connections of those who are there; the flood lasts a second and a half.
RATE_PER_S = 100
SPARE_MS = 250
FIRST_SOURCE = {4: "198.18.0.1", 6: "2001:db8:f00d::1"}


@pytest.fixture
def routed(lab: ClientServer) -> Iterator[ClientServer]:
    """Answers to forged sources go to the client, which drops them; nothing else is there."""
    for version in (4, 6):
        gateway = lab.client_ipv4 if version == 4 else lab.client_ipv6
        lab.server.run(["ip", f"-{version}", "route", "add", "default", "via", gateway])
    yield lab
    for version in (4, 6):
        lab.server.run(["ip", f"-{version}", "route", "del", "default"])


@pytest.mark.parametrize("version", [4, 6])
def test_one_source_does_not_take_the_whole_hold(
    routed: ClientServer, simple: SimpleService, version: int
) -> None:
    options = ["--max-held", "2048", "--max-held-per-source", "1000"]
    report, load = _flooded(routed, simple, version, 1, options)
    assert load.failures == 0, load.summary()
    hold = report["hold"]
    assert load.connect_max_ms < hold["duration_s"] * 1000 + SPARE_MS, load.summary()
    # But for what is sent again at the very release, or was dropped before it came to the hold.
    assert hold["duplicates"] >= 0.9 * load.retransmitted, "what is sent again is there already"
    assert hold["overflowed"] == 0
    assert hold["over_source"] >= FLOOD * 0.9 - 1000
    assert hold["peak"] <= 2048
    assert any("--max-held-per-source" in warning for warning in report["warnings"])


def test_without_the_limit_it_does(routed: ClientServer, simple: SimpleService) -> None:
    """The control."""
    report, load = _flooded(routed, simple, 4, 1, ["--max-held", "2048"])
    again = report["hold"]["duplicates"]
    assert again < 0.7 * load.retransmitted, "what is sent again was not there"
    assert report["hold"]["overflowed"] > 0
    assert report["hold"]["over_source"] == 0


@pytest.mark.parametrize("version", [4, 6])
def test_a_flood_that_fits_costs_nobody_anything_but_time(
    routed: ClientServer, simple: SimpleService, version: int
) -> None:
    report, load = _flooded(routed, simple, version, FLOOD, ["--max-held", "65536"])
    assert load.failures == 0, load.summary()
    hold = report["hold"]
    assert hold["overflowed"] == 0
    assert hold["held"] >= FLOOD * 0.9
    assert hold["reason"] == "asked", "not held up until the deadline by forged handshakes"


def test_a_flood_that_does_not_fit_stays_within_the_limit(
    routed: ClientServer, simple: SimpleService
) -> None:
    report, load = _flooded(routed, simple, 4, FLOOD, ["--max-held", "8192"])
    hold = report["hold"]
    assert hold["peak"] <= 8192
    assert hold["overflowed"] >= FLOOD * 0.9 - 8192
    assert hold["reason"] == "asked"
    assert load.failures == 0, "whoever did not fit has tried again: " + load.summary()


def _flooded(
    lab: ClientServer, simple: SimpleService, version: int, sources: int, options: list[str]
) -> tuple[dict[str, Any], LoadResult]:
    """Hold, flood, restart, release, under load; the keeper's memory is looked at, too."""
    address = lab.server_ipv4 if version == 4 else lab.server_ipv6
    with Load(lab.client, [(address, 8080)], rate_per_s=RATE_PER_S, timeout_s=15) as load:
        hold = ["hold", "-p", "8080", "--name", "web", "--max-hold", "30s", *options]
        outcome = shell.run(lab.server, *hold)
        assert outcome.status == 0, outcome
        (entry,) = holds_in_force(lab.server)
        before = _private_bytes(entry["keeper"])
        argv = [str(compiled("synflood")), address, "8080", FIRST_SOURCE[version], str(sources)]
        done = lab.client.run([*argv, str(FLOOD), str(FLOOD_RATE)], timeout_s=30)
        sent, rate = map(float, done.stdout.split())
        assert sent >= FLOOD * 0.9, "the flood was none"
        assert rate > FLOOD_RATE / 2, "the flood was none"
        held = min(FLOOD, int(options[1]))
        grown = _private_bytes(entry["keeper"]) - before
        assert grown < 4_000_000 + 700 * held, f"{grown} bytes for {held} held"
        lab.server.run(["sh", "-c", simple.stop_line()])
        lab.server.run(simple.start_argv())
        released = shell.run(lab.server, "release", "--name", "web", "--json", "-")
        assert released.status == 0, released
        result = load.stop()
    return released.report, result


def _private_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup") as file:
        found = re.findall(r"^Private_\w+:\s+(\d+) kB", file.read(), re.MULTILINE)
    return 1024 * sum(map(int, found))
