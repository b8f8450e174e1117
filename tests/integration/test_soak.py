"""Run after run, and many at once: nobody is lost, nobody waits in vain, and nothing grows.

``make soak`` runs these in full (``--soak``), ``make test`` a shortened form of the same tests.
Each has its control, which loses connections, waits for retransmissions, or grows.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from netlab.load import Load
from netlab.load_result import LoadResult
from netlab.program import wait_until
from netlab.servers import Nginx
from netlab.topology import ClientServer
from tests.conftest import FIGURES
from tests.integration.conftest import SimpleService
from tests.integration.soak import (
    SPARE_NS,
    Run,
    Scale,
    assert_restarted,
    nothing_left,
    start_wrap,
    waited_for_a_retransmission,
)

HOLD_LOOP = Path(__file__).with_name("programs") / "hold_loop.py"
FIRST_PORT = 6000  # reserved in the lab: no client takes one of these
#: Bounded, so that two processors under fifty runs are not what loses connections.
RATE_PER_S = 100
CONTROL_RESTARTS = 6
WARM_UP = 15
#: Room for noise: less than a small object a hold, and a quarter of a page for each of a thousand.
ALLOCATED_BYTES_PER_HOLD, RESIDENT_KIB = 200, 1024


@pytest.fixture
def scale(request: pytest.FixtureRequest) -> Scale:
    """In full, or what ``make test`` has time for."""
    if request.config.getoption("--soak"):
        return Scale(wraps=1000, at_once=50, holds=1000)
    return Scale(wraps=15, at_once=5, holds=30)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where runs put temporary files, if they make any."""
    made = tmp_path / "runs"
    made.mkdir()
    return made


def tell(request: pytest.FixtureRequest, **figures: object) -> None:
    """Figures of a soak, for its end."""
    words = ", ".join(f"{name.replace('_', ' ')} {figure}" for name, figure in figures.items())
    request.config.stash[FIGURES].append(f"{request.node.name}: {words}")


# --- one after the other


def test_wraps_in_a_row(
    lab: ClientServer, folder: Path, scale: Scale, request: pytest.FixtureRequest
) -> None:
    with Nginx(lab.server) as service:
        targets = service.targets(lab.server_addresses)
        with Load(lab.client, targets, rate_per_s=10 * RATE_PER_S) as load:
            for _ in range(CONTROL_RESTARTS):
                lab.server.run(service.restart_argv, timeout_s=30)
            lost = load.stop()
        assert lost.failures > 0, "the control lost nothing: the test shows nothing"

        began_s = time.monotonic()
        runs: list[Run] = []
        with (
            nothing_left(lab, folder),
            Load(lab.client, targets, rate_per_s=RATE_PER_S) as load,
        ):
            for _ in range(scale.wraps):
                run = start_wrap(lab.server, folder, ["-p", "8080"], service.restart_argv).wait()
                assert_restarted(run)
                runs.append(run)
            result = load.stop()
    tell(request, **figures_of(runs, result, began_s))
    assert result.failures == 0, result.summary()
    assert waited_for_a_retransmission(result, [8080] * len(targets), runs) == []
    longest_ns = max(ended - start for start, ended in (run.held_ns() for run in runs))
    assert result.connect_max_ms * 1e6 < longest_ns + SPARE_NS, result.summary()
    assert sum(run.report["hold"]["held"] for run in runs) > 0, "nobody was ever held"
    assert not grows([run.peak_kib for run in runs]), [run.peak_kib for run in runs]


def figures_of(runs: Sequence[Run], result: LoadResult, began_s: float) -> dict[str, object]:
    """What is told of a soak under load."""
    return {
        "wraps": len(runs),
        "seconds": round(time.monotonic() - began_s),
        "held": sum(run.report["hold"]["held"] for run in runs),
        "longest_hold_ms": round(max(run.report["hold"]["duration_s"] for run in runs) * 1000),
        "gaps_unseen": sum(run.report["gap_s"] is None for run in runs),
        "peak_KiB_of_a_run": max(run.peak_kib for run in runs),
        "load": result.summary(),
    }


