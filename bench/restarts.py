"""Rounds of restarts under load, and what the clients saw of each."""

from __future__ import annotations

import contextlib
import sys
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from bench.cases import Case
from bench.contenders import Contender, Report
from bench.errors import BenchError
from bench.observer import asked_s, seen_before
from bench.samples import Samples, percentile
from netlab.errors import LabError
from netlab.listenwatch import Gap, ListenWatch
from netlab.load import Load
from netlab.load_result import LoadResult, Outcome
from netlab.servers import Service
from netlab.topology import ClientServer

#: The load begins so long before the restart.
BEFORE_S = 0.2
#: It goes on for so long from the restart's begin, on top of the outage that was asked for.
#: Percentiles are of a part as long as that around what was to be seen, see `_middle_ms`.
WINDOW_S = 1.2
#: And it goes on for so long after the command at the least.
AFTER_S = 0.3
#: More than a client that is dropped needs: it tries again after 1, 2, 3, 4 s, then more rarely.
PATIENCE_S = 8.0
#: Many clients, so that none reuses a port whose last connection the server still remembers.
_MORE_CLIENTS = 20


@dataclass(frozen=True, kw_only=True)
class Round:
    """One restart. Times in ms; *points* are (due after the restart's begin, connect, failed).

    *stop_ms* is what the restart command took, once it was begun, until the old listener was gone;
    *released_ms* from the new one's appearance until nothing was held; 0 without synplug.
    *watch_interval_ms* is the longest time in which nobody looked for listeners.
    """

    attempted: int
    failures: int
    retransmitted: int
    connect_max_ms: float
    gap_ms: float
    late_p99_ms: float
    command_ms: float
    middle_ms: float
    report: Report | None
    first_served_ms: float
    last_served_ms: float
    stop_ms: float
    released_ms: float
    watch_interval_ms: float
    gap: tuple[float, float] | None
    points: tuple[array[float], array[float], bytearray]

    @property
    def over_ms(self) -> float:
        """The worst connect, minus the time without a listener."""
        return self.connect_max_ms - self.gap_ms


