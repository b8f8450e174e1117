"""Whose a filter, a qdisc or a device is: by kind, handle and target, or by the ledger."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from synplug.errors import UnsupportedError
from synplug.kernel.flower import FLOWER, FW, Installed

_HANDLES = 1 << 12
#: In their lower 12 bits, a run's handles count from 1 to this.
MOST_FILTERS = _HANDLES - 2
#: For a mark, a connection, and SYNs to be held; the latter two by IP version, and tagged ones.
PREFERENCES = 6
#: The first of these for SYNs to be held.
HELD_AT = 3
CLSACT = "clsact"
_RUN_ID, _INDEX = re.compile(r"[0-9a-f]{8}"), re.compile(r"[0-9]{1,10}")


def first_handle(run_id: str) -> int:
    """By its upper 20 bits a filter is known as that run's."""
    return (int(run_id, 16) & ~(_HANDLES - 1) or 1 << 31) + 1


def check_number(filters: int) -> None:
    """Whether a run has handles for so many.

    :raises UnsupportedError: it has not.
    """
    if filters > MOST_FILTERS:
        raise UnsupportedError(
            f"a plug would need {filters} filters (devices times addresses times ports), "
            f"and can have {MOST_FILTERS}",
            remedy="name the devices with --dev, or the addresses with -p ADDRESS:PORT",
        )


def is_of(run_id: str, found: Installed) -> bool:
    """Whether it has the kind and the handle of that run's; a ledger can name impossible runs.

    Handles alone do not tell: tc(8) gives 0x80000800 to the first u32.
    """
    if found.kind != FLOWER or not _RUN_ID.fullmatch(run_id):
        return False
    first = first_handle(run_id)
    return first <= found.handle <= first + MOST_FILTERS


def marks_of(found: list[Installed], mark: int, preferences: set[int]) -> list[Installed]:
    """The filters for that mark, by the preferences of a run's in the same place."""
    return [
        one
        for one in found
        if (one.kind, one.handle) == (FW, mark)
        and any(0 < preference - one.preference < PREFERENCES for preference in preferences)
    ]


def places_in(traces: Mapping[str, str]) -> set[int]:
    """The indices of the devices that got a clsact, by a run's traces; these can say anything."""
    ends = (word.rpartition(":")[2] for word in traces.get(CLSACT, "").split())
    return {int(end) for end in ends if _INDEX.fullmatch(end)}


def ifb_index(traces: Mapping[str, str]) -> int | None:
    """The index of a run's device, where its traces have it; they can say anything."""
    _, _, index = traces.get("ifb device", "").partition(":")
    return int(index) if _INDEX.fullmatch(index) else None


def first_free(found: Iterable[Installed]) -> int:
    """The first of as many preferences in a row as a run takes that these filters leave."""
    taken = {one.preference for one in found}
    firsts = range(1, 1 << 15)
    return next(one for one in firsts if taken.isdisjoint(range(one, one + PREFERENCES)))
