"""All that was measured, and its JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any

from bench.held import Released
from bench.machinery import AtARate, Capacity, StartUp
from bench.restarts import Result, phase_s


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that was measured. *accept_rates*: by the rate that the service was told.

    *guest_accept_rates*: those of the same service in the guest, where some of *released* are from.
    """

    quick: bool
    machine: dict[str, str]
    guest_kernel: str
    results: list[Result]
    accept_rates: dict[int, float]
    guest_accept_rates: dict[int, float]
    released: list[Released]
    start_up: StartUp
    capacities: list[Capacity]
    at_a_rate: AtARate
    at_rest: list[int]
    imported: str


def as_json(findings: Findings) -> dict[str, Any]:
    """Return all figures, one value a round."""
    times = findings.start_up
    return {
        "schema": "synplug.benchmarks/1",
        "quick": findings.quick,
        "machine": findings.machine,
        "guest_kernel": findings.guest_kernel,
        "restarts": [_restart(result) for result in findings.results],
        "accept_rates_per_s": _rates(findings.accept_rates),
        "guest_accept_rates_per_s": _rates(findings.guest_accept_rates),
        "releases": [_release(result) for result in findings.released],
        "start_up": {
            name: getattr(times, name).as_json()
            for name in ("bare", "arguments", "held", "command")
        },
        "capacities": [asdict(capacity) for capacity in findings.capacities],
        "at_a_rate": asdict(findings.at_a_rate),
        "at_rest": findings.at_rest,
        "imported": findings.imported,
    }


def _restart(result: Result) -> dict[str, Any]:
    case = result.case
    figures = {
        name: result.samples(attrgetter(name)).as_json()
        for name in (
            *("connect_max_ms", "gap_ms", "over_ms", "late_p99_ms", "command_ms", "stop_ms"),
            *("released_ms", "first_served_ms", "last_served_ms", "watch_interval_ms"),
        )
    }
    counts = {
        name: result.samples(attrgetter(name), "").as_json()
        for name in ("attempted", "failures", "retransmitted")
    }
    reports = {}
    if any(played.report for played in result.rounds):
        reports = {
            "hold": result.of_reports(lambda report: report["hold"]["duration_s"]).as_json(),
            **{
                name: result.of_reports(phase_s(name)).as_json()
                for name in ("arm", "look-ahead", "drain", "ready", "release")
                if result.has_phase(name)
            },
        }
    return {
        "case": case.key,
        "service": case.service,
        "rate_per_s": case.rate_per_s,
        "backlog": case.backlog,
        "outage_s": case.outage_s,
        "contender": result.contender.name,
        "connect_p50_ms": round(result.p50_ms, 3),
        "connect_p99_ms": round(result.p99_ms, 3),
        **counts,
        **figures,
        "report": reports,
    }


def _rates(measured: Mapping[int, float]) -> dict[str, float]:
    return {str(told): round(rate, 1) for told, rate in measured.items()}


def _release(result: Released) -> dict[str, Any]:
    return {
        **asdict(result.crowd),
        "in_guest": result.crowd.in_guest,
        "mode": result.mode,
        "backend": result.backend,
        "counters": result.cliff,
        "limits": result.limits,
        **{
            name: getattr(result, name).as_json()
            for name in (
                "held",
                "failures",
                "outage",
                "worst",
                "to_last",
                "ratio",
                "watch_interval",
            )
        },
    }
