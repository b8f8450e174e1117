"""Containers behind a published port: replaced by another one, elsewhere, and nobody notices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from netlab.load import Load
from netlab.load_result import LoadResult
from netlab.program import wait_until
from netlab.snapshot import NetworkState
from tests.integration import shell
from tests.integration.containers import HOST, PUBLISHED, Engine, engine

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
