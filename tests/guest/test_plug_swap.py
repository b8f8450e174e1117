"""A swap with the plug: two generations, and filters that stand while the new one is awaited."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from netlab.load import Load
from netlab.program import Program, wait_until
from netlab.topology import ClientServer
from tests.guest.plug import PLUG, ifb
from tests.integration import shell
from tests.integration.conftest import SERVER
from tests.integration.connect import connects_within

pytestmark = [pytest.mark.guests_only, pytest.mark.needs("plug")]

GENERATION = [sys.executable, str(SERVER), "8080", "--reuseport"]
#: It outlives the swap, and has none of its pipes.
QUIET = f"exec {shlex.join(GENERATION)} </dev/null >/dev/null 2>&1"
SWAP = ["swap", *PLUG, "--ready-timeout", "60s", "--json", "-"]


@pytest.fixture
def old(lab: ClientServer) -> Iterator[Program]:
    """The generation that serves."""
    with Program(lab.server, GENERATION, listens_on=[("::", 8080)]) as program:
        yield program


def test_nobody_notices(lab: ClientServer, old: Program) -> None:
    """What a swap without synplug loses, ``tests/integration/test_swap_load.py`` shows."""
    targets = [(address, 8080) for address in lab.server_addresses]
    argv = [*SWAP, "--old-pid", str(old.pid), "--", "sh", "-c", QUIET]
    with Load(lab.client, targets, rate_per_s=20, timeout_s=60) as load:
        outcome = shell.run(lab.server, *argv)
        result = load.stop()
    assert outcome.status == 0, outcome
    assert result.failures == 0, result.summary()
    held = outcome.report["hold"]
    assert (held["backend"], held["lost"], held["overflowed"]) == ("plug", 0, 0)
    wait_until(lambda: old.returncode is not None, 30, "the old generation has ended")


@pytest.mark.parametrize(
    ("tidied", "status", "said"),
    [
        (["del"], 125, "somebody has removed synplug"),
        (["set", "down"], 0, ""),
    ],
    ids=["removed", "down"],
)
def test_a_device_that_goes_while_the_new_generation_is_awaited_is_no_black_hole(
    lab: ClientServer, old: Program, tmp_path: Path, tidied: list[str], status: int, said: str
) -> None:
    """SYNs pass by it then, and the old generation serves them."""
    here, go = tmp_path / "here", tmp_path / "go"
    line = f"touch {here}; until [ -e {go} ]; do sleep 0.1; done; {QUIET}"
    run = shell.start(lab.server, *SWAP, "--old-pid", str(old.pid), "--", "sh", "-c", line)
    wait_until(here.exists, 60, "the new generation has begun")
    first, *more = tidied
    lab.server.run(["ip", "link", first, "dev", ifb(lab), *more])
    assert connects_within(lab.client, (lab.server_ipv4, 8080), 10.0), "one SYN may be dropped"
    assert connects_within(lab.client, (lab.server_ipv6, 8080), 10.0)
    go.touch()
    stdout, stderr = run.communicate(timeout=120)
    assert run.returncode == status, (stdout, stderr)
    assert said in json.loads(stdout)["error"], stdout
    assert connects_within(lab.client, (lab.server_ipv4, 8080), 10.0)
