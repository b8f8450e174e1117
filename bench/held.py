"""Many who waited are let go onto a service that accepts slowly, with a small backlog."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.contenders import SYNPLUG, Report
from bench.errors import BenchError
from bench.kernel_state import holding_keepers, waiting_packets
from bench.observer import asked_s, seen_before
from bench.samples import Samples
from netlab.counters import NO_ROOM, tcp_counters
from netlab.listenwatch import ListenWatch
from netlab.load import Load
from netlab.load_result import LoadResult
from netlab.program import wait_until
from netlab.topology import ClientServer, Namespace

PROGRAMS = Path(__file__).resolve().parent.parent / "tests" / "integration" / "programs"
PORT = 8080
#: So many connections a load client, as its process may not open more files; it has others, too.
_CLIENTS_A_PROGRAM, _OTHER_FILES = 12_500, 64
_CALIBRATION_CLIENTS = 4000
#: Packets on their way through one side's netem, at the most: more than the clients send.
_ON_THE_WAY = 20_000


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """So many clients, who come at this rate, meet a service with this backlog.

    *back_off*: they send again after 1, 3, 7 s, as those of a kernel before 6.5 do: what 50,000
    send every second is more than the lab's virtual cable carries. *round_trip_ms*: how far away
    they are, by netem; not every kernel has that, so they are played in a guest. *patience_s*: so
    long after it has come, a client without an answer has failed.
    """

    clients: int
    backlog: int
    comes_per_s: int
    accepts_per_s: int
    back_off: bool = False
    round_trip_ms: int = 0
    patience_s: float = 40.0
    modes: Sequence[str] = ("paced", "burst")
    rounds: int = 3

    @property
    def title(self) -> str:
        """What it is, for a row of the table."""
        far = f", {self.round_trip_ms} ms away, in the guest" if self.in_guest else ""
        return f"{self.clients:,} held, backlog {self.backlog:,}{far}"

    @property
    def in_guest(self) -> bool:
        """Whether it needs a kernel that the machine may not have."""
        return self.round_trip_ms > 0

    def bound_ms(self, outage_ms: float, accepts_per_s: float) -> float:
        """What the longest connect takes, if no place of the listener is ever left unused.

        A handshake takes a place of the backlog for a round trip, so no more than backlog ÷ round
        trip can be let go in a second (``net/ipv4/tcp_input.c``, tcp_conn_request); and the
        listener's answer is under way for half of one.
        """
        per_s = accepts_per_s
        if self.round_trip_ms:
            per_s = min(per_s, 1000 * self.backlog / self.round_trip_ms)
        return outage_ms + self.round_trip_ms / 2 + 1000 * self.clients / per_s


CROWDS = (
    *(
        Crowd(clients=5000, backlog=backlog, comes_per_s=10_000, accepts_per_s=5000)
        for backlog in (128, 511, 4096)
    ),
    Crowd(
        clients=50_000,
        backlog=4096,
        comes_per_s=10_000,
        accepts_per_s=10_000,
        back_off=True,
        rounds=1,  # it lasts for half a minute
    ),
    *(
        Crowd(
            clients=5000,
            backlog=backlog,
            comes_per_s=2000,
            accepts_per_s=700,  # so that one slow processor is left with something to spare
            round_trip_ms=100,
            patience_s=20.0,
        )
        for backlog in (128, 511, 4096)
    ),
)


@dataclass(kw_only=True)
class Released:
    """One crowd, let go in one manner, in several rounds; *backend* is what held it."""

    crowd: Crowd
    mode: str
    backend: str = ""
    held: Samples = field(default_factory=lambda: Samples(unit=""))
    failures: Samples = field(default_factory=lambda: Samples(unit=""))
    outage: Samples = field(default_factory=Samples)
    worst: Samples = field(default_factory=Samples)
    to_last: Samples = field(default_factory=Samples)
    ratio: Samples = field(default_factory=lambda: Samples(unit=""))
    watch_interval: Samples = field(default_factory=Samples)
    cliff: dict[str, int] = field(default_factory=lambda: dict.fromkeys(NO_ROOM, 0))
    limits: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Releases:
    """All crowds of one kernel. *accept_rates*: by the rate that the service was told."""

    accept_rates: dict[int, float]
    released: list[Released]


def measure(crowds: Sequence[Crowd], rounds: int) -> Releases:
    """Let the crowds go, in so many rounds at the most, after how fast is accepted by itself."""
    rates = {
        told: statistics.median(accept_rate(told) for _ in range(rounds))
        for told in dict.fromkeys(crowd.accepts_per_s for crowd in crowds)
    }
    released: list[Released] = []
    for crowd in crowds:
        released += play(crowd, min(rounds, crowd.rounds), rates[crowd.accepts_per_s])
    return Releases(accept_rates=rates, released=released)


def accept_rate(accepts_per_s: int) -> float:
    """Connections that the service accepts in a second by itself, its accept queue never empty."""
    with _service(backlog=4096, accepts_per_s=accepts_per_s) as service:
        service.start()
        pid = service.wait()
        os.kill(pid, signal.SIGSTOP)
        rate = 2 * accepts_per_s
        with Load(
            service.lab.client,
            service.targets,
            rate_per_s=rate,
            duration_s=_CALIBRATION_CLIENTS / rate,
            timeout_s=20.0,
            expect_ready=False,
        ) as load:
            enough = _CALIBRATION_CLIENTS * 0.99
            wait_until(lambda: _accept_queue(service.lab.server) >= enough, 30, "they queue")
            began_ns = time.monotonic_ns()
            os.kill(pid, signal.SIGCONT)
            samples = load.wait().samples
        ended_ns = max(sample.opened_at_ns + sample.total_ns for sample in samples)
        return len(samples) * 1e9 / (ended_ns - began_ns)


def play(crowd: Crowd, rounds: int, accepts_per_s: float) -> list[Released]:
    """Let the crowd wait and go, paced and as a burst in turn."""
    results = {mode: Released(crowd=crowd, mode=mode) for mode in crowd.modes}
    for number in range(rounds):
        turn = number % len(crowd.modes)
        for mode in (*crowd.modes[turn:], *crowd.modes[:turn]):
            _round(crowd, results[mode], accepts_per_s)
            _say(results[mode], number)
    return list(results.values())


def _round(crowd: Crowd, result: Released, accepts_per_s: float) -> None:
    with _service(backlog=crowd.backlog, accepts_per_s=crowd.accepts_per_s) as service:
        server = service.lab.server
        if crowd.back_off:
            service.lab.client.set_sysctl("net.ipv4.tcp_syn_linear_timeouts", 0)
            service.lab.client.set_sysctl("net.ipv4.tcp_syn_retries", 100)
        if crowd.round_trip_ms:
            _move_away(service.lab, crowd.round_trip_ms)
        before = tcp_counters(server)
        epoch_ns = time.time_ns() - time.monotonic_ns()
        run = service.start_wrapped(result.mode)
        with ListenWatch(server, [PORT]) as watch:
            load = _come(crowd, service, watch)
            report = _outcome(run)
        asked_ns = round(asked_s(report) * 1e9) - epoch_ns
        visible_ns = max(gap.end_ns for gap in seen_before(watch.gaps, asked_ns))
        after = tcp_counters(server)
    came_ns = min(sample.opened_at_ns for sample in load.samples)
    last_ns = max(sample.opened_at_ns + sample.connect_ns for sample in load.samples)
    outage_ms = (visible_ns - came_ns) / 1e6
    result.backend = report["hold"]["backend"]
    result.held.add(report["hold"]["held"])
    result.failures.add(load.failures)
    result.outage.add(outage_ms)
    result.worst.add(load.connect_max_ms)
    result.to_last.add((last_ns - visible_ns) / 1e6)
    result.ratio.add(load.connect_max_ms / crowd.bound_ms(outage_ms, accepts_per_s))
    result.watch_interval.add(watch.longest_interval_ms)
    for name in NO_ROOM:
        result.cliff[name] += after[name] - before[name]
    result.limits.append(report["hold"]["release_limit"])


def _move_away(lab: ClientServer, round_trip_ms: int) -> None:
    """Have each side's packets be under way for half of it (tc-netem(8))."""
    delay = f"root netem delay {round_trip_ms / 2:g}ms limit {_ON_THE_WAY}".split()
    for namespace in (lab.client, lab.server):
        namespace.run(["tc", "qdisc", "add", "dev", lab.interface, *delay])


