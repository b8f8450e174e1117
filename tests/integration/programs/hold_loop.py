"""A long-lived user of the Python interface: ``python hold_loop.py TIMES WARM_UP [OPTION]``.

Holds port 8080 again and again in one process, and prints as JSON what the process had after the
warm-up and at the end: open descriptors, bytes that Python allocated, resident KiB, threads,
children (zombies too). --leak keeps something of each hold: the growth that must be noticed.
--at-any-moment has each hold's rest removed without a look at the queues of others.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import tracemalloc
from contextlib import nullcontext
from typing import Any

import synplug
from synplug.holding import gates
from synplug.holding.nfqueue import QueueBackend


def main() -> None:
    """Hold, look, hold, look."""
    parser = argparse.ArgumentParser()
    parser.add_argument("times", type=int)
    parser.add_argument("warm_up", type=int)
    parser.add_argument("--leak", action="store_true")
    parser.add_argument("--at-any-moment", action="store_true")
    options = parser.parse_args()
    if options.at_any_moment:
        module: Any = gates
        backend: Any = QueueBackend
        module.gap_of_others = lambda _own: nullcontext(lambda: None)
        backend.obstacle = lambda _self: ""
    leaked: list[tuple[int, bytes]] = []
    tracemalloc.start()
    seen = []
    for times in (options.warm_up, options.times):
        for _ in range(times):
            with synplug.hold(ports=[8080]):
                pass
            if options.leak:
                leaked.append((os.open("/dev/null", os.O_RDONLY), bytes(4096)))
        seen.append(look())
    print(json.dumps(seen))


def look() -> dict[str, int]:
    """What this process has now."""
    gc.collect()
    with open("/proc/self/status", encoding="ascii") as file:
        status = dict(line.split(":", 1) for line in file)
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
        children = len(file.read().split())
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "allocated_bytes": tracemalloc.get_traced_memory()[0],
        "resident_kib": int(status["VmRSS"].split()[0]),
        "threads": int(status["Threads"]),
        "children": children,
    }


main()
