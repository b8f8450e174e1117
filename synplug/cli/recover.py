"""``synplug recover``."""

from __future__ import annotations

import argparse
import json

from synplug.cli.render import plain
from synplug.errors import ReleaseError
from synplug.holding.recover import recover, recover_by_id
from synplug.kernel import procfs
from synplug.kernel.namespaces import enter_network, network_of
from synplug.record import as_dict


def run(options: argparse.Namespace, _command: tuple[str, ...]) -> int:
    """Run the verb; 0 if nothing of a dead run is left."""
    procfs.require_net_admin()
    if options.netns is not None:
        enter_network(network_of(options.netns))
    found = recover() if options.run is None else [recover_by_id(options.run)]
    if options.json:
        print(json.dumps(list(map(as_dict, found))))
    elif not found:
        print("no dead run in this network namespace")
    else:
        for dead in found:
            words = "; ".join(dead.removed) or "its files alone, the kernel had nothing left of it"
            words = f"FAILED: {dead.error}" if dead.error else f"cleaned up: {words}"
            endpoints = ", ".join(dead.endpoints)
            print(plain(f"run {dead.run_id}  {endpoints}  {dead.backend}  {words}"))
    return ReleaseError.exit_code if any(dead.error for dead in found) else 0
