"""What a soak looks at: many runs, what their clients saw, and what is left afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from netlab.counters import NO_ROOM, tcp_counters
from netlab.load_result import LoadResult, Sample
from netlab.snapshot import NetworkState
from netlab.topology import ClientServer, Namespace
from tests.integration.shell import SYNPLUG

_PEAK_MEMORY = Path(__file__).with_name("programs") / "peak_memory.py"
#: A SYN is sent again after a second (RFC 6298, 2.1), so this tells the two apart.
SPARE_NS = 250_000_000
#: SYNs and handshakes that the kernel dropped or answered with a cookie.
_DROPS = (*NO_ROOM, "TCPBacklogDrop")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much of it: so many runs in a row, at once, and holds in one process."""

    wraps: int
    at_once: int
    holds: int


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of ``synplug wrap`` that has ended; *peak_kib* is its largest resident size."""

    report: dict[str, Any]
    peak_kib: int

    @property
    def ports(self) -> set[int]:
        """The ports that it held."""
        return {int(endpoint.rpartition(":")[2]) for endpoint in self.report["endpoints"]}

    def held_ns(self) -> tuple[int, int]:
        """From when to when connections waited, on CLOCK_MONOTONIC."""
        epoch_ns = time.time_ns() - time.monotonic_ns()
        phases = {phase["name"]: phase for phase in self.report["phases"]}
        began, ended = phases["hold"]["start_s"], phases["release"]
        started_ns = round(self.report["started_at"] * 1e9) - epoch_ns
        return (
            started_ns + round(began * 1e9),
            started_ns + round((ended["start_s"] + ended["duration_s"]) * 1e9),
        )


@dataclass(frozen=True, kw_only=True)
class Started:
    """A run that goes on; it puts its report and its peak of memory into *folder*."""

    child: subprocess.Popen[str]
    folder: Path

    def wait(self) -> Run:
        """Wait for its end, and take away what it wrote."""
        _, said = self.child.communicate(timeout=600)
        assert self.child.returncode == 0, said
        report, peak = self.folder / "report", self.folder / "peak"
        run = Run(report=json.loads(report.read_text()), peak_kib=int(peak.read_text()))
        for path in (report, peak):
            path.unlink()
        self.folder.rmdir()  # fails where a run has left something else there
        return run


def start_wrap(
    namespace: Namespace, runs: Path, options: Sequence[str], command: Sequence[str]
) -> Started:
    """Start ``synplug wrap`` with a temporary folder of its own below *runs*, and do not wait."""
    folder = Path(tempfile.mkdtemp(dir=runs))
    argv = [*SYNPLUG, "wrap", "-q", "--json", str(folder / "report"), *options, "--", *command]
    child = subprocess.Popen(
        namespace.command([sys.executable, "-SE", str(_PEAK_MEMORY), str(folder / "peak"), *argv]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(folder)},
        text=True,
    )
    return Started(child=child, folder=folder)


def assert_restarted(run: Run) -> None:
    """The service was restarted under the hold, and all who waited were let go."""
    report, hold = run.report, run.report["hold"]
    assert report["outcome"] == "ready", report
    assert report["readiness"] == "replaced", report
    assert hold["released"] == hold["held"], report
    assert (hold["lost"], hold["overflowed"]) == (0, 0), report
    assert report["drain"]["left"] == 0, report
    # Others hold at the same time: the empty table may have to wait for them, and says so.
    assert all("stays for a while" in warning for warning in report["warnings"]), report


def waited_for_a_retransmission(
    load: LoadResult, ports: Sequence[int], runs: Sequence[Run]
) -> list[Sample]:
    """Connections that only a SYN sent again brought through.

    A client that waits for more than a second sends its SYN again whatever we do. It has not
    waited *for* that if it connected as soon as the hold ended in which it waited.
    """
    return [
        sample
        for sample in load.samples
        if sample.retransmits and not _let_go_by_a_hold(sample, ports[sample.target], runs)
    ]


def _let_go_by_a_hold(sample: Sample, port: int, runs: Sequence[Run]) -> bool:
    opened_ns, connected_ns = sample.opened_at_ns, sample.opened_at_ns + sample.connect_ns
    return any(
        began_ns - SPARE_NS < opened_ns and connected_ns < ended_ns + SPARE_NS
        for began_ns, ended_ns in (run.held_ns() for run in runs if port in run.ports)
        if opened_ns < ended_ns < connected_ns + SPARE_NS
    )


@dataclass(frozen=True, kw_only=True)
class Tables:
    """What the server's namespace has of what no run may leave behind."""

    network: NetworkState
    netlink_sockets: int
    drops: dict[str, int] = field(compare=False)

    @classmethod
    def of(cls, server: Namespace) -> Tables:
        """Look now."""
        netlink = server.run(["cat", "/proc/net/netlink"]).stdout.splitlines()
        return cls(
            network=NetworkState.capture(server, run_dirs=("/run",)),  # the lab's own /run
            netlink_sockets=len(netlink) - 1,
            drops=_drops(server),
        )


def _drops(server: Namespace) -> dict[str, int]:
    counters = tcp_counters(server)
    return {name: counters[name] for name in _DROPS if name in counters}


@contextmanager
def nothing_left(lab: ClientServer, folder: Path) -> Iterator[None]:
    """Tables, queues, processes and files are as before, and the kernel dropped no handshake."""
    before = Tables.of(lab.server)
    assert before.drops
    yield
    after = Tables.of(lab.server)
    assert before.network.difference(after.network) == []
    assert after.netlink_sockets == before.netlink_sockets
    assert after.drops == before.drops
    assert list(folder.iterdir()) == []
