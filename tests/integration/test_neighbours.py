"""Others in the same network namespace: their rules, their queues, other runs of synplug."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from netlab.load import Load
from netlab.program import wait_until
from netlab.topology import ClientServer, Namespace
from tests.integration import shell
from tests.integration.conftest import SimpleService
from tests.integration.connect import connecting, holds_in_force

_HOLD_LOOP = Path(__file__).with_name("programs") / "hold_loop.py"
_QUEUE_USER = Path(__file__).with_name("programs") / "queue_user.py"
_FOREIGN_NFT = """
table inet shop {
    set admins { type ipv4_addr; elements = { 192.0.2.1 } }
    chain input {
        type filter hook input priority mangle; policy accept;
        tcp dport 8080 ip saddr @admins counter packets 3 bytes 180 accept
        meta mark 0x1 counter packets 5 bytes 300
    }
    chain nat {
        type nat hook prerouting priority dstnat; policy accept;
        tcp dport 81 redirect to :82
    }
}
table ip synplug_is_not_mine {
    chain input {
        type filter hook input priority 0; policy accept;
    }
}
"""


@pytest.fixture
def foreign_rules(lab: ClientServer) -> Iterator[None]:
    """Rules of somebody else in nftables and both legacy iptables; unchanged afterwards."""
    lab.server.run(["nft", "-f", "-"], input_text=_FOREIGN_NFT)
    for tool in ("iptables-legacy", "ip6tables-legacy"):
        base = [tool, "-w", "-t", "mangle"]
        lab.server.run([*base, "-N", "shop"])
        lab.server.run([*base, "-A", "shop", "-p", "tcp", "--dport", "9", "-j", "DROP"])
        lab.server.run([*base, "-A", "INPUT", "-p", "tcp", "--dport", "9", "-j", "shop"])
    before = _all_rules(lab.server)
    assert "shop" in before
    yield
    assert _all_rules(lab.server) == before
    lab.server.run(["nft", "flush", "ruleset"])
    for tool in ("iptables-legacy", "ip6tables-legacy"):
        base = [tool, "-w", "-t", "mangle"]
        for change in (["-F"], ["-X", "shop"]):
            lab.server.run([*base, *change])


def _all_rules(server: Namespace) -> str:
    """Every rule; of nftables' counters too, since nobody sends what they count."""
    said = [server.run(["nft", "-a", "list", "ruleset"]).stdout]
    for tool in ("iptables-legacy-save", "ip6tables-legacy-save"):
        lines = server.run([tool]).stdout.splitlines()
        said += [line for line in lines if not line.startswith(("#", ":"))]
    return "\n".join(said)


