"""What synplug itself takes: to start, to hold, to count, and at rest."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.contenders import SYNPLUG, Report
from bench.errors import BenchError
from bench.held import PROGRAMS
from bench.kernel_state import (
    cpu_s,
    holding_keepers,
    private_mib,
    queues,
    sleeps,
    waiting_packets,
)
from bench.ordinary import without_paths
from bench.samples import Samples
from netlab.load import Load
from netlab.program import wait_until
from netlab.topology import ClientServer, Namespace

_PORT = 9999
#: A keeper that sleeps at so many looks in a row, 5 ms apart, has read all there is.
_LOOKS = 10
_BEFORE_THE_FIRST_COMES_AGAIN_S = 0.95
#: Prints the median of looks, in seconds.
_LOOK = f"""
import statistics, time
from synplug.kernel.sock_diag import SocketDiagnostics
from synplug.model import Endpoint
looks, sockets, wanted = [], SocketDiagnostics(), [Endpoint(port={_PORT})]
for _ in range(500):
    began = time.perf_counter()
    sockets.listeners(wanted)
    looks.append(time.perf_counter() - began)
print(statistics.median(looks))
"""


@dataclass(frozen=True, kw_only=True)
class StartUp:
    """From exec to each step, beside Python itself."""

    bare: Samples
    arguments: Samples
    held: Samples
    command: Samples


def start_up(server: Namespace, rounds: int, programs: Path) -> StartUp:
    """Start each in turn; nothing listens on the port, so there is nothing to drain.

    :param programs: where synplug is, and the Python that it is installed for.
    """
    python, environment = str(programs / "python3"), without_paths()
    found = StartUp(bare=Samples(), arguments=Samples(), held=Samples(), command=Samples())
    for _ in range(rounds):
        found.bare.add(_timed_ms(server, [python, "-c", "pass"], environment))
        found.arguments.add(_timed_ms(server, [python, "-c", "import argparse"], environment))
        began = time.time()
        argv = [str(programs / "synplug"), "wrap", "-q", "-p", str(_PORT)]
        argv += ["--ready-timeout", "10ms", "--json", "-", "--", "sh", "-c", "date +%s.%N >&2"]
        said = server.run(argv, check=False, env=environment)
        report = json.loads(said.stdout)
        starts = {phase["name"]: phase["start_s"] for phase in report["phases"]}
        found.held.add(1000 * (report["started_at"] + starts["hold"] - began))
        found.command.add(1000 * (float(said.stderr.split()[0]) - began))
    return found


def _timed_ms(namespace: Namespace, argv: Sequence[str], environment: Mapping[str, str]) -> float:
    began_s = time.monotonic()
    # No limit of time: with one, Python looks for the end every 50 ms (subprocess.Popen.wait).
    status = namespace.popen(argv, env=environment).wait()
    took_ms = 1000 * (time.monotonic() - began_s)
    if status:
        raise BenchError(f"{argv[0]} ended with status {status}")
    return took_ms


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What so many held SYNs cost. *hold_s*: until the keeper has counted the last one.

    *again_s*: the same SYNs once more, until the keeper has dropped the last duplicate.
    """

    sent: int
    held: int
    duplicates: int
    released: int
    hold_s: float
    hold_cpu_s: float
    again_s: float
    again_cpu_s: float
    release_s: float
    empty_mib: float
    full_mib: float


@dataclass(frozen=True, kw_only=True)
class AtARate:
    """What the keeper takes of a processor while clients come, and what a look at listeners costs.

    :param share: processor time over time, before anybody sends again.
    """

    rate_per_s: int
    held: int
    share: float
    look_us: float


def at_a_rate(rate_per_s: int = 10_000) -> AtARate:
    """Real clients, at so many a second, until the first would send again a second later."""
    with ClientServer() as lab, _held(lab, 4 * rate_per_s) as (keeper, end):
        before_s, began_s = cpu_s(keeper), time.monotonic()
        to = [(lab.server_ipv4, _PORT)]
        with Load(lab.client, to, rate_per_s=rate_per_s, expect_ready=False) as load:
            time.sleep(max(0.0, began_s + _BEFORE_THE_FIRST_COMES_AGAIN_S - time.monotonic()))
            waiting, took_s = waiting_packets(lab.server), time.monotonic() - began_s
            share = (cpu_s(keeper) - before_s) / took_s
            end()
            load.stop()
        look_us = 1e6 * float(lab.server.run([sys.executable, "-c", _LOOK]).stdout)
    return AtARate(rate_per_s=rate_per_s, held=waiting, share=share, look_us=look_us)


