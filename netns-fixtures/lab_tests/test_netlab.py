"""The lab cleans up after itself, and its oracles notice what they are for."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from netlab.errors import CommandError, NotReadyError
from netlab.listenwatch import ListenWatch
from netlab.load import Load
from netlab.processes import describe
from netlab.program import Program, wait_until
from netlab.servers import Envoy, FdService, Gunicorn, HAProxy, HttpServer, Nginx, Redis, Service
from netlab.snapshot import NetworkState
from netlab.topology import ClientServer, Namespace

_PACKAGE = Path(__file__).parents[1] / "netlab"

_ALL_IN_ONE = """
import sys
sys.path.insert(0, sys.argv[1])
from netlab.isolation import enter_private_namespaces
enter_private_namespaces()
from netlab.topology import ClientServer
with ClientServer() as lab:
    lab.server.run(["nft", "add", "table", "inet", "lab"])
    lab.client.run(["ping", "-c", "1", "-W", "2", lab.server_ipv4], check=False)
    print(lab.server.run(["nft", "list", "tables"]).stdout)
"""


def test_processes_and_namespaces_end_with_the_context() -> None:
    with Namespace() as namespace:
        namespace.run(["sh", "-c", "setsid sleep 300 & setsid sleep 301 &"])
        stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        with Program(namespace, [sys.executable, "-c", stubborn + "time.sleep(300)"]):
            pids = namespace.pids()
            assert len(pids) == 3
            namespace.run(["true"])

    alive = [process for pid in pids if (process := describe(pid)) and process.arguments]
    assert not alive
    assert not namespace.path.exists()


def test_a_failing_command_shows_its_output(lab: ClientServer) -> None:
    with pytest.raises(CommandError, match="sorry") as caught:
        lab.server.run(["sh", "-c", "echo sorry >&2; exit 3"])
    assert caught.value.status == 3
    with pytest.raises(CommandError, match="did not end in time"):
        lab.server.run(["sleep", "300"], timeout_s=0.1)


def test_a_program_that_never_listens_shows_its_output(lab: ClientServer) -> None:
    argv = ["sh", "-c", "echo looking for my config; exec sleep 300"]
    program = Program(lab.server, argv, listens_on=[("0.0.0.0", 80)], deadline_s=0.2)
    with pytest.raises(NotReadyError, match="looking for my config"), program:
        pass
    assert not lab.server.pids()


def test_an_unprivileged_user_gets_a_lab(as_nobody: list[str], tmp_path: Path) -> None:
    """In a user namespace of its own, with nothing inherited from this one."""
    shutil.copytree(_PACKAGE, tmp_path / "netlab")
    result = subprocess.run(
        [*as_nobody, "/usr/bin/python3", "-c", _ALL_IN_ONE, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.split() == ["table", "inet", "lab"], result.stderr


def test_state_ignores_counters_and_empty_tables(lab: ClientServer, tmp_path: Path) -> None:
    lab.server.run(["nft", "add table inet foreign"])
    lab.server.run(["nft", "add chain inet foreign in { type filter hook input priority 0; }"])
    lab.server.run(["nft", "add rule inet foreign in counter"])
    before = NetworkState.capture(lab.server, [tmp_path / "absent"])

    lab.client.run(["ping", "-c", "1", lab.server_ipv4], check=False)
    lab.server.run(["iptables-legacy", "-t", "mangle", "-L"])
    (tmp_path / "absent").mkdir()

    assert before.difference(NetworkState.capture(lab.server, [tmp_path / "absent"])) == []


@pytest.mark.parametrize(
    ("change", "aspect"),
    [
        (["nft", "add table inet left_behind"], "nft ruleset"),
        (["iptables-legacy", "-t", "mangle", "-A", "INPUT", "-p", "tcp"], "iptables-legacy"),
        (["ip6tables-legacy", "-N", "left_behind"], "ip6tables-legacy"),
        (["tc", "qdisc", "add", "dev", "lo", "ingress"], "qdisc"),
        (["ip", "link", "add", "left0", "type", "ifb"], "link"),
        (["ip", "link", "set", "veth0", "promisc", "on"], "link"),
        (["ip", "link", "set", "veth0", "mtu", "1400"], "link"),
        (["ip", "link", "set", "veth0", "txqueuelen", "7"], "link"),
        (["ip", "link", "set", "lo", "down"], "link"),
        (["tc", "qdisc", "replace", "dev", "veth0", "root", "pfifo"], "link"),
        (["touch", "/run/synplug-test/ledger"], "file"),
    ],
)
def test_state_sees_what_is_left_behind(lab: ClientServer, change: list[str], aspect: str) -> None:
    Path("/run/synplug-test").mkdir(exist_ok=True)
    before = NetworkState.capture(lab.server, ["/run/synplug-test"])
    lab.server.run(change)
    after = NetworkState.capture(lab.server, ["/run/synplug-test"])
    shutil.rmtree("/run/synplug-test")

    assert any(line.startswith(f"+ {aspect}: ") for line in before.difference(after))
    assert any(line.startswith(f"- {aspect}: ") for line in after.difference(before))


def test_state_sees_a_filter_and_a_process(lab: ClientServer) -> None:
    lab.server.run(["tc", "qdisc", "add", "dev", "veth0", "clsact"])
    before = NetworkState.capture(lab.server)
    match = ["protocol", "ip", "u32", "match", "u32", "0", "0", "flowid", "1:1"]
    lab.server.run(["tc", "filter", "add", "dev", "veth0", "ingress", *match])
    with Program(lab.server, ["sh", "-c", "sleep 300; :", "synplug"]):
        lines = before.difference(NetworkState.capture(lab.server))

    assert any("+ filter: veth0 ingress" in line for line in lines)
    assert "+ synplug process: sh -c sleep 300; : synplug" in lines


@pytest.mark.parametrize("make", [HAProxy, Nginx, Redis, Gunicorn, HttpServer])
def test_watch_sees_the_gap_of_a_cold_restart(lab: ClientServer, make: type[Service]) -> None:
    with make(lab.server) as service:
        old = service.pids
        with ListenWatch(lab.server, service.ports) as watch:
            lab.server.run(service.restart_argv, timeout_s=30)
            service.wait_until_listening()
        assert service.pids != old

    assert {gap.family for gap in watch.gaps} == {4, 6}
    assert all(gap.duration_ms > 0 for gap in watch.gaps)


def test_the_watch_goes_before_all_others_where_it_may(lab: ClientServer) -> None:
    attempt = "import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))"
    may = lab.server.run([sys.executable, "-c", attempt], check=False).returncode == 0
    with ListenWatch(lab.server, [8080]) as watch:
        (pid,) = lab.server.pids()
        assert (os.sched_getscheduler(pid) == os.SCHED_FIFO) is may
    assert watch.longest_interval_ms > 0


def test_watch_sees_no_gap_when_a_reload_keeps_the_sockets(lab: ClientServer) -> None:
    with (
        Nginx(lab.server, ports=(8080, 8081), workers=4, reuseport=True) as service,
        ListenWatch(lab.server, service.ports) as watch,
        Load(lab.client, service.targets(lab.server_addresses), 1000) as load,
    ):
        service.set_workers(2)
        lab.server.run(service.reload_argv)
        load.stop()

    assert watch.gaps == []
    assert {sample.target for sample in load.result.samples} == {0, 1, 2, 3}


@pytest.mark.parametrize("make", [HAProxy, Nginx, Redis, Gunicorn])
def test_backlog_and_addresses_reach_the_socket(
    lab: ClientServer, make: Callable[..., Service]
) -> None:
    with make(lab.server, backlog=77, addresses=[lab.server_ipv4, lab.server_ipv6]) as service:
        sockets = lab.server.run(["ss", "-Hltn"]).stdout.splitlines()

    backlogs = {line.split()[3]: line.split()[2] for line in sockets}
    (port,) = service.ports
    assert backlogs == {f"{lab.server_ipv4}:{port}": "77", f"[{lab.server_ipv6}]:{port}": "77"}


@pytest.mark.parametrize(("make", "graceful"), [(HAProxy, signal.SIGUSR1), (Nginx, signal.SIGQUIT)])
def test_a_graceful_stop_ends_the_service(
    lab: ClientServer, make: Callable[..., Service], graceful: signal.Signals
) -> None:
    with make(lab.server, ports=(8080, 8081), stop_signal=graceful) as service:
        assert service.running
        service.stop()
        assert not service.running
        service.stop()
        service.start()
        assert service.running


def test_gunicorn_reloads_without_a_gap(lab: ClientServer) -> None:
    with Gunicorn(lab.server) as service, ListenWatch(lab.server, service.ports) as watch:
        workers = set(lab.server.pids())
        lab.server.run(service.reload_argv)
        wait_until(
            lambda: len(set(lab.server.pids()) - workers) >= service.workers, 10, "new workers"
        )

    assert watch.gaps == []


def test_haproxy_reloads_with_a_gap_only_without_reuseport(lab: ClientServer) -> None:
    gaps = {}
    for reuseport in (True, False):
        with HAProxy(lab.server, reuseport=reuseport) as service:
            old = service.pids
            with ListenWatch(lab.server, service.ports) as watch:
                lab.server.run(service.reload_argv)
                service.wait_until_listening()
            assert service.pids != old
            gaps[reuseport] = watch.gaps

    assert gaps[True] == []
    assert gaps[False]


@pytest.mark.parametrize(
    "make",
    [
        lambda namespace: HAProxy(namespace, seamless=True),
        lambda namespace: FdService(namespace, superdaemon=True),
        lambda namespace: Envoy(namespace, hot_restart=True),
    ],
    ids=["haproxy -x", "start_server", "envoy hot restart"],
)
def test_who_hands_its_listeners_on_loses_nobody(
    lab: ClientServer, make: Callable[[Namespace], HAProxy | FdService | Envoy]
) -> None:
    with make(lab.server) as service:
        targets = service.targets(lab.server_addresses)
        for _ in range(2):
            with (
                ListenWatch(lab.server, service.ports) as watch,
                Load(lab.client, targets, rate_per_s=300) as load,
            ):
                lab.server.run(service.reload_argv)
            assert load.result.failures == 0, load.result.summary()
            assert not watch.gaps
            service.wait_until_listening()
