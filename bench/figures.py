"""The figures of a run: how long each part of synplug takes, and what it costs.

Prints a Markdown table; with ``--write`` it becomes docs/benchmarks.md. Runs in namespaces of
its own. Times are medians with the worst in brackets; each is taken beside a peer in
interleaved rounds where there is one, since machines are noisy.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "netns-fixtures"))

from netlab.isolation import enter_private_namespaces  # noqa: E402
from netlab.listenwatch import ListenWatch  # noqa: E402
from netlab.load import Load  # noqa: E402
from netlab.program import wait_until  # noqa: E402
from netlab.servers import HAProxy, Nginx, Service  # noqa: E402
from netlab.topology import ClientServer, Namespace  # noqa: E402

PROGRAMS = HERE.parent / "tests" / "integration" / "programs"
SYNPLUG = [sys.executable, "-m", "synplug"]
HELD = 10_000


@dataclass
class Samples:
    """Measured values, in milliseconds."""

    values: list[float] = field(default_factory=list)

    def add(self, seconds: float) -> None:
        """Enter one."""
        self.values.append(seconds * 1000)

    def __str__(self) -> str:
        median = statistics.median(self.values)
        return f"{median:.1f} ms ({max(self.values):.1f}), n={len(self.values)}"

    def ratio(self, peer: Samples) -> str:
        """The ratio of the medians."""
        return f"{statistics.median(self.values) / statistics.median(peer.values):.2f}x"


def main() -> int:
    """Measure everything, and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    options = parser.parse_args()
    enter_private_namespaces()
    rows: list[tuple[str, str]] = []
    with ClientServer() as lab:
        rows += start_up(lab.server, options.rounds)
        rows += restarts(lab, HAProxy, options.rounds)
        rows += restarts(lab, Nginx, options.rounds)
        rows += keeper_memory(lab)
        rows += at_rest(lab.server)
    text = _page(rows, options.rounds)
    if options.write:
        (HERE.parent / "docs" / "benchmarks.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def start_up(server: Namespace, rounds: int) -> list[tuple[str, str]]:
    """From exec to held, and to the command's start; beside Python itself."""
    bare, arguments, held, command = Samples(), Samples(), Samples(), Samples()
    for _ in range(rounds):
        bare.add(_timed(server, [sys.executable, "-c", "pass"]))
        arguments.add(_timed(server, [sys.executable, "-c", "import argparse"]))
        began = time.time()
        argv = [*SYNPLUG, "wrap", "-q", "-p", "9999", "--ready-timeout", "10ms"]
        argv += ["--json", "-", "--", "sh", "-c", "date +%s.%N >&2"]
        said = server.run(argv, check=False)
        report = json.loads(said.stdout)
        starts = {phase["name"]: phase["start_s"] for phase in report["phases"]}
        held.add(report["started_at"] + starts["hold"] - began)
        command.add(float(said.stderr.split()[0]) - began)
    return [
        ("`python3 -c pass`", str(bare)),
        ("`python3 -c 'import argparse'`", str(arguments)),
        ("exec of `synplug wrap -p` → held", f"{held}; {held.ratio(bare)} of bare Python"),
        ("exec of `synplug wrap -p` → command started", f"{command}; {command.ratio(bare)}"),
    ]


def _timed(namespace: Namespace, argv: Sequence[str]) -> float:
    began_s = time.monotonic()
    namespace.run(argv)
    return time.monotonic() - began_s


def restarts(
    lab: ClientServer, make: Callable[[Namespace], Service], rounds: int
) -> list[tuple[str, str]]:
    """Cold restarts at 3,000 new connections/s: the outside view and the report's."""
    visible, over, released, drained, failures = Samples(), Samples(), Samples(), Samples(), 0
    with make(lab.server) as service:
        name = type(service).__name__
        for _ in range(rounds):
            targets = service.targets(lab.server_addresses)
            with (
                ListenWatch(lab.server, service.ports) as watch,
                Load(lab.client, targets, rate_per_s=3000) as load,
            ):
                argv = [*SYNPLUG, "wrap", "-p", str(service.ports[0]), "--json", "-", "--"]
                report = json.loads(lab.server.run([*argv, *service.restart_argv]).stdout)
                result = load.stop()
            failures += result.failures
            gap = max(watch.gaps, key=lambda gap: gap.end_ns)
            served_ns = [sample.opened_at_ns + sample.connect_ns for sample in result.samples]
            first_ns = min(moment for moment in served_ns if moment > gap.end_ns)
            visible.add((first_ns - gap.end_ns) / 1e9)
            over.add((result.connect_max_ms - gap.duration_ms) / 1000)
            took = {phase["name"]: phase["duration_s"] for phase in report["phases"]}
            released.add(took["release"])
            drained.add(took["drain"])
    return [
        (f"{name}, 3,000/s: failed connections in all", str(failures)),
        (f"{name}: drain", str(drained)),
        (f"{name}: new listener visible → first held client connected", str(visible)),
        (f"{name}: release asked for → all let go", str(released)),
        (f"{name}: worst connect − gap without a listener", str(over)),
    ]


def keeper_memory(lab: ClientServer) -> list[tuple[str, str]]:
    """What the keeper has for itself with many held."""
    with tempfile.TemporaryDirectory() as folder:
        go = Path(folder) / "go"
        os.mkfifo(go)
        argv = [*SYNPLUG, "wrap", "-q", "-p", "9999", "--max-hold", "60s", "--"]
        run = lab.server.popen([*argv, "sh", "-c", f"read line < {go}; exit 9"])
        wait_until(lambda: bool(_holding(lab.server)), 10, "connections are held")
        keeper = _holding(lab.server)[0]
        empty = _private_kib(keeper)
        link = json.loads(lab.server.run(["ip", "-j", "link", "show", lab.interface]).stdout)
        sender = [sys.executable, "-S", str(PROGRAMS / "syn_sender.py"), lab.interface]
        sender += [link[0]["address"], lab.server_ipv4, "9999", str(HELD)]
        before_s = _cpu_s(keeper)
        lab.client.run(sender, timeout_s=60)
        wait_until(lambda: _waiting(lab.server) >= HELD, 10, "they wait")
        full, spent_s = _private_kib(keeper), _cpu_s(keeper) - before_s
        with go.open("w") as line:
            line.write("\n")
        run.wait(timeout=30)
    return [
        (
            f"keeper: private memory, nothing held → {HELD:,} held",
            f"{empty / 1024:.1f} MiB → {full / 1024:.1f} MiB",
        ),
        (f"keeper: processor time to take in {HELD:,} SYNs", f"{spent_s * 1000:.0f} ms"),
    ]


def _holding(server: Namespace) -> list[int]:
    entries = json.loads(server.run([*SYNPLUG, "status", "--json"]).stdout)
    return [entry["keeper"] for entry in entries if entry["state"] == "holding"]


def _waiting(server: Namespace) -> int:
    lines = server.run(["cat", "/proc/net/netfilter/nfnetlink_queue"]).stdout.splitlines()
    return sum(int(line.split()[2]) for line in lines)


def _private_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def at_rest(server: Namespace) -> list[tuple[str, str]]:
    """What is there when nothing is held: nothing."""
    rules = server.run(["nft", "list", "ruleset"]).stdout.count("synplug")
    queues = len(server.run(["cat", "/proc/net/netfilter/nfnetlink_queue"]).stdout.splitlines())
    files = list(Path("/run/synplug").rglob("*")) if Path("/run/synplug").exists() else []
    commands = (Path(f"/proc/{pid}/comm") for pid in os.listdir("/proc") if pid.isdigit())
    keepers = sum(path.exists() and "synplug" in path.read_text() for path in commands)
    loaded = subprocess.run(
        [
            sys.executable,
            "-c",
            "import synplug.cli.wrap, sys;"
            "print([m for m in ('pyroute2', 'iptc', 'tenacity', 'asyncio') if m in sys.modules])",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    return [
        ("at rest: rules, queues, files, keepers", f"{rules}, {queues}, {len(files)}, {keepers}"),
        ("of pyroute2, iptc, tenacity, asyncio imported on wrap's default path", loaded),
    ]


def _page(rows: Sequence[tuple[str, str]], rounds: int) -> str:
    lines = [f"| {name} | {value} |" for name, value in rows]
    return "\n".join(
        [
            "# Benchmarks",
            "",
            "Made by `make bench`; do not edit. Medians, the worst in brackets, n rounds. Load "
            "comes from another network namespace, IPv4 and IPv6, one new connection a request. "
            "Everything, load included, shares the machine's processors.",
            "",
            f"Linux {platform.release()}, Python {platform.python_version()}, "
            f"{os.cpu_count()} processors, {rounds} rounds.",
            "",
            "| what | figure |",
            "|---|---|",
            *lines,
            "",
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
