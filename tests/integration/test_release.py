"""The release has no cliff: what waited arrives at the pace at which the service accepts.

The same with ``--release burst`` is the control: it overflows the listener's backlog.
"""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import pytest

from netlab.counters import NO_ROOM
from netlab.load import Load, LoadResult
from netlab.program import wait_until
from netlab.topology import ClientServer
from synplug.model import Endpoint
from tests.integration import shell
from tests.integration.cold import Cold
from tests.integration.conftest import SimpleService
from tests.integration.connect import holds_in_force


@pytest.fixture
def cold(lab: ClientServer, tmp_path: Path) -> Cold:
    """A lab whose service is not there yet."""
    return Cold(lab=lab, service=SimpleService(namespace=lab.server, directory=tmp_path))


@pytest.mark.parametrize("backlog", [128, 511, 4096])
def test_nobody_meets_a_full_listener(cold: Cold, backlog: int) -> None:
    seen = cold.play([], clients=5000, rate_per_s=5000, backlog=backlog)
    assert seen.cliff == dict.fromkeys(NO_ROOM, 0), str(seen.report["hold"])
    assert seen.load.attempted >= 5000 * 0.99
    assert seen.load.failures == 0, seen.load.summary()
    hold = seen.report["hold"]
    assert hold["released"] == hold["held"], seen.report
    assert f"backlog of {backlog}" in hold["release_limit"]


def test_the_control_a_burst_meets_it(cold: Cold) -> None:
    seen = cold.play(["--release", "burst"], clients=5000, rate_per_s=5000, backlog=128)
    assert seen.cliff["ListenOverflows"] > 100, seen


def test_50000_who_waited(cold: Cold) -> None:
    """Patient clients that back off from the start, as those of a kernel before 6.5 do.

    50,000 that send again every second ask more of the lab's virtual cable than it carries; and
    what it drops at once is sent again soon, and counts as a try (``net/ipv4/tcp_timer.c``,
    TCP_RESOURCE_PROBE_INTERVAL).
    """
    cold.lab.client.set_sysctl("net.ipv4.tcp_syn_linear_timeouts", 0)
    cold.lab.client.set_sysctl("net.ipv4.tcp_syn_retries", 100)
    seen = cold.play([], clients=50_000, rate_per_s=10_000, backlog=4096, accepts_per_s=10_000)
    assert seen.cliff == dict.fromkeys(NO_ROOM, 0), str(seen.report["hold"])
    assert seen.load.failures == 0, seen.load.summary()
    assert seen.report["hold"]["released"] == seen.report["hold"]["held"] >= 50_000 * 0.99


@pytest.mark.parametrize(
    ("fine", "hung", "told"),
    [
        pytest.param(("::", 8080), ("::", 8090), "port 8090", id="another port"),
        pytest.param(
            (ClientServer.server_ipv4, 8080),
            (ClientServer.server_ipv6, 8080),
            f"[{ClientServer.server_ipv6}]:8080",
            id="another address of the port",
        ),
    ],
)
def test_a_service_that_does_not_accept_holds_back_its_own_clients_alone(
    lab: ClientServer, tmp_path: Path, fine: tuple[str, int], hung: tuple[str, int], told: str
) -> None:
    """One run restarts two services; one of them hangs once it listens."""
    report, served = _two_restarted(lab, tmp_path, fine, hung, ["--backlog", "4", "--lazy", "60"])
    assert f"{told}: backlog of 4" in report["hold"]["release_limit"], report
    assert report["hold"]["duration_s"] > 4, report["hold"]
    (hurried,) = [words for words in report["warnings"] if "--max-hold was over" in words]
    assert 0 < int(hurried.split()[0]) <= 80, "of 80 there was room for a few"
    assert served.failures == 0, served.summary()
    assert served.attempted > 50
    assert served.connect_max_ms < 4000, "the others are not"


def test_a_service_that_is_slow_does_not_set_the_pace_of_another_address(
    lab: ClientServer, tmp_path: Path
) -> None:
    """Of the same port. It lets in 20 a second of the 80 that wait, so it takes 4 s."""
    fine, slow = (lab.server_ipv4, 8080), (lab.server_ipv6, 8080)
    options = ["--backlog", "16", "--rate", "20"]
    report, served = _two_restarted(lab, tmp_path, fine, slow, options)
    assert f"[{lab.server_ipv6}]:8080: backlog of 16" in report["hold"]["release_limit"], report
    assert report["hold"]["duration_s"] > 4, report["hold"]
    assert served.failures == 0, served.summary()
    assert served.attempted > 50
    assert served.connect_max_ms < 3000, "a second for the start, half a one until it is seen"


def _two_restarted(
    lab: ClientServer,
    tmp_path: Path,
    fine: tuple[str, int],
    other: tuple[str, int],
    options: list[str],
) -> tuple[dict[str, Any], LoadResult]:
    """Restart two services in one run, with 80 clients for each; the report, and *fine*'s clients.

    :param options: of the *other*.
    """
    lines: list[str] = []
    targets: list[list[tuple[str, int]]] = []
    for (address, port), own in ((fine, ["--backlog", "16"]), (other, options)):
        directory = tmp_path / str(len(lines))
        directory.mkdir()
        service = SimpleService(namespace=lab.server, directory=directory, port=port)
        lines.append(service.start_argv("--delay", "1", "--address", address, *own)[2])
        targets.append(service.targets(lab) if address == "::" else [(address, port)])
    wanted = ",".join(str(Endpoint(port=port, address=_own(host))) for host, port in (fine, other))
    argv = ["wrap", "--json", "-", "-p", wanted, "--max-hold", "5s"]
    run = shell.start(lab.server, *argv, "--", "sh", "-c", "\n".join(lines))
    wait_until(lambda: bool(holds_in_force(lab.server)), 10, "connections are held")
    loads = [
        Load(lab.client, of_one, rate_per_s=100, timeout_s=9.0, duration_s=0.8, expect_ready=False)
        for of_one in targets
    ]
    with loads[0] as load, loads[1]:
        stdout, _ = run.communicate(timeout=60)
        served = load.wait()
    return json.loads(stdout), served


def _own(host: str) -> IPv4Address | IPv6Address | None:
    address = ip_address(host)
    return None if address.is_unspecified else address