def _come(crowd: Crowd, service: _Service, watch: ListenWatch) -> LoadResult:
    """Send the clients, start the service when all of them wait; what became of them."""
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    programs = -(-crowd.clients // min(_CLIENTS_A_PROGRAM, most_files - _OTHER_FILES))
    with contextlib.ExitStack() as stack:
        loads = [
            stack.enter_context(
                Load(
                    service.lab.client,
                    service.targets,
                    rate_per_s=crowd.comes_per_s / programs,
                    duration_s=crowd.clients / crowd.comes_per_s,
                    timeout_s=crowd.patience_s,
                    expect_ready=False,
                )
            )
            for _ in range(programs)
        ]
        enough = crowd.clients * 0.99
        wait_until(lambda: waiting_packets(service.lab.server) >= enough, 30, "they wait")
        service.go()
        service.wait()
        watch.stop()  # there is no more to see, and it takes its part of a processor
        return LoadResult(samples=tuple(s for load in loads for s in load.wait().samples))


def _outcome(run: subprocess.Popen[str]) -> Report:
    stdout, stderr = run.communicate(timeout=60)
    if run.returncode:
        raise BenchError(f"synplug wrap exited with {run.returncode}: {stderr.strip()}")
    report: Report = json.loads(stdout)
    return report


def _accept_queue(server: Namespace) -> int:
    lines = server.run(["ss", "-Htln", f"sport = :{PORT}"]).stdout.splitlines()
    return sum(int(line.split()[1]) for line in lines)


@dataclass(frozen=True, kw_only=True)
class _Service:
    """The small server of the tests, in a lab of its own."""

    lab: ClientServer
    directory: Path
    options: tuple[str, ...]

    @property
    def targets(self) -> list[tuple[str, int]]:
        return [(address, PORT) for address in self.lab.server_addresses]

    @property
    def _line(self) -> str:
        argv = [sys.executable, str(PROGRAMS / "simple_server.py"), str(PORT), *self.options]
        argv += ["--pidfile", str(self.directory / "pid")]
        return f"setsid {' '.join(argv)} </dev/null >/dev/null 2>&1 &"

    def start(self) -> None:
        """Start it now."""
        self.lab.server.run(["sh", "-c", self._line])

    def wait(self) -> int:
        """Return its pid, once it listens."""
        pidfile = self.directory / "pid"
        wait_until(pidfile.exists, 30, "the service listens")
        return int(pidfile.read_text(encoding="ascii"))

    def start_wrapped(self, mode: str) -> subprocess.Popen[str]:
        """Hold, and start it when told to; returns when connections are held."""
        go = self.directory / "go"
        os.mkfifo(go)
        argv = [*SYNPLUG, "wrap", "-q", "--json", "-", "-p", str(PORT), "--max-hold", "60s"]
        argv += ["--release", mode, "--", "sh", "-c", f"read line < {go}; {self._line}"]
        run = self.lab.server.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        wait_until(lambda: bool(holding_keepers(self.lab.server)), 30, "connections are held")
        return run

    def go(self) -> None:
        """Let the wrapped command start it."""
        (self.directory / "go").write_text("\n", encoding="ascii")


@contextlib.contextmanager
def _service(*, backlog: int, accepts_per_s: int) -> Iterator[_Service]:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, ClientServer() as lab:
        options = ("--backlog", str(backlog), "--rate", str(accepts_per_s))
        yield _Service(lab=lab, directory=Path(folder), options=options)


def _say(result: Released, number: int) -> None:
    print(
        f"{result.crowd.title} {number + 1:>2} {result.mode:<6} {result.failures.values[-1]:.0f} "
        f"failed, worst {result.worst.values[-1]:.0f} ms, last after "
        f"{result.to_last.values[-1]:.0f} ms, {result.cliff}",
        file=sys.stderr,
        flush=True,
    )