@dataclass(kw_only=True)
class Result:
    """All rounds of one contender in one case."""

    case: Case
    contender: Contender
    rounds: list[Round] = field(default_factory=list)
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    typical: Round | None = None

    def settle(self) -> None:
        """Take the percentiles over all rounds, keep one round's points, let the others go."""
        window_ms = (WINDOW_S + self.case.outage_s) * 1000
        pooled: list[float] = []
        for played in self.rounds:
            due, connect, _ = played.points
            left_ms = max(-1000 * BEFORE_S, played.middle_ms - window_ms / 2)
            left_ms = min(left_ms, max(due, default=0.0) - window_ms)
            within = ((d, c) for d, c in zip(due, connect, strict=True) if c > 0)
            pooled += (c for d, c in within if left_ms <= d <= left_ms + window_ms)
        self.p50_ms, self.p99_ms = percentile(pooled, 50), percentile(pooled, 99)
        ranked = sorted(self.rounds, key=lambda played: (played.failures, played.connect_max_ms))
        self.typical = ranked[len(ranked) // 2]
        for played in self.rounds:
            if played is not self.typical:
                for points in played.points:
                    del points[:]

    def samples(self, of: Callable[[Round], float], unit: str = "ms") -> Samples:
        """One value a round."""
        return Samples.of((of(played) for played in self.rounds), unit)

    def has_phase(self, name: str) -> bool:
        """Whether any report tells of this phase."""
        reports = [played.report for played in self.rounds if played.report]
        return any(phase["name"] == name for report in reports for phase in report["phases"])

    def of_reports(self, of: Callable[[Report], float]) -> Samples:
        """One value a report, given in seconds."""
        reports = (played.report for played in self.rounds)
        return Samples.of(1000 * of(report) for report in reports if report)


def phase_s(name: str) -> Callable[[Report], float]:
    """How long a phase of a report took; nothing where it has none of that name."""
    return lambda report: next(
        (float(phase["duration_s"]) for phase in report["phases"] if phase["name"] == name), 0.0
    )


def play_rounds(case: Case, rounds: int) -> dict[str, list[Round]]:
    """Play all rounds of a case, in a lab of its own; the rounds by the contender's name.

    Raises:
        BenchError: a contender cannot run; there is no table without it.

    """
    found: dict[str, list[Round]] = {contender.name: [] for contender in case.contenders}
    with ClientServer(extra_client_addresses=_MORE_CLIENTS) as lab:
        services = _Services(lab, case)
        with contextlib.closing(services):
            for number in range(rounds):
                for contender in case.players(number):
                    try:
                        played = _round(lab, case, contender, services.up(contender))
                    except LabError as error:
                        raise BenchError(
                            f"contender '{contender.name}' cannot run ({case.title}): {error}"
                        ) from error
                    found[contender.name].append(played)
                    _say(case, contender, number, played)
    return found


def results(case: Case, played: Mapping[str, list[Round]]) -> list[Result]:
    """What the rounds of a case amount to."""
    found = [
        Result(case=case, contender=contender, rounds=played[contender.name])
        for contender in case.contenders
    ]
    for result in found:
        result.settle()
    return found


class _Services:
    """The service of a case, set up in one manner or several; one of them runs."""

    def __init__(self, lab: ClientServer, case: Case) -> None:
        self._lab = lab
        self._case = case
        self._made: dict[str, Service] = {}
        self._running: Service | None = None

    def up(self, contender: Contender) -> Service:
        """The one that this contender restarts, listening."""
        key = contender.name if contender.make else ""
        if key not in self._made:
            self._made[key] = (contender.make or self._case.make)(self._lab.server)
        service = self._made[key]
        if self._running and (self._running is not service or contender.fresh):
            self._running.stop()
        self._running = service
        service.start()
        return service

    def close(self) -> None:
        """Stop what runs, remove all files."""
        with contextlib.ExitStack() as stack:
            for service in self._made.values():
                stack.callback(service.close)
                stack.callback(service.stop)


def _round(lab: ClientServer, case: Case, contender: Contender, service: Service) -> Round:
    targets = service.targets(("127.0.0.1",) if case.loopback else lab.server_addresses)
    with (
        ListenWatch(lab.server, service.ports) as watch,
        Load(
            lab.server if case.loopback else lab.client,
            targets,
            rate_per_s=case.rate_per_s,
            timeout_s=case.outage_s + PATIENCE_S,
            sources=() if case.loopback else lab.client_addresses,
        ) as load,
    ):
        time.sleep(BEFORE_S)
        began_ns, began_epoch_s = time.monotonic_ns(), time.time()
        report = contender.restart(service, case.outage_s)
        ended_ns = time.monotonic_ns()
        service.wait_until_listening()
        window_ns = began_ns + round((case.outage_s + WINDOW_S) * 1e9)
        until_ns = max(window_ns, ended_ns + round(AFTER_S * 1e9))
        time.sleep(max(0.0, (until_ns - time.monotonic_ns()) / 1e9))
        result = load.stop()
    gaps, hold = watch.gaps, None
    if report:
        hold = _Hold.of(report, began_epoch_s)
        gaps = seen_before(gaps, began_ns + round(hold.asked_ms * 1e6))
    gap = max(gaps, key=lambda gap: gap.end_ns - gap.start_ns, default=None)
    moments = began_ns, ended_ns
    return _seen(result, moments, hold, gap, report, watch.longest_interval_ms)


@dataclass(frozen=True, kw_only=True)
class _Hold:
    """When it began, the old queues were empty, its release was asked for, all were let go.

    In ms from the restart's begin on.
    """

    held_ms: float
    drained_ms: float
    asked_ms: float
    opened_ms: float

    @classmethod
    def of(cls, report: Report, began_epoch_s: float) -> _Hold:
        phases = {phase["name"]: phase for phase in report["phases"]}
        from_ms = 1000 * (float(report["started_at"]) - began_epoch_s)
        ends_ms = {
            name: from_ms + 1000 * (float(phase["start_s"]) + float(phase["duration_s"]))
            for name, phase in phases.items()
        }
        held_ms = from_ms + 1000 * float(phases["hold"]["start_s"])
        return cls(
            held_ms=held_ms,
            drained_ms=ends_ms.get("drain", held_ms),
            asked_ms=1000 * (asked_s(report) - began_epoch_s),
            opened_ms=ends_ms["hold"],
        )


def _middle_ms(moments: tuple[int, int], hold: _Hold | None, gap: Gap | None) -> float:
    """The middle of the hold, or else of the outage, or else of the command, from the begin on."""
    began_ns, ended_ns = moments
    if hold:
        return (hold.held_ms + hold.opened_ms) / 2
    if gap:
        return ((gap.start_ns + gap.end_ns) / 2 - began_ns) / 1e6
    return (ended_ns - began_ns) / 2e6


def _seen(
    load: LoadResult,
    moments: tuple[int, int],
    hold: _Hold | None,
    gap: Gap | None,
    report: Report | None,
    watch_interval_ms: float,
) -> Round:
    """What became of the load; *moments*: begin and end of the command."""
    began_ns, ended_ns = moments
    gap_ms = ((gap.start_ns - began_ns) / 1e6, (gap.end_ns - began_ns) / 1e6) if gap else None
    restarted = LoadResult(samples=tuple(s for s in load.samples if s.scheduled_at_ns >= began_ns))
    points = (array("d"), array("d"), bytearray())
    for sample in load.samples:
        points[0].append((sample.scheduled_at_ns - began_ns) / 1e6)
        points[1].append(sample.connect_ns / 1e6)
        points[2].append(sample.outcome is not Outcome.OK)
    served = list(_served_after(load, gap)) if gap else []
    return Round(
        attempted=restarted.attempted,
        failures=restarted.failures,
        retransmitted=restarted.retransmitted,
        connect_max_ms=restarted.connect_max_ms,
        gap_ms=gap.duration_ms if gap else 0.0,
        late_p99_ms=load.late_p99_ms,
        command_ms=(ended_ns - began_ns) / 1e6,
        middle_ms=_middle_ms(moments, hold, gap),
        report=report,
        first_served_ms=min(served, default=0.0),
        last_served_ms=max(served, default=0.0),
        stop_ms=gap_ms[0] - hold.drained_ms if gap_ms and hold else 0.0,
        released_ms=hold.opened_ms - gap_ms[1] if gap_ms and hold else 0.0,
        watch_interval_ms=watch_interval_ms,
        gap=gap_ms,
        points=points,
    )


def _served_after(load: LoadResult, gap: Gap) -> Iterator[float]:
    """How long after the listener's appearance those connected who came before it; in ms."""
    for sample in load.samples:
        connected_ns = sample.opened_at_ns + sample.connect_ns
        if sample.connect_ns and sample.opened_at_ns < gap.end_ns < connected_ns:
            yield (connected_ns - gap.end_ns) / 1e6


def _say(case: Case, contender: Contender, number: int, played: Round) -> None:
    print(
        f"{case.key} {number + 1:>2} {contender.name:<18} {played.failures:>5} failed, "
        f"{played.retransmitted:>5} retransmitted, connect max {played.connect_max_ms:7.1f} ms, "
        f"no listener for {played.gap_ms:6.1f} ms, client late {played.late_p99_ms:.1f} ms",
        file=sys.stderr,
        flush=True,
    )
