"""The cases of the fault matrix: all of them, and those of ``make test``."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from synplug.model import BackendName
from tests.integration.fault_points import POINTS, Fault, Party, Point

#: Real gaps, each with what is missing; a case that is mended fails until it is struck out here.
KNOWN: dict[str, str] = {}

#: The plug has cases of its own, in tests/guest: this machine's kernel may have none.
BACKENDS = [name for name in BackendName if name not in (BackendName.AUTO, BackendName.PLUG)]
#: Who can get a signal while there is a keeper.
SIGNALLED = (Party.ORCHESTRATOR, Party.KEEPER, Party.BOTH)


class CommandPoint(enum.Enum):
    """Where the command has its own accidents."""

    BEFORE_STOP = "before stop"
    STOPPED = "stopped"
    STARTED = "started"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One accident."""

    point: str
    party: Party
    fault: Fault
    backend: BackendName

    def __str__(self) -> str:
        words = (self.point, self.party.value, self.fault.value, self.backend.value)
        return "-".join(words).replace(" ", "_")


def _parties(point: Point, fault: Fault) -> tuple[Party, ...]:
    """Who can be struck there: an exception is in the process that comes there."""
    if fault.is_signal and point.keeper_lives:
        return SIGNALLED
    return (point.process,)


def accidents() -> Iterator[tuple[str, Party, Fault]]:
    """Every one, whatever the backend."""
    for point in POINTS.values():
        for fault in Fault:
            for party in _parties(point, fault):
                yield point.name, party, fault
    for place in CommandPoint:
        for fault in Fault:
            if not fault.errno:
                yield place.value, Party.COMMAND, fault


def every_case() -> list[Case]:
    """The full product."""
    return [
        Case(point=point, party=party, fault=fault, backend=backend)
        for point, party, fault in accidents()
        for backend in backends_of(point)
    ]


def backends_of(point: str) -> list[BackendName]:
    """Those with which a run comes there."""
    only = POINTS[point].backends if point in POINTS else ()
    return [backend for backend in BACKENDS if not only or backend in only]


def selected_cases() -> frozenset[Case]:
    """Those of ``make test``: every point with every fault once.

    Of those that there are, the one with most pairs that no earlier one had: so each point, and
    each fault, meets each party and each backend.
    """
    choices: dict[tuple[str, Fault], list[Case]] = {}
    for case in every_case():
        choices.setdefault((case.point, case.fault), []).append(case)
    seen: set[tuple[object, object]] = set()
    chosen = set()
    for cases in choices.values():
        best = max(cases, key=lambda case: len(_pairs(case) - seen))
        seen |= _pairs(best)
        chosen.add(best)
    return frozenset(chosen)


def _pairs(case: Case) -> set[tuple[object, object]]:
    values = (case.point, case.party, case.fault, case.backend)
    return set(itertools.combinations(values, 2))
