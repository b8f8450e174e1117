"""What a hold costs at least: one process, one queue, one rule, one verdict for all who wait.

The peer of synplug's own figures, by the same messages to the kernel. It is nothing to restart a
service with: no old queue runs empty, whoever opens the port ends the hold, whatever its backlog
bears, and nothing ends it where this process stands still.

    python -m bench.bare_hold PORT COMMAND [ARGUMENT ...]
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import Any

from bench.errors import BenchError
from synplug.handover.priority import ahead_of_others
from synplug.kernel.namespaces import wait_for_packets_in_flight
from synplug.kernel.nfqueue import NF_ACCEPT, PacketQueues
from synplug.kernel.nft import HoldTable
from synplug.kernel.sock_diag import SocketDiagnostics
from synplug.model import PROBE_MARK, Endpoint

_LENGTH_PACKETS = 1 << 16
_POLL_S = 0.001
_TIMEOUT_S = 10.0


def main(argv: Sequence[str]) -> int:
    """Hold, run the command, release; says how long that took, as synplug's report does.

    Raises:
        BenchError: not as many listeners as before came in time, or the command failed.

    """
    endpoints = [Endpoint(port=int(argv[0]))]
    started_at, began_s = time.time(), time.monotonic()
    gc.disable()
    with ExitStack() as stack:
        sockets = stack.enter_context(closing(SocketDiagnostics()))
        table = stack.enter_context(closing(HoldTable(f"bench-{os.getpid()}")))
        queues = stack.enter_context(
            closing(PacketQueues(count=1, length_packets=_LENGTH_PACKETS, fail_open=True))
        )
        (queue,) = queues.numbers
        table.prepare(endpoints, queues.numbers, probe_mark=PROBE_MARK)
        old = {listener.cookie for listener in sockets.listeners(endpoints)}
        table.hold("bench")
        held_s = time.monotonic()
        with ahead_of_others(), subprocess.Popen(argv[1:]) as command:
            held = last = 0
            while True:
                for notice in queues.read():
                    held, last = held + 1, notice.packet
                new = {listener.cookie for listener in sockets.listeners(endpoints)} - old
                if len(new) >= len(old):
                    break
                if time.monotonic() - held_s > _TIMEOUT_S:
                    raise BenchError("nobody listened in time")
                time.sleep(_POLL_S)
            asked_s = time.monotonic()
            queues.verdict_up_to(queue, last, NF_ACCEPT)
            table.open()
            _let_go(queues)
            opened_s = time.monotonic()
            wait_for_packets_in_flight()
            _let_go(queues)
        if command.returncode:
            raise BenchError(f"the command failed: {command.returncode}")
        table.remove()
    phases = {"hold": (held_s, opened_s), "release": (asked_s, opened_s)}
    report: dict[str, Any] = {
        "outcome": "ready",
        "started_at": started_at,
        "hold": {"duration_s": opened_s - held_s, "held": held},
        "phases": [
            {"name": name, "start_s": begin_s - began_s, "duration_s": end_s - begin_s}
            for name, (begin_s, end_s) in phases.items()
        ],
    }
    print(json.dumps(report))
    return 0


def _let_go(queues: PacketQueues) -> None:
    for state in queues.states():
        queues.verdict_up_to(state.number, state.last_id, NF_ACCEPT)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
