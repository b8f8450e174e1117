"""Restarts under load, plainly, by the original recipe and by synplug's backends, side by side.

Local clients, one machine, loopback: what the original recipe was made for. Boots a guest whose
kernel has all that they need, measures there, prints a Markdown table; ``--write`` puts it into
docs/comparison.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "netns-fixtures")]

from bench.errors import BenchError  # noqa: E402
from guest.bridge import share_programs  # noqa: E402
from guest.machine import Guest  # noqa: E402
from guest.stock import DEFAULT_STOCK, STOCK, fetch_stock  # noqa: E402
from netlab.isolation import enter_private_namespaces  # noqa: E402
from netlab.load import Load  # noqa: E402
from netlab.load_result import LoadResult  # noqa: E402
from netlab.program import wait_until  # noqa: E402
from netlab.servers import Nginx, Service  # noqa: E402
from netlab.snapshot import NetworkState  # noqa: E402
from netlab.topology import Namespace  # noqa: E402

RATE_PER_S = 20
PORT = 8080
SYNPLUG = [sys.executable, "-m", "synplug"]
RECIPE = str(HERE / "original_recipe.sh")
PAGE = HERE.parent / "docs" / "comparison.md"
_BEGIN, _END = "<!-- comparison: begin -->\n", "<!-- comparison: end -->\n"
_STUCK_S = 12.0
_LIMIT_S = 2400
_CONNECT = (
    "import socket, sys; "
    "socket.create_connection(('127.0.0.1', int(sys.argv[1])), timeout=float(sys.argv[2]))"
)


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to restart.

    :param set_up: once, before anything. :param tear_down: once, at the end.
    :param prefix: of the restart command; empty: :attr:`hold` and :attr:`release` around it.
    :param options: the same of :func:`synplug.hold`.
    """

    name: str
    set_up: tuple[str, ...] = ()
    tear_down: tuple[str, ...] = ()
    prefix: tuple[str, ...] = ()
    hold: tuple[str, ...] = ()
    release: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


def _synplug(backend: str, *flags: str) -> Way:
    held = ("-p", str(PORT), "--max-hold", "60s", "--backend", backend, *flags)
    named = {flag.removeprefix("--").replace("-", "_"): True for flag in flags}
    return Way(
        name=", ".join(["synplug", backend, *(f"`{flag}`" for flag in flags)]),
        prefix=(*SYNPLUG, "wrap", "-q", *held, "--"),
        hold=(*SYNPLUG, "hold", "--name", "it", "-q", *held),
        release=(*SYNPLUG, "release", "--name", "it", "-q"),
        options={"ports": [PORT], "max_hold": 60.0, "backend": backend, **named},
    )


_ORIGINAL = Way(
    name="the original recipe",
    set_up=(RECIPE, "up", str(PORT)),
    tear_down=(RECIPE, "down", str(PORT)),
    hold=(RECIPE, "block"),
    release=(RECIPE, "release"),
)
_NOTHING = Way(name="nothing")
WAYS = [
    _NOTHING,
    _ORIGINAL,
    _synplug("nfqueue"),
    _synplug("nfqueue-iptables"),
    _synplug("plug"),
    _synplug("plug", "--loopback-egress"),
]


@dataclass
class Row:
    """What one way came to."""

    name: str
    attempted: int = 0
    failed: int = 0
    retransmitted: int = 0
    quiet_ms: float = 0.0
    worst_ms: list[float] = field(default_factory=list)
    bystander: dict[str, float] = field(default_factory=dict)
    after_one: str = "–"
    after_all: str = "–"

    def cells(self, back_to_back: dict[str, Any]) -> str:
        """Its line of the table."""
        other, held = self.bystander, back_to_back
        cells = (
            self.name,
            f"{self.failed} of {self.attempted}",
            self.retransmitted,
            f"{self.quiet_ms:.2f} ms",
            f"{statistics.median(self.worst_ms):.0f} ms ({max(self.worst_ms):.0f})",
            f"{other['lost']:.0f} of {other['sent']:.0f}",
            f"{other['p50_ms']:.2f} ms ({other['max_ms']:.0f})",
            f"{held['lost']}, {held['overtaken']} of {held['sent']}",
            *("{1:+.2f} µs ({0:+.2f} to {2:+.2f})".format(*held[key]) for key in _LONGER),
            self.after_one,
            self.after_all,
        )
        return "| " + " | ".join(map(str, cells)) + " |"


