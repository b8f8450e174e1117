"""Clients who come while nobody listens, and a service that starts when they all wait."""

from __future__ import annotations

import json
import shlex
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from netlab.counters import NO_ROOM, tcp_counters
from netlab.load import Load
from netlab.load_result import LoadResult
from netlab.program import wait_until
from netlab.topology import ClientServer, Namespace
from tests.integration import shell
from tests.integration.conftest import SimpleService
from tests.integration.connect import holds_in_force

#: A process may not open more files, whatever it asks for, where its hard limit is low.
_CLIENTS_A_PROGRAM = 12_500


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What became of those who waited. *cliff*: by how much each counter rose."""

    load: LoadResult
    report: dict[str, Any]
    cliff: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Cold:
    """Clients come while nobody listens; then the service starts."""

    lab: ClientServer
    service: SimpleService

    def play(
        self,
        options: list[str],
        *,
        clients: int,
        rate_per_s: int,
        backlog: int,
        accepts_per_s: int = 5000,
    ) -> Seen:
        """Hold, let so many clients come, start the service, and wait until all are served."""
        before = tcp_counters(self.lab.server)
        go = self.service.directory / "go"
        subprocess.run(["mkfifo", go], check=True)
        start = self.service.start_argv("--backlog", str(backlog), "--rate", str(accepts_per_s))
        line = f"read line < {shlex.quote(str(go))}; {start[2]}"
        argv = ["wrap", "--json", "-", "-p", "8080", "--max-hold", "60s", *options]
        run = shell.start(self.lab.server, *argv, "--", "sh", "-c", line)
        wait_until(lambda: bool(holds_in_force(self.lab.server)), 60, "connections are held")
        programs = -(-clients // _CLIENTS_A_PROGRAM)
        with ExitStack() as stack:
            loads = [
                stack.enter_context(
                    Load(
                        self.lab.client,
                        self.service.targets(self.lab),
                        rate_per_s=rate_per_s / programs,
                        timeout_s=40.0,
                        duration_s=clients / rate_per_s,
                        expect_ready=False,
                    )
                )
                for _ in range(programs)
            ]
            wait_until(lambda: _waiting(self.lab.server) >= clients * 0.99, 30, "they wait")
            go.write_text("\n")
            stdout, stderr = run.communicate(timeout=60)
            samples = [sample for load in loads for sample in load.wait().samples]
        assert run.returncode == 0, stderr
        after = tcp_counters(self.lab.server)
        cliff = {name: after[name] - before[name] for name in NO_ROOM}
        return Seen(load=LoadResult(samples=tuple(samples)), report=json.loads(stdout), cliff=cliff)


def _waiting(server: Namespace) -> int:
    lines = server.run(["cat", "/proc/net/netfilter/nfnetlink_queue"]).stdout.splitlines()
    return sum(int(line.split()[2]) for line in lines)
