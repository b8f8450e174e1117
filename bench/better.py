"""Who is better than the contender that the others are compared with, and in what."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

from bench.restarts import Result
from bench.samples import Samples, number

#: Two longest connects that differ by less are as good as each other.
_SAME_SHARE, _SAME_MS = 0.1, 1.0

#: For the page's method.
RULE = (
    "*Better* is who lost fewer connections; or else who lost no more, and whose longest connect "
    f"is shorter, in the median, by more than {_SAME_MS:g} ms and {100 * _SAME_SHARE:g} %. What "
    "counts is the sum of all restarts, by their number where one has more of them, and a single "
    "connection decides."
)


def better(results: Sequence[Result]) -> list[str]:
    """Who is better than the reference of this case, in what, and why; by the figures."""
    reference = results[0].case.reference
    (ours,) = (result for result in results if result.contender.name == reference)
    lines = []
    for theirs in results:
        said = _in_what(theirs, ours) if theirs is not ours else ""
        if said:
            contender = theirs.contender
            lines.append(
                f"- Better than {reference}: **{contender.name}**, {said}. Why: {contender.better}."
            )
    return [*lines, ""] if lines else [f"Nobody is better than {reference} here.", ""]


def lost(result: Result) -> int:
    """Connections that failed, in all restarts together."""
    return sum(played.failures for played in result.rounds)


def losses(result: Result) -> str:
    """Median and worst; the sum, too, where the median does not tell it."""
    samples = result.samples(attrgetter("failures"))
    told = samples.median * len(result.rounds) == lost(result)
    return samples.short() + ("" if told else f", {lost(result):,} in all")


def _in_what(theirs: Result, ours: Result) -> str:
    """Empty: in nothing, or who loses more, which nothing makes up for."""
    gains = []
    # Per restart, without a division: one may have played more of them.
    their_loss, our_loss = lost(theirs) * len(ours.rounds), lost(ours) * len(theirs.rounds)
    if their_loss > our_loss:
        return ""
    if their_loss < our_loss:
        gains.append(f"failures {_in_restarts(theirs)} against {_in_restarts(ours)}")
    their, our = (result.samples(attrgetter("connect_max_ms")) for result in (theirs, ours))
    if their.median < our.median and _differ(their, our):
        gains.append(f"longest connect {number(their.median)} against {number(our.median)} ms")
    return ", ".join(gains)


def _in_restarts(result: Result) -> str:
    return f"{lost(result):,} in {len(result.rounds)} restarts"


def _differ(one: Samples, other: Samples) -> bool:
    largest = max(one.median, other.median)
    return abs(one.median - other.median) > max(_SAME_MS, _SAME_SHARE * largest)
