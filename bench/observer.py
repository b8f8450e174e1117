"""What the observer of listeners tells, and how far it can be believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bench.contenders import Report
from bench.samples import number
from netlab.listenwatch import Gap

#: An observer that does not look for so long says little about what was there when.
BLIND_MS = 1.0


def asked_s(report: Report) -> float:
    """When the release was asked for, or else was over; in seconds since the epoch."""
    phases = {phase["name"]: phase for phase in report["phases"]}
    if "release" in phases:
        after_s = float(phases["release"]["start_s"])
    else:
        after_s = float(phases["hold"]["start_s"]) + float(phases["hold"]["duration_s"])
    return float(report["started_at"]) + after_s


def seen_before(gaps: Sequence[Gap], asked_ns: int) -> list[Gap]:
    """Gaps, each ended where the release was asked for: nobody does before there is a listener.

    The observer may look later than who asks does. A gap that begins later is another one.
    """
    return [
        replace(gap, end_ns=min(gap.end_ns, asked_ns)) if gap.start_ns < asked_ns else gap
        for gap in gaps
    ]


def blind(intervals_ms: Sequence[float]) -> str:
    """In how many rounds it did not look for too long."""
    count = sum(interval > BLIND_MS for interval in intervals_ms)
    longest = number(max(intervals_ms))
    return f"in {count} of {len(intervals_ms)} (the longest {longest} ms)"