def capacity(count: int) -> Capacity:
    """Hold so many SYNs of made-up clients, send each again, let go at once; nobody listens."""
    with ClientServer() as lab, _held(lab, count) as (keeper, end):
        empty_mib = private_mib(keeper)
        hold_s, hold_cpu_s = _sent(lab, keeper, count)
        wait_until(lambda: waiting_packets(lab.server) >= count, 10, f"{count} SYNs wait")
        full_mib = private_mib(keeper)
        again_s, again_cpu_s = _sent(lab, keeper, count)
        report = end()
    hold = report["hold"]
    return Capacity(
        sent=count,
        held=hold["held"],
        duplicates=hold["duplicates"],
        released=hold["released"],
        hold_s=hold_s,
        hold_cpu_s=hold_cpu_s,
        again_s=again_s,
        again_cpu_s=again_cpu_s,
        release_s=next(p["duration_s"] for p in report["phases"] if p["name"] == "release"),
        empty_mib=empty_mib,
        full_mib=full_mib,
    )


@contextlib.contextmanager
def _held(lab: ClientServer, count: int) -> Iterator[tuple[int, Callable[[], Report]]]:
    """A hold with room for all and for as many again; its keeper, and what ends it."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        go = Path(folder) / "go"
        os.mkfifo(go)
        argv = [*SYNPLUG, "wrap", "-q", "--json", "-", "-p", str(_PORT), "--max-hold", "120s"]
        argv += ["--max-held", str(2 * count), "--release", "burst"]
        argv += ["--", "sh", "-c", f"read line < {go}; exit 9"]
        run = lab.server.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        wait_until(lambda: bool(holding_keepers(lab.server)), 10, "connections are held")

        def end() -> Report:
            go.write_text("\n", encoding="ascii")
            report: Report = json.loads(run.communicate(timeout=60)[0])
            return report

        yield holding_keepers(lab.server)[0], end


def _sent(lab: ClientServer, keeper: int, count: int) -> tuple[float, float]:
    """Send them, wait until the keeper has read them; how long that took, and its part."""
    link = json.loads(lab.server.run(["ip", "-j", "link", "show", lab.interface]).stdout)
    sender = [sys.executable, "-S", str(PROGRAMS / "syn_sender.py"), lab.interface]
    sender += [link[0]["address"], lab.server_ipv4, str(_PORT), str(count)]
    began_s, before_s = time.monotonic(), cpu_s(keeper)
    lab.client.run(sender, timeout_s=120)
    ended_s, looks = time.monotonic(), 0

    def has_read_all() -> bool:
        nonlocal ended_s, looks
        looks = looks + 1 if sleeps(keeper) else 0
        if not looks:
            ended_s = time.monotonic()
        return looks >= _LOOKS

    wait_until(has_read_all, 60, "the keeper has read all")
    return ended_s - began_s, cpu_s(keeper) - before_s


def at_rest(server: Namespace) -> list[int]:
    """What is there when nothing is held: rules, queues, files, processes."""
    rules = server.run(["nft", "list", "ruleset"]).stdout.count("synplug")
    files = list(Path("/run/synplug").rglob("*")) if Path("/run/synplug").exists() else []
    commands = [Path(f"/proc/{pid}/comm") for pid in server.pids()]
    keepers = sum("synplug" in path.read_text(encoding="utf-8") for path in commands)
    return [rules, len(queues(server)), len(files), keepers]


def imported(server: Namespace) -> str:
    """Which of the costly modules a run on wrap's default path imports, up to the keeper's fork.

    What a keeper imports by itself is not seen: its standard error is /dev/null.
    """
    argv = [sys.executable, "-X", "importtime", "-m", "synplug", "wrap", "-q", "-p", str(_PORT)]
    said = server.run([*argv, "--ready-timeout", "10ms", "--", "true"], check=False).stderr
    names = {
        line.rpartition("|")[2].strip() for line in said.splitlines() if "import time:" in line
    }
    if "synplug.holding.keeper" not in names:
        raise BenchError(f"the imports of a run cannot be seen: {said[-200:]}")
    return str([name for name in ("pyroute2", "iptc", "tenacity", "asyncio") if name in names])
