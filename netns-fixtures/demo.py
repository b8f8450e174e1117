"""Restart a real HAProxy under load, cold, without and with synplug, side by side.

Runs in network namespaces of its own: nothing on this machine is touched.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from netlab.errors import LabError
from netlab.isolation import enter_private_namespaces
from netlab.listenwatch import ListenWatch
from netlab.load import Load
from netlab.load_result import LoadResult
from netlab.servers import HAProxy
from netlab.topology import ClientServer

RHYTHM_S = 0.5
SYNPLUG = [sys.executable, "-m", "synplug"]


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side of the table."""

    load: LoadResult
    gaps_ms: list[float]
    held: int = 0
    holds_ms: Sequence[float] = ()


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=2000, help="new connections a second")
    parser.add_argument("--restarts", type=int, default=5, help="on each side")
    options = parser.parse_args()
    try:
        enter_private_namespaces()
        return _show(options.rate, options.restarts)
    except LabError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1


def _show(rate: int, restarts: int) -> int:
    """Run both sides, print them; 0 if the one lost connections and the other one none."""
    print(
        f"HAProxy, stopped and started {restarts} times at {rate} new connections/s"
        " from another network namespace, IPv4 and IPv6\n"
    )
    with ClientServer() as lab, HAProxy(lab.server) as haproxy:
        plain = _side(lab, haproxy, rate, restarts, wrapped=False)
        wrapped = _side(lab, haproxy, rate, restarts, wrapped=True)
    print(_table(plain, wrapped))
    return 0 if wrapped.load.failures == 0 < plain.load.failures else 1


def _side(lab: ClientServer, haproxy: HAProxy, rate: int, restarts: int, *, wrapped: bool) -> Side:
    reports = []
    ports = ",".join(map(str, haproxy.ports))
    prefix = [*SYNPLUG, "wrap", "-p", ports, "--json", "-", "--"] if wrapped else []
    with (
        ListenWatch(lab.server, haproxy.ports) as watch,
        Load(lab.client, haproxy.targets(lab.server_addresses), rate_per_s=rate) as load,
    ):
        for number in range(restarts):
            began_s = time.monotonic()
            done = subprocess.run(
                lab.server.command([*prefix, *haproxy.restart_argv]),
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            if done.returncode:
                raise LabError(f"the restart failed: {done.stderr.strip()}")
            haproxy.wait_until_listening()
            # Both sides restart at the same rhythm, so that their counts can be compared.
            time.sleep(max(0.0, began_s + RHYTHM_S - time.monotonic()))
            if wrapped:
                reports.append(json.loads(done.stdout)["hold"])
                if number == 0:
                    print("what synplug says of the first one:\n")
                    print("    " + done.stderr.strip().replace("\n", "\n    ") + "\n")
        result = load.stop()
    return Side(
        load=result,
        gaps_ms=[gap.duration_ms for gap in watch.gaps],
        held=sum(report["held"] for report in reports),
        holds_ms=[report["duration_s"] * 1000 for report in reports],
    )


def _table(plain: Side, wrapped: Side) -> str:
    rows: list[tuple[str, object, object]] = [
        (
            name,
            getattr(plain.load, name.replace(" ", "_")),
            getattr(wrapped.load, name.replace(" ", "_")),
        )
        for name in ("attempted", "refused", "reset", "early closed", "timed out", "error")
    ]
    rows.append(("failed in all", plain.load.failures, wrapped.load.failures))
    rows += [
        (
            f"connect {name}",
            f"{getattr(plain.load, key):.2f} ms",
            f"{getattr(wrapped.load, key):.2f} ms",
        )
        for name, key in (
            ("p50", "connect_p50_ms"),
            ("p99", "connect_p99_ms"),
            ("max", "connect_max_ms"),
        )
    ]
    rows.append(("no listener for", _spread(plain.gaps_ms), _spread(wrapped.gaps_ms)))
    rows.append(("held connections", "", wrapped.held))
    rows.append(("hold time", "", _spread(wrapped.holds_ms)))
    lines = [f"{'':<18}{'without synplug':>24}{'with synplug':>24}"]
    lines += [f"{name:<18}{left!s:>24}{right!s:>24}" for name, left, right in rows]
    return "\n".join(lines)


def _spread(values_ms: Sequence[float]) -> str:
    if not values_ms:
        return "never"
    return f"{statistics.median(values_ms):.0f} ms (max {max(values_ms):.0f})"


if __name__ == "__main__":
    raise SystemExit(main())
