"""The section of docs/benchmarks.md about many who are let go."""

from __future__ import annotations

from collections.abc import Mapping

from bench.findings import Findings
from bench.held import Released
from bench.observer import BLIND_MS, blind
from bench.table import table
from netlab.counters import NO_ROOM


def releases(findings: Findings) -> list[str]:
    """Return the section's lines."""
    lines = [
        "## Letting many go",
        "",
        "A small service accepts slowly. The clients come while nobody listens; when all of them "
        "wait, it starts. Burst and paced release in turn. How fast it accepts by itself, measured "
        "without synplug with an accept queue that is never empty: "
        f"{_rates(findings.accept_rates)}; in the guest {_rates(findings.guest_accept_rates)}.",
        "",
        "*Ratio*: the longest connect ÷ (outage + held ÷ that rate), where the outage is what "
        "the first client saw of it; *last after*: from the listener's appearance to the last "
        "connect. The counters (of all rounds) are the kernel's, of connections for which there "
        "was no room. Two looks of the observer at the listeners were more than "
        f"{BLIND_MS:g} ms apart at some time of a round {_blind(findings)}.",
        "",
        *_far(findings),
    ]
    lines += table(
        ("", "release", "n", "failures", "max ms", "ratio", "last after ms", *NO_ROOM),
        (_released(result) for result in findings.released),
    )
    limits = {limit for result in findings.released for limit in result.limits if limit}
    return [*lines, "", f"What the reports name as the limit: {'; '.join(sorted(limits))}.", ""]


def _blind(findings: Findings) -> str:
    return blind([ms for result in findings.released for ms in result.watch_interval.values])


def _rates(measured: Mapping[int, float]) -> str:
    return ", ".join(
        f"{rate:,.0f}/s where it is told {told:,}/s" for told, rate in measured.items()
    )


def _far(findings: Findings) -> list[str]:
    """What is different of those who are far away."""
    far = [result for result in findings.released if result.crowd.in_guest]
    away = ", ".join(sorted({f"{result.crowd.round_trip_ms} ms away" for result in far}))
    patience_s = max(result.crowd.patience_s for result in far)
    backends = ", ".join(sorted({result.backend for result in far}))
    return [
        f"*{away}*: by netem, which is not in every kernel, so this is played in the guest, "
        "whose one slow processor clients, service and synplug share; `--backend auto` takes "
        f"{backends} there. A handshake takes a place of the backlog for a round trip, so nobody "
        "can let go more than backlog ÷ round trip in a second without an overflow; and the "
        "listener's answer is under way for half a round trip. So the ratio is there: the longest "
        "connect ÷ (outage + half a round trip + held ÷ (that rate, or backlog ÷ round trip if "
        f"that is less)). Who has no answer within {patience_s:g} s has failed there.",
        "",
    ]


def _released(result: Released) -> tuple[str, ...]:
    return (
        result.crowd.title,
        result.mode,
        str(len(result.worst.values)),
        result.failures.short(),
        result.worst.short(),
        f"{result.ratio.median:.2f} ({result.ratio.worst:.2f})",
        result.to_last.short(),
        *(f"{result.cliff[name]:,}" for name in NO_ROOM),
    )