#: What :mod:`bench.back_to_back` says of that: by the median of a block's rounds, by their mean.
_LONGER = ("median_us", "mean_us")
_TITLES = (
    *("restart with", "failed connections", "SYN sent again", "connect at rest, median"),
    *("worst connect of a restart", "other datagrams lost", "there and back"),
    "back to back while held: lost, overtaken",
    *(f"one takes longer by, {by} (quartiles)" for by in ("median", "mean")),
    *("SIGKILL of who holds", "SIGKILL of all"),
)


#: Loads the tables of legacy iptables, where they are modules.
_LOAD = "iptables-legacy -t mangle -S && ip6tables-legacy -t mangle -S"


def measure(way: Way, restarts: int) -> Row:
    """Restart nginx under load, that often."""
    row = Row(way.name)
    with Namespace("it") as namespace, Nginx(namespace) as service:
        before = NetworkState.capture(namespace)
        with _bystander(namespace) as row.bystander:
            _run(namespace, way.set_up)
            with Load(namespace, service.targets(["127.0.0.1"]), RATE_PER_S) as load:
                time.sleep(2)
            row.quiet_ms = load.result.connect_p50_ms
            for _ in range(restarts):
                result = _restart(namespace, service, way)
                row.attempted += result.attempted
                row.failed += result.failures
                row.retransmitted += result.retransmitted
                row.worst_ms.append(result.connect_max_ms)
            _run(namespace, way.tear_down)
        if way.hold:
            row.after_one = _after_sigkill(namespace, way, before, _holder)
            row.after_all = _after_sigkill(namespace, way, before, _everybody)
    return row


def _restart(namespace: Namespace, service: Service, way: Way) -> LoadResult:
    targets = service.targets(["127.0.0.1"])
    with Load(namespace, targets, RATE_PER_S, timeout_s=30) as load:
        if way.prefix:
            _run(namespace, (*way.prefix, *service.restart_argv))
        else:
            _run(namespace, way.hold)
            _run(namespace, service.restart_argv)
            service.wait_until_listening()
            _run(namespace, way.release)
        service.wait_until_listening()
        return load.stop()


@contextmanager
def _bystander(namespace: Namespace) -> Iterator[dict[str, float]]:
    found: dict[str, float] = {}
    child = namespace.popen([sys.executable, str(HERE / "bystander.py")], stdout=subprocess.PIPE)
    yield found
    child.send_signal(signal.SIGTERM)
    found |= json.loads(child.communicate(timeout=60)[0])


def _back_to_back() -> dict[str, Any]:
    """What :mod:`bench.back_to_back` has found: all ways by turns, in one process.

    :raises BenchError: it finds that to hold nothing costs something.
    """
    ways = [
        {
            "name": way.name,
            "hold": [list(argv) for argv in (way.set_up, way.hold) if argv],
            "release": [list(argv) for argv in (way.release, way.tear_down) if argv],
            "options": way.options,
        }
        for way in WAYS
    ]
    argv = [sys.executable, str(HERE / "back_to_back.py")]
    with Namespace("it") as namespace:
        said = namespace.run(argv, timeout_s=_LIMIT_S, input_text=json.dumps(ways)).stdout
    found: dict[str, Any] = json.loads(said)
    for key in _LONGER:
        first, _, third = found["ways"][_NOTHING.name][key]
        if not first <= 0 <= third:
            raise BenchError(f"with nothing, one takes longer by {first:+.2f} to {third:+.2f} µs")
    return found


def _run(namespace: Namespace, argv: tuple[str, ...] | list[str]) -> None:
    if argv:
        namespace.run(argv, timeout_s=120)


# --- what a SIGKILL leaves