@contextmanager
def foreign_queue(
    lab: ClientServer, port: int, number: int, *options: str
) -> Iterator[subprocess.Popen[str]]:
    """Somebody else's queue that holds SYNs to *port*."""
    rule = ["INPUT", "-p", "tcp", "--dport", str(port), "--syn", "-j", "NFQUEUE"]
    rule += ["--queue-num", str(number)]
    user = lab.server.popen(
        [sys.executable, "-S", str(_QUEUE_USER), str(number), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert user.stdin is not None
    assert user.stdout is not None
    assert user.stdout.readline() == "bound\n"
    lab.server.run(["iptables-legacy", "-w", "-A", *rule])
    yield user
    lab.server.run(["iptables-legacy", "-w", "-D", *rule])
    user.stdin.close()
    assert user.wait(timeout=10) == 0
    user.stdout.close()


@pytest.mark.parametrize("backend", ["nfqueue", "nfqueue-iptables"])
@pytest.mark.usefixtures("foreign_rules")
def test_foreign_rules_survive_untouched(
    lab: ClientServer, simple: SimpleService, backend: str
) -> None:
    with Load(lab.client, simple.targets(lab), rate_per_s=300) as load:
        options = ["-p", "8080", "--backend", backend]
        outcome = shell.wrap(lab.server, options, simple.restart_argv())
        result = load.stop()
    assert outcome.status == 0, outcome
    assert outcome.report["hold"]["backend"] == backend
    assert result.failures == 0, result.summary()


@pytest.mark.parametrize("backend", ["nfqueue", "nfqueue-iptables"])
def test_what_a_foreign_queue_holds_is_not_dropped(
    lab: ClientServer, simple: SimpleService, backend: str
) -> None:
    """Removing our table would flush it, so the empty table lingers until it is empty."""
    other = SimpleService(namespace=lab.server, directory=simple.directory / "o", port=8090)
    other.directory.mkdir()
    lab.server.run(other.start_argv())
    wait_until(other.listens, 10, "the other service listens")
    with foreign_queue(lab, 8090, 7) as user:
        assert user.stdin is not None
        assert user.stdout is not None
        waiting = connecting(lab.client, (lab.server_ipv4, 8090), 10)
        wait_until(lambda: _waiting_in(lab.server, 7) == 1, 10, "the foreign queue holds a SYN")
        options = ["-p", "8080", "--backend", backend]
        outcome = shell.wrap(lab.server, options, simple.restart_argv())
        assert outcome.status == 0, outcome
        assert _left(lab.server, 7) == 0, "what it was given it still holds"
        if backend == "nfqueue":
            assert "stays for a while" in " ".join(outcome.report["warnings"])
            assert f"synplug-{outcome.report['run_id']}" in _all_rules(lab.server)
        user.stdin.write("\n")
        user.stdin.flush()
        seen = int(user.stdout.readline())
        assert waiting.communicate(timeout=10)[0].strip()[0].isdigit(), "it connects"
    assert seen >= 1
    wait_until(lambda: "synplug" not in _all_rules(lab.server), 10, "the table is gone")
    wait_until(lambda: not Path("/run/synplug").exists(), 10, "the keeper has ended")


def test_sigterm_ends_the_wait_for_a_foreign_queue(
    lab: ClientServer, simple: SimpleService
) -> None:
    """What that holds is dropped once, as it is after a minute; its clients send it again."""
    with foreign_queue(lab, 8090, 7) as user:
        assert user.stdin is not None
        waiting = connecting(lab.client, (lab.server_ipv4, 8090), 10)
        wait_until(lambda: _waiting_in(lab.server, 7) == 1, 10, "the foreign queue holds a SYN")
        outcome = shell.wrap(lab.server, ["-p", "8080"], simple.restart_argv())
        assert outcome.status == 0, outcome
        (keeper,) = _lingering(lab.server)
        assert _left(lab.server, 7) == 0
        os.kill(keeper, signal.SIGTERM)
        wait_until(lambda: not Path("/run/synplug").exists(), 2, "the keeper has ended")
        assert "synplug" not in _all_rules(lab.server)
        assert _left(lab.server, 7) == 1
        wait_until(lambda: _waiting_in(lab.server, 7) == 1, 10, "it has been sent again")
        user.stdin.write("\n")
        user.stdin.flush()
        waiting.communicate(timeout=15)


def _held_by_another_run(lab: ClientServer) -> subprocess.Popen[str]:
    """Somebody whose connection waits in a hold called `other`."""
    options = ["-p", "8090", "--name", "other", "--max-hold", "60s"]
    assert shell.run(lab.server, "hold", *options).status == 0
    client = connecting(lab.client, (lab.server_ipv4, 8090), 20)
    wait_until(lambda: _waiting_in_ours(lab.server) == 1, 10, "the other run holds a SYN")
    return client


def test_sigterm_does_not_end_the_wait_for_another_run(
    lab: ClientServer, simple: SimpleService
) -> None:
    """What that holds is never dropped for it; it has a deadline of its own."""
    held = _held_by_another_run(lab)
    outcome = shell.wrap(lab.server, ["-p", "8080", "--backend", "nfqueue"], ["true"])
    assert "another synplug run holds connections" in " ".join(outcome.report["warnings"])
    (keeper,) = _lingering(lab.server)
    with os.fdopen(os.pidfd_open(keeper)) as ended:
        os.kill(keeper, signal.SIGTERM)
        assert not select.select([ended], [], [], 0.5)[0], "it waits for the other run"
        released = shell.run(lab.server, "release", "--name", "other", "--now", "--json", "-")
        assert released.report["hold"]["lost"] == 0
        assert select.select([ended], [], [], 2)[0], "and for nobody else"
    held.communicate(timeout=25)
    wait_until(lambda: not Path("/run/synplug").exists(), 10, "all keepers have ended")


def test_a_run_by_legacy_rules_waits_for_no_other_run(
    lab: ClientServer, simple: SimpleService
) -> None:
    """Its end flushes nothing: there is nothing that could linger."""
    held = _held_by_another_run(lab)
    outcome = shell.wrap(lab.server, ["-p", "8080", "--backend", "nfqueue-iptables"], ["true"])
    assert outcome.report["warnings"] == []
    assert _lingering(lab.server) == []
    assert f"synplug-{outcome.report['run_id']}" not in _all_rules(lab.server)
    released = shell.run(lab.server, "release", "--name", "other", "--now", "--json", "-")
    assert released.report["hold"]["lost"] == 0
    held.communicate(timeout=25)


@pytest.mark.parametrize("backend", ["nfqueue", "nfqueue-iptables"])
def test_a_keeper_that_is_killed_costs_another_run_a_retransmission(
    lab: ClientServer, simple: SimpleService, backend: str
) -> None:
    """The kernel removes its table at once, and that flushes every queue; legacy rules stay."""
    other = ["hold", "-p", "8080", "--name", "other", "--max-hold", "60s"]
    killed = ["hold", "-p", "8090", "--name", "killed", "--max-hold", "60s", "--backend", backend]
    for argv in (other, killed):
        assert shell.run(lab.server, *argv).status == 0
    keeper = next(e["keeper"] for e in holds_in_force(lab.server) if "*:8090" in e["endpoints"])
    held = connecting(lab.client, (lab.server_ipv4, 8080), 20)
    wait_until(lambda: _waiting_in_ours(lab.server) == 1, 10, "the other run holds a SYN")
    os.kill(keeper, signal.SIGKILL)
    is_flushed = backend == "nfqueue"
    if is_flushed:
        wait_until(lambda: _waiting_in_ours(lab.server) == 0, 1, "the table is gone")
        wait_until(lambda: _waiting_in_ours(lab.server) == 1, 10, "it has been sent again")
    released = shell.run(lab.server, "release", "--name", "other", "--json", "-")
    assert released.report["hold"]["lost"] == is_flushed
    assert ("dropped by somebody else" in " ".join(released.report["warnings"])) == is_flushed
    assert held.communicate(timeout=25)[0].strip()[0].isdigit(), "it connects"
    wait_until(lambda: not os.path.exists(f"/proc/{keeper}"), 5, "the keeper has ended")
    assert shell.run(lab.server, "recover").status == 0


def _lost_beside_holds(lab: ClientServer, other: SimpleService, *options: str) -> int:
    """Of a program that has a packet for 0.3 s of each half second, beside holds without a pause.

    So it has nothing for much longer than the removal of a hold's rest takes, on any machine.
    """
    with foreign_queue(lab, other.port, 7, "0.3") as user:
        assert user.stdin is not None
        assert user.stdout is not None
        with Load(lab.client, other.targets(lab), rate_per_s=2, timeout_s=20) as load:
            argv = [sys.executable, str(_HOLD_LOOP), "60", "0", *options]
            lab.server.run(argv, timeout_s=60)
            wait_until(lambda: not Path("/run/synplug").exists(), 20, "no rest is left")
            result = load.stop()
        user.stdin.close()
        _, lost = map(int, user.stdout.read().split())
    assert result.failures == 0 or options, result.summary()
    return lost


def test_a_foreign_queue_with_traffic_loses_next_to_nothing(
    lab: ClientServer, simple: SimpleService
) -> None:
    """Each removal would flush what it has just then; it is done when it has nothing."""
    other = SimpleService(namespace=lab.server, directory=simple.directory / "o", port=8090)
    other.directory.mkdir()
    lab.server.run(other.start_argv())
    wait_until(other.listens, 10, "the other service listens")
    blind = _lost_beside_holds(lab, other, "--at-any-moment")
    seeing = _lost_beside_holds(lab, other)
    print(blind, seeing)  # docs/failure-modes.md has the figures
    assert blind >= 4, blind
    assert seeing * 3 <= blind, (blind, seeing)


def test_two_runs_at_once_on_different_ports(lab: ClientServer, simple: SimpleService) -> None:
    """They end in any order, and neither drops what the other one holds."""
    other = SimpleService(namespace=lab.server, directory=simple.directory / "o", port=8090)
    other.directory.mkdir()
    lab.server.run(other.start_argv())
    wait_until(other.listens, 10, "the other service listens")
    targets = simple.targets(lab) + other.targets(lab)
    with Load(lab.client, targets, rate_per_s=400) as load:
        for delays in (("0.6", "0.1"), ("0.1", "0.6"), ("0.3", "0.3")):
            runs = [
                shell.start(
                    lab.server, "wrap", "-p", str(service.port), "--",
                    *service.restart_argv("--delay", delay),
                )
                for service, delay in zip((simple, other), delays, strict=True)
            ]  # fmt: skip
            for run in runs:
                _, stderr = run.communicate(timeout=30)
                assert run.returncode == 0, stderr
        result = load.stop()
    assert result.failures == 0, result.summary()
    assert result.retransmitted == 0, result.summary()
    wait_until(lambda: not Path("/run/synplug").exists(), 10, "the keepers have ended")


def test_two_runs_at_once_on_two_addresses_of_a_port(lab: ClientServer, tmp_path: Path) -> None:
    """Neither holds, drains or loses what is the other's."""
    services = {}
    for host in ("127.0.0.1", "127.0.0.2"):
        services[host] = SimpleService(namespace=lab.server, directory=tmp_path / host)
        services[host].directory.mkdir()
        lab.server.run(services[host].start_argv("--address", host))
    for service in services.values():
        wait_until(service.listens, 10, "the service listens")
    targets = [(host, 8080) for host in services]
    with Load(lab.server, targets, rate_per_s=400) as load:
        for delays in (("0.6", "0.5"), ("0.5", "0.6")):
            runs = [
                shell.start(
                    lab.server, "wrap", "-p", f"{host}:8080", "--",
                    *service.restart_argv("--address", host, "--delay", delay),
                )
                for (host, service), delay in zip(services.items(), delays, strict=True)
            ]  # fmt: skip
            wait_until(lambda: len(holds_in_force(lab.server)) == 2, 10, "both hold at once")
            for run in runs:
                _, stderr = run.communicate(timeout=30)
                assert run.returncode == 0, stderr
        result = load.stop()
    assert result.failures == 0, result.summary()
    assert result.retransmitted == 0, result.summary()
    wait_until(lambda: not Path("/run/synplug").exists(), 10, "the keepers have ended")
    for service in services.values():
        lab.server.run(["sh", "-c", service.stop_line()])


def test_a_run_on_an_address_that_overlaps_is_refused(
    lab: ClientServer, simple: SimpleService, tmp_path: Path
) -> None:
    until = tmp_path / "done"
    wait = f"until [ -e {until} ]; do sleep 0.01; done"
    first = shell.start(lab.server, "wrap", "-p", "127.0.0.1:8080", "--", "sh", "-c", wait)
    wait_until(lambda: bool(holds_in_force(lab.server)), 10, "the first one holds")
    refusals = [
        shell.run(lab.server, "wrap", "-p", endpoint, "--", "true")
        for endpoint in ("8080", "0.0.0.0:8080", "127.0.0.1:8080")
    ]
    until.touch()
    _, stderr = first.communicate(timeout=10)
    assert first.returncode == 0, stderr
    for refused in refusals:
        assert refused.status == 125
        assert "another synplug run has port 8080 at " in refused.stderr


def test_two_runs_on_the_same_port(lab: ClientServer, simple: SimpleService) -> None:
    first = shell.start(lab.server, "wrap", "-p", "8080", "--", "sleep", "1.5")
    wait_until(lambda: bool(holds_in_force(lab.server)), 10, "the first one holds")
    refused = shell.run(lab.server, "wrap", "-p", "8080", "--", "true")
    assert refused.status == 125
    assert "another synplug run has port 8080" in refused.stderr
    patient = shell.run(lab.server, "wrap", "-p", "8080", "--lock-timeout", "10s", "--", "true")
    assert patient.status == 0, patient.stderr
    first.communicate(timeout=10)
    assert first.returncode == 0


def test_a_run_that_waited_for_another_restarts_under_its_own_hold(
    lab: ClientServer, simple: SimpleService
) -> None:
    """What it saw of the listeners before it had the lock is out of date."""
    other = SimpleService(namespace=lab.server, directory=simple.directory / "second")
    other.directory.mkdir()
    with Load(lab.client, simple.targets(lab), rate_per_s=300) as load:
        restart = simple.restart_argv("--delay", "0.6")
        first = shell.start(lab.server, "wrap", "-p", "8080", "--", *restart)
        wait_until(lambda: bool(holds_in_force(lab.server)), 10, "the first one holds")
        # The second one stops whoever serves when its command runs.
        stop = f"pid=$(cat {simple.pidfile}); kill $pid; "
        stop += "while grep -qs '^State:[[:space:]]*[^ZX[:space:]]' /proc/$pid/status; "
        stop += "do sleep 0.01; done"
        command = ["sh", "-c", f"{stop}\n{other.start_argv('--delay', '0.3')[2]}"]
        options = ["-p", "8080", "--lock-timeout", "10s"]
        second = shell.wrap(lab.server, options, command)
        first.communicate(timeout=20)
        result = load.stop()
    assert (first.returncode, second.status) == (0, 0), second
    assert second.report["hold"]["duration_s"] > 0.3, second.report
    assert result.failures == 0, result.summary()


def test_a_foreign_flush_while_holding_is_reported_and_survived(
    lab: ClientServer, simple: SimpleService
) -> None:
    """Somebody reloads the firewall: the kernel drops what we hold, and clients send it again."""
    command = simple.restart_argv("--delay", "2.5")
    with Load(lab.client, simple.targets(lab), rate_per_s=200) as load:
        run = shell.start(lab.server, "wrap", "-p", "8080", "--", *command)
        wait_until(lambda: bool(holds_in_force(lab.server)), 10, "connections are held")
        lab.server.run(["nft", "-f", "-"], input_text=_FOREIGN_NFT)
        wait_until(lambda: _waiting_in_ours(lab.server) > 20, 10, "some wait")
        lab.server.run(["nft", "flush", "ruleset"])
        _, stderr = run.communicate(timeout=20)
        result = load.stop()
    assert run.returncode == 0, stderr
    assert "dropped by somebody else" in stderr
    assert result.failures == 0, result.summary()


def _lingering(server: Namespace) -> list[int]:
    """The keepers of empty rests."""
    entries = json.loads(shell.run(server, "status", "--json").stdout)
    return [entry["keeper"] for entry in entries if entry["state"] == "lingering"]


def _waiting_in(server: Namespace, number: int) -> int:
    state = server.run(["cat", "/proc/net/netfilter/nfnetlink_queue"]).stdout
    for line in state.splitlines():
        fields = line.split()
        if int(fields[0]) == number:
            return int(fields[2])
    return 0


def _left(server: Namespace, number: int) -> int:
    """How many packets have left a queue: those that came less those that wait."""
    state = server.run(["cat", "/proc/net/netfilter/nfnetlink_queue"]).stdout
    fields = next(line.split() for line in state.splitlines() if int(line.split()[0]) == number)
    return int(fields[7]) - int(fields[2])


def _waiting_in_ours(server: Namespace) -> int:
    state = server.run(["cat", "/proc/net/netfilter/nfnetlink_queue"]).stdout
    return sum(int(line.split()[2]) for line in state.splitlines())
