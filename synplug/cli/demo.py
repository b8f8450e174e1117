"""``synplug demo``: a small server, restarted under load, without and with synplug."""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence

from synplug.cli.demo_load import RESTART, SERVER, Attempt, Load
from synplug.cli.render import complain
from synplug.errors import SynplugError, UsageError
from synplug.kernel import procfs
from synplug.kernel.namespaces import unshare_network
from synplug.record import Record

_PORT = 8080
_STARTS_SLOWLY_S = "0.15"
_RHYTHM_S = 0.6
_PATIENCE_S = 30.0


class Side(Record):
    """One side of the table.

    :param held: connections that waited. :param hold_s: for how long at the most.
    """

    attempts: Sequence[Attempt]
    held: int = 0
    hold_s: float = 0.0

    @property
    def failures(self) -> int:
        """Connections that were not answered."""
        return sum(bool(one.failure) for one in self.attempts)


def run(options: argparse.Namespace, _command: tuple[str, ...]) -> int:
    """Run the verb; 0 if the one side lost connections, and the other one none."""
    if options.plot and not os.access(os.path.dirname(options.plot) or ".", os.W_OK):
        raise UsageError(f"--plot {options.plot}: cannot be written")
    procfs.require_net_admin()
    unshare_network()
    print(
        f"A small server, stopped and started {options.restarts} times at {options.rate} new "
        "connections/s,\nin a network namespace of its own: the machine's is not touched.\n",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="synplug-demo-") as folder:
        argv = [sys.executable, "-c", RESTART, SERVER, str(_PORT), f"{folder}/pid"]
        argv.append(_STARTS_SLOWLY_S)
        try:
            _call(argv)
            plain = _side(argv, options, wrapped=False)
            wrapped = _side(argv, options, wrapped=True)
        finally:
            _end_server(f"{folder}/pid")
    print(_table(plain, wrapped))
    if options.plot:
        from synplug.cli.demo_plot import svg

        panels = [("without synplug", plain.attempts), ("with synplug", wrapped.attempts)]
        with open(options.plot, "w", encoding="utf-8") as file:
            file.write(svg(panels))
        complain(f"synplug: drawn in {options.plot}")
    return 0 if wrapped.failures == 0 < plain.failures else 1


def _side(argv: list[str], options: argparse.Namespace, *, wrapped: bool) -> Side:
    """Restart it so often, under load."""
    prefix = [sys.executable, "-m", "synplug", "wrap", "-q", "-p", str(_PORT), "--json", "-", "--"]
    holds = []
    load = Load(port=_PORT, rate_per_s=options.rate)
    load.start()
    try:
        for number in range(1, options.restarts + 1):
            time.sleep(max(0.0, number * _RHYTHM_S - load.now_s()))
            said = _call([*prefix, *argv] if wrapped else argv)
            if wrapped:
                holds.append(json.loads(said)["hold"])
        time.sleep(_RHYTHM_S)
    finally:
        attempts = load.stop()
    return Side(
        attempts=attempts,
        held=sum(hold["held"] for hold in holds),
        hold_s=max((hold["duration_s"] for hold in holds), default=0.0),
    )


def _call(argv: list[str]) -> str:
    """Run a command; what it prints.

    :raises SynplugError: it failed.
    """
    environ = {name: text for name, text in os.environ.items() if not name.startswith("SYNPLUG_")}
    environ["SYNPLUG_CONFIG"] = os.devnull  # the machine's configuration is for its services
    done = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        check=False,
        env=environ,
        timeout=_PATIENCE_S,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        raise SynplugError(f"the restart failed: {done.stderr.strip()}")
    return done.stdout


def _end_server(pidfile: str) -> None:
    try:
        with open(pidfile, encoding="ascii") as file:
            os.kill(int(file.read()), signal.SIGTERM)
    except (OSError, ValueError):
        return


def _table(plain: Side, wrapped: Side) -> str:
    """Both, side by side."""
    rows: list[tuple[str, object, object]] = [
        ("connections", len(plain.attempts), len(wrapped.attempts))
    ]
    counted = [Counter(one.failure for one in side.attempts) for side in (plain, wrapped)]
    names = {"ECONNREFUSED": "refused", "ECONNRESET": "reset", "EPIPE": "closed"}
    rows += [
        (names.get(failure, failure), counted[0][failure], counted[1][failure])
        for failure in sorted({*counted[0], *counted[1]} - {""})
    ]
    rows.append(("failed in all", plain.failures, wrapped.failures))
    for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
        rows.append((f"connect {name}", _quantile(plain, share), _quantile(wrapped, share)))
    rows.append(("held", "", wrapped.held))
    rows.append(("longest hold", "", f"{wrapped.hold_s * 1000:.0f} ms"))
    lines = [f"{'':<18}{'without synplug':>20}{'with synplug':>20}"]
    lines += [f"{name:<18}{left!s:>20}{right!s:>20}" for name, left, right in rows]
    return "\n".join(lines)


def _quantile(side: Side, share: float) -> str:
    """Of the connects that succeeded."""
    took = sorted(one.took_s for one in side.attempts if not one.failure)
    if len(took) < 2:
        return "–"
    if share == 1.0:
        return f"{took[-1] * 1000:.2f} ms"
    return f"{statistics.quantiles(took, n=100)[round(share * 100) - 1] * 1000:.2f} ms"
