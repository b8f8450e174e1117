"""The empty rest of a hold stays where its removal would cost somebody packets.

To remove a base chain flushes every queue of the network namespace: other holds', and those of
whoever else uses netfilter queues (docs/adr/0003-owner-tables-and-keeper.md).
"""

from __future__ import annotations

from collections.abc import Callable

from synplug.holding.base import Backend
from synplug.holding.locks import FlushGuard

_ANOTHER_HOLD = "another synplug run holds connections in this network namespace"
#: How long an empty table may stay for the packets of somebody who is no synplug.
LINGER_S = 60.0
_POLL_MS = 20


def wait_until_harmless(
    backend: Backend,
    guard: FlushGuard,
    *,
    clock: Callable[[], float],
    tell: Callable[[str], None],
    turn: Callable[[int | None], None],
) -> None:
    """Return when the rest can be removed, with the guard taken; or when it has waited too long.

    :param tell: is told once what it waits for. :param turn: sees to whatever happens within so
        many milliseconds.
    """
    give_up_s = float("inf")  # another hold has a deadline of its own
    told = False
    while backend.uses_queues and (obstacle := _obstacle(backend, guard)):
        is_foreign = obstacle != _ANOTHER_HOLD
        give_up_s = min(give_up_s, clock() + LINGER_S) if is_foreign else float("inf")
        if clock() > give_up_s:
            return
        if not told:
            told = True
            tell(obstacle)
        turn(_POLL_MS)


def _obstacle(backend: Backend, guard: FlushGuard) -> str:
    """Who would lose packets if the rest were removed now; takes the guard if nobody."""
    if not guard.try_alone():
        return _ANOTHER_HOLD
    obstacle = backend.obstacle()
    if obstacle:
        guard.leave()
    return obstacle
