"""``synplug status``: the holds in force."""

from __future__ import annotations

import argparse
import json
import time

from synplug.cli.render import milliseconds, plain
from synplug.holding.ledger import entries
from synplug.kernel.namespaces import enter_network, network_of
from synplug.record import as_dict


def run(options: argparse.Namespace, _command: tuple[str, ...]) -> int:
    """Run the verb; returns the exit status."""
    if options.netns is not None:
        enter_network(network_of(options.netns))
    found = list(entries())
    if options.json:
        print(json.dumps([as_dict(entry) | {"live": entry.is_live} for entry in found]))
        return 0
    if not found:
        print("no hold in this network namespace")
    for entry in found:
        if not entry.is_live:
            state = "dead: its keeper is gone"
        elif entry.deadline_s:
            left_s = max(0.0, entry.deadline_s - time.monotonic())
            state = f"{entry.state}, {milliseconds(left_s)} to the deadline"
        else:
            state = entry.state
        print(
            plain(
                f"run {entry.run_id}  {f'{entry.name}  ' if entry.name else ''}"
                f"{', '.join(entry.endpoints)}  {entry.backend}  "
                f"keeper {entry.keeper}  {state}"
            )
        )
    return 0