def _after_sigkill(
    namespace: Namespace,
    way: Way,
    before: NetworkState,
    who: Callable[[Namespace], list[int]],
) -> str:
    """Kill while connections are held; whether new ones get through, and what is left."""
    _run(namespace, way.set_up)
    _run(namespace, way.hold)
    for pid in who(namespace):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    began_s = time.monotonic()
    argv = [sys.executable, "-S", "-c", _CONNECT, str(PORT), str(_STUCK_S)]
    done = namespace.run(argv, check=False, timeout_s=60)
    took_s = time.monotonic() - began_s
    words = f"connects after {took_s:.1f} s" if done.returncode == 0 else "**nobody connects**"
    with suppress(TimeoutError, Exception):
        wait_until(lambda: not _left(namespace, before), 10, "it is as before")
    left = _left(namespace, before)
    words += f"; {', '.join(left)} left" if left else "; nothing left"
    if way.set_up:
        _run(namespace, way.release)
        _run(namespace, way.tear_down)
    else:
        _run(namespace, [*SYNPLUG, "recover"])
    return words


def _left(namespace: Namespace, before: NetworkState) -> list[str]:
    """What kinds of things were not there before; loopback was, with another root qdisc."""
    lines = before.difference(NetworkState.capture(namespace))
    new = [line for line in lines if line.startswith("+ ") and not line.startswith("+ link: lo ")]
    return sorted({line[2:].partition(":")[0] for line in new})


def _holder(namespace: Namespace) -> list[int]:
    said = namespace.run([*SYNPLUG, "status", "--json"], timeout_s=60).stdout
    return [entry["keeper"] for entry in json.loads(said) if entry["live"]]


def _everybody(namespace: Namespace) -> list[int]:
    """The keeper and its children, and their last: who could clean up dies first."""
    keepers = _holder(namespace)
    found = []
    for keeper in keepers:
        os.kill(keeper, signal.SIGSTOP)
        children = Path(f"/proc/{keeper}/task/{keeper}/children").read_text(encoding="ascii")
        found += [*map(int, children.split()), keeper]
    return found


# --- the guest, and the page


def main() -> int:
    """Measure, print, and write if that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("--suite", choices=STOCK, default=DEFAULT_STOCK)
    parser.add_argument("--write", action="store_true", help="write docs/comparison.md")
    parser.add_argument("--here", metavar="FILE", help="no guest: measure on this kernel")
    options = parser.parse_args()
    if options.here:
        Path(options.here).write_text(_table(options.restarts), encoding="utf-8")
        return 0
    with Guest(fetch_stock(options.suite), limit_s=_LIMIT_S) as guest:
        share_programs(guest.shared / "cache")
        argv = [sys.executable, str(HERE / "comparison.py"), "--here", str(guest.shared / "table")]
        argv += ["--restarts", str(options.restarts)]
        guest.start(argv, {"XDG_CACHE_HOME": str(guest.shared / "cache")})
        while guest.runs():
            time.sleep(0.2)
        if guest.status():
            print(guest.tail(), file=sys.stderr)
            return 1
        table = (guest.shared / "table").read_text(encoding="utf-8")
    print(table)
    if options.write:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(_BEGIN)
        PAGE.write_text(f"{before}{_BEGIN}\n{table}\n{_END}{rest.partition(_END)[2]}", "utf-8")
    return 0


def _table(restarts: int) -> str:
    enter_private_namespaces()
    with Namespace("warm") as namespace:  # what is imported, or loaded as a module, later
        _run(namespace, ["sh", "-c", _LOAD])
        namespace.run([*SYNPLUG, "doctor"], check=False, timeout_s=120)
    rows = [measure(way, restarts) for way in WAYS]
    beside = _back_to_back()
    head = (
        f"Linux {platform.release()} (Debian's ordinary kernel, emulated, one processor), "
        f"nginx 1.22, {restarts} cold restarts each at {RATE_PER_S} new connections/s over "
        f"loopback, IPv4. Back to back, at rest, one datagram takes {beside['at_rest_us']:.0f} µs."
        "\n\n"
    )
    lines = ["| " + " | ".join(_TITLES) + " |", "|---" * len(_TITLES) + "|"]
    lines += [row.cells(beside["ways"][row.name]) for row in rows]
    return head + "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
