"""Containers behind a published port: replaced by another one, elsewhere, and nobody notices."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from netlab.load import Load
from netlab.load_result import LoadResult
from netlab.program import Program, wait_until
from netlab.snapshot import NetworkState
from tests.integration import shell
from tests.integration.conftest import SERVER
from tests.integration.connect import connecting, connects_within, holds_in_force
from tests.integration.containers import HOST, PORT, PUBLISHED, Engine, engine

RATE_PER_S = 300
RETRANSMISSION_MS = 1000


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Engine]:
    with engine(tmp_path) as made:
        yield made


def under_load(lab: Engine, path: str, *argv: str) -> tuple[LoadResult, shell.Outcome]:
    """Run a command on the host while new connections come, from outside or from the host."""
    client = lab.client if path == "outside" else lab.host
    targets = [(address, PUBLISHED) for address in HOST]
    with Load(client, targets, rate_per_s=RATE_PER_S) as load:
        done = shell.run_plainly(lab.host, argv)
        wait_until(lab.answers, 10, "the new container answers")
        return load.stop(), done


def wrapped(lab: Engine, *options: str) -> tuple[str, ...]:
    port = ("-p", str(PUBLISHED), "--ready-http", f"http://{HOST[0]}:{PUBLISHED}/")
    return (
        *shell.SYNPLUG,
        *("wrap", "--json", "-", "--hook", "prerouting", *port, *options, "--"),
        *lab.replace_argv("--delay", "0.3"),
    )


@pytest.mark.parametrize("path", ["outside", "host"])
@pytest.mark.parametrize("backend", ["nfqueue", "nfqueue-iptables"])
def test_nobody_notices_that_the_container_is_another_one(
    lab: Engine, path: str, backend: str
) -> None:
    before = NetworkState.capture(lab.host)
    netns = lab.old.namespace.name
    result, done = under_load(
        lab, path, *wrapped(lab, "--backend", backend, "--drain-netns", netns)
    )
    assert done.status == 0, done
    assert result.failures == 0, result.summary()
    assert result.connect_max_ms < RETRANSMISSION_MS, result.summary()
    report = done.report
    assert report["outcome"] == "ready"
    assert report["readiness"] == "unseen"
    assert report["warnings"] == []
    assert report["drain"]["empty"]
    assert report["hold"]["backend"] == backend
    assert report["hold"]["held"] > RATE_PER_S * 0.3 / 2
    assert report["hold"]["released"] == report["hold"]["held"]
    assert report["old_listeners"][0]["port"] == 8081
    after = NetworkState.capture(lab.host)
    left = [line for line in before.difference(after) if "synplug" in line]
    assert left == []


@pytest.mark.parametrize("path", ["outside", "host"])
def test_without_it_connections_are_lost(lab: Engine, path: str) -> None:
    """The control."""
    result, done = under_load(lab, path, *lab.replace_argv("--delay", "0.3"))
    assert done.status == 0, done
    assert result.failures > RATE_PER_S * 0.3 / 2, result.summary()


# --- by hand: a hold that is left to its keeper


def hold(lab: Engine, *options: str) -> None:
    argv = ("hold", "--name", "web", "--max-hold", "20s", "--quiesce", "0", *options)
    done = shell.run(lab.host, *argv)
    assert done.status == 0, done


def release(lab: Engine, *options: str) -> shell.Outcome:
    return shell.run(lab.host, "release", "--name", "web", "--json", "-", *options)


@pytest.mark.parametrize("backend", ["nfqueue", "nfqueue-iptables"])
@pytest.mark.parametrize("address", HOST)
def test_what_is_for_others_passes(lab: Engine, backend: str, address: str) -> None:
    """A hold of the port that is published is about this host's addresses, not the container's."""
    hold(lab, "--backend", backend, "--hook", "prerouting", "-p", f"{PUBLISHED},{PORT}")
    direct = lab.old.addresses[HOST.index(address)]
    assert connects_within(lab.client, (direct, PORT), 0.5)
    with connecting(lab.client, (address, PUBLISHED), 10) as waiting:
        wait_until(lambda: held(lab) == 1, 5, "one waits")
        assert waiting.poll() is None
        done = release(lab, "--now")
        assert waiting.communicate(timeout=10)[0].strip()[:1].isdigit()
    assert done.status == 0, done
    assert done.report["hold"]["released"] == 1
    assert "queues could not be looked at" not in done.stderr


def test_a_release_needs_a_probe_or_no_patience(lab: Engine) -> None:
    hold(lab, "--hook", "prerouting", "-p", str(PUBLISHED))
    refused = release(lab)
    assert refused.status == 125
    assert "only a probe can tell (add --ready-http URL or --ready-cmd CMD)" in refused.stderr
    url = f"http://{HOST[0]}:{PUBLISHED}/"
    done = release(lab, "--ready-http", url)
    assert done.status == 0, done
    assert done.report["readiness"] == "unseen"
    assert (done.report["old_listeners"], done.report["new_listeners"]) == ([], [])


@pytest.mark.parametrize("address", HOST)
def test_a_local_client_waits_where_it_sends(lab: Engine, address: str) -> None:
    """Over loopback, too, where an engine's proxy listens; and it waits once, not twice."""
    proxy = [sys.executable, str(SERVER), str(PUBLISHED)]
    loopback = "::1" if ":" in address else "127.0.0.1"
    with Program(lab.host, proxy, listens_on=[("::", PUBLISHED)]):
        hold(lab, "--hook", "prerouting", "-p", str(PUBLISHED))
        with (
            connecting(lab.host, (loopback, PUBLISHED), 10) as near,
            connecting(lab.host, (address, PUBLISHED), 10) as far,
        ):
            wait_until(lambda: held(lab) == 2, 5, "both wait")
            done = release(lab, "--now")
            for client in (near, far):
                assert client.communicate(timeout=10)[0].strip()[:1].isdigit()
    assert done.report["hold"]["held"] == 2