def grows(peaks_kib: Sequence[int]) -> bool:
    """Whether later runs need more memory than earlier ones: medians, by more than a twentieth."""
    tenth = max(1, len(peaks_kib) // 10)
    first, last = sorted(peaks_kib[:tenth]), sorted(peaks_kib[-tenth:])
    return last[tenth // 2] > first[tenth // 2] * 1.05


def test_growth_is_noticed() -> None:
    assert grows([20_000 + 10 * run for run in range(1000)])
    assert not grows([20_000 + run % 7 for run in range(1000)])


# --- at once


def services(lab: ClientServer, tmp_path: Path, count: int) -> list[SimpleService]:
    """So many small servers, each on a port of its own."""
    made = []
    for port in range(FIRST_PORT, FIRST_PORT + count):
        directory = tmp_path / str(port)
        directory.mkdir()
        service = SimpleService(namespace=lab.server, directory=directory, port=port)
        lab.server.run(service.start_argv())
        made.append(service)
    for service in made:
        wait_until(service.listens, 60, f"the server on port {service.port} listens")
    return made


def restart_whoever_serves(service: SimpleService) -> list[str]:
    """A restart whose command looks up the pid when it runs: the run may have waited long."""
    gone = "while grep -qs '^State:[[:space:]]*[^ZX[:space:]]' /proc/$pid/status; "
    gone += "do sleep 0.01; done"
    stop = f"pid=$(cat {service.pidfile}); rm {service.pidfile}; kill $pid; {gone}"
    there = f"until [ -s {service.pidfile} ]; do sleep 0.01; done"
    return ["sh", "-c", f"{stop}\n{service.start_argv()[2]}\n{there}"]


@pytest.mark.parametrize("where", ["different", "same"])
def test_wraps_at_once(
    lab: ClientServer,
    tmp_path: Path,
    folder: Path,
    scale: Scale,
    where: str,
    request: pytest.FixtureRequest,
) -> None:
    """On different endpoints they hold side by side; on the same one they take turns."""
    served = services(lab, tmp_path, scale.at_once if where == "different" else 1)
    ours = served if where == "different" else served * scale.at_once
    # One each, of either family in turn: the load client has room for 64.
    targets = [
        (lab.server_addresses[number % 2], own.port)
        for number, own in enumerate(served * 2 if where == "same" else served)
    ]
    restarts = [restart_whoever_serves(service) for service in ours]
    with Load(lab.client, targets, rate_per_s=10 * RATE_PER_S) as load:
        plainly(lab, restarts[: len(served)])
        lost = load.stop()
    assert lost.failures > 0, "the control lost nothing: the test shows nothing"

    began_s = time.monotonic()
    with nothing_left(lab, folder), Load(lab.client, targets, rate_per_s=RATE_PER_S) as load:
        runs = wrapped(lab, folder, [service.port for service in ours], restarts)
        result = load.stop()
        wait_until(lambda: not Path("/run/synplug").exists(), 90, "the keepers have ended")
    late = waited_for_a_retransmission(result, [port for _, port in targets], runs)
    tell(request, **figures_of(runs, result, began_s), waited_for_a_retransmission=len(late))
    for run in runs:
        assert_restarted(run)
    assert result.failures == 0, result.summary()
    assert late == []
    if where == "same":
        assert not overlap(runs), "two runs held one endpoint at the same time"
    else:
        assert overlap(runs), "they never held at the same time"


def wrapped(
    lab: ClientServer, folder: Path, ports: Sequence[int], restarts: Sequence[Sequence[str]]
) -> list[Run]:
    """So many runs, started at once, each with a restart; they have ended."""
    options = ["--max-hold", "60s", "--lock-timeout", "5m"]
    started = [
        start_wrap(lab.server, folder, ["-p", str(port), *options], command)
        for port, command in zip(ports, restarts, strict=True)
    ]
    return [run.wait() for run in started]


def plainly(lab: ClientServer, restarts: Sequence[Sequence[str]]) -> None:
    """The same restarts at once, without synplug."""
    children = [lab.server.popen(list(command)) for command in restarts]
    for child in children:
        assert child.wait(120) == 0


def overlap(runs: Sequence[Run]) -> bool:
    """Whether any two of the holds were in force at one time."""
    spans = sorted(run.held_ns() for run in runs)
    return any(later[0] < earlier[1] for earlier, later in itertools.pairwise(spans))


def test_a_connection_that_waits_for_a_retransmission_is_noticed(
    lab: ClientServer, tmp_path: Path
) -> None:
    """The control: SYNs that are dropped instead of held."""
    (service,) = services(lab, tmp_path, 1)
    drop = ["INPUT", "-p", "tcp", "--dport", str(service.port), "--syn", "-j", "DROP"]
    with Load(lab.client, service.targets(lab), rate_per_s=RATE_PER_S) as load:
        lab.server.run(["iptables-legacy", "-w", "-A", *drop])
        wait_until(lambda: dropped(lab) > 5, 10, "SYNs are dropped")
        lab.server.run(["iptables-legacy", "-w", "-D", *drop])
        result = load.stop()
    assert result.failures == 0, result.summary()
    assert waited_for_a_retransmission(result, [service.port] * 2, [])


def dropped(lab: ClientServer) -> int:
    """How many packets the one rule of the control has dropped."""
    table = lab.server.run(["iptables-legacy", "-w", "-nvxL", "INPUT"]).stdout
    return int(table.splitlines()[2].split()[0])


# --- what is left


def leave_a_table(lab: ClientServer, _: Path) -> None:
    lab.server.run(["nft", "add table inet synplug-0123abcd"])


def leave_a_file(_: ClientServer, __: Path) -> None:
    Path("/run/synplug").mkdir()


def leave_a_temporary_file(_: ClientServer, folder: Path) -> None:
    (folder / "tmp1234").touch()


def leave_a_process(lab: ClientServer, _: Path) -> None:
    lab.server.popen(["sh", "-c", "while sleep 1; do :; done", "synplug"])


@pytest.mark.parametrize(
    "leave", [leave_a_table, leave_a_file, leave_a_temporary_file, leave_a_process]
)
def test_what_is_left_is_noticed(
    lab: ClientServer, folder: Path, leave: Callable[[ClientServer, Path], None]
) -> None:
    with pytest.raises(AssertionError), nothing_left(lab, folder):
        leave(lab, folder)
    lab.server.run(["nft", "flush ruleset"])
    if Path("/run/synplug").exists():
        Path("/run/synplug").rmdir()
    for pid in lab.server.pids():
        subprocess.run(["kill", str(pid)], check=True)
    wait_until(lambda: not lab.server.pids(), 10, "the process has ended")


# --- in one process


def hold_loop(lab: ClientServer, times: int, *options: str) -> tuple[dict[str, int], ...]:
    """What a process has before and after so many holds."""
    argv = [sys.executable, str(HOLD_LOOP), str(times), str(WARM_UP), *options]
    done = lab.server.run(argv, timeout_s=600)
    before, after = json.loads(done.stdout)
    return before, after


def has_grown(before: dict[str, int], after: dict[str, int], holds: int) -> list[str]:
    """What grew more than noise does."""
    room = {
        "allocated_bytes": ALLOCATED_BYTES_PER_HOLD * holds,
        "resident_kib": RESIDENT_KIB,
    }
    return [name for name in before if after[name] > before[name] + room.get(name, 0)]


def test_holds_in_one_process(
    lab: ClientServer, folder: Path, scale: Scale, request: pytest.FixtureRequest
) -> None:
    with nothing_left(lab, folder):
        before, after = hold_loop(lab, scale.holds)
    tell(request, holds=scale.holds, before=before, after=after)
    assert has_grown(before, after, scale.holds) == []


def test_a_process_that_grows_is_noticed(lab: ClientServer, scale: Scale) -> None:
    before, after = hold_loop(lab, 30, "--leak")
    assert {"descriptors", "allocated_bytes"} <= set(has_grown(before, after, 30))