def held(lab: Engine) -> int:
    """How many packets wait in the host's netfilter queues."""
    states = lab.host.run(["cat", "/proc/net/netfilter/nfnetlink_queue"]).stdout
    return sum(int(line.split()[2]) for line in states.splitlines())


# --- after DNAT


@pytest.mark.parametrize("backend", ["nfqueue", "nfqueue-iptables"])
def test_a_container_that_keeps_its_address(tmp_path: Path, backend: str) -> None:
    with engine(tmp_path, same_address=True) as lab:
        result, done = under_load(
            lab,
            "outside",
            *shell.SYNPLUG,
            *("wrap", "--json", "-", "--hook", "forward", "--backend", backend),
            *("-p", f"{lab.new.addresses[0]}:{PORT},[{lab.new.addresses[1]}]:{PORT}"),
            *("--ready-http", f"http://{lab.new.addresses[0]}:{PORT}/"),
            *("--drain-netns", str(lab.old.namespace.path), "--"),
            *lab.replace_argv("--delay", "0.3"),
        )
    assert done.status == 0, done
    assert result.failures == 0, result.summary()
    assert result.connect_max_ms < RETRANSMISSION_MS, result.summary()
    assert done.report["warnings"] == []
    assert done.report["hold"]["held"] > RATE_PER_S * 0.3 / 2


# --- what cannot be seen is said


def test_queues_that_nobody_looked_at_are_named(lab: Engine) -> None:
    done = shell.run_plainly(lab.host, wrapped(lab))
    assert done.status == 0, done
    assert done.report["drain"] is None
    assert done.report["warnings"] == [
        "the old listener's queues could not be looked at (--hook prerouting without "
        "--drain-netns): what it had not finished may be lost"
    ]


def test_a_drain_netns_that_is_not_there_holds_nothing(lab: Engine) -> None:
    done = shell.run_plainly(lab.host, wrapped(lab, "--drain-netns", "nowhere"))
    assert done.status == 125
    assert "no network namespace 'nowhere'" in done.report["error"]
    assert not done.report["command"]["ran"]
    assert lab.old.pidfile.exists()


def test_a_container_that_never_answers_is_let_go_at_the_deadline(lab: Engine) -> None:
    url = f"http://{HOST[0]}:{PUBLISHED}/"
    options = ("--hook", "prerouting", "-p", str(PUBLISHED), "--max-hold", "700ms")
    stop = ["sh", "-c", lab.old.remove()]
    done = shell.wrap(lab.host, [*options, "--ready-http", url], stop)
    assert done.status == 124
    assert any("the readiness check did not pass in time" in w for w in done.report["warnings"])


@pytest.mark.parametrize("backend", ["nfqueue", "nfqueue-iptables"])
def test_what_a_killed_keeper_leaves_is_removed(lab: Engine, backend: str) -> None:
    before = NetworkState.capture(lab.host)
    hold(lab, "--backend", backend, "--hook", "prerouting", "-p", str(PUBLISHED))
    (entry,) = holds_in_force(lab.host)
    os.kill(entry["keeper"], signal.SIGKILL)
    wait_until(lab.answers, 10, "connections pass")
    shell.run(lab.host, "recover")
    left = before.difference(NetworkState.capture(lab.host))
    assert [line for line in left if "synplug" in line] == []
