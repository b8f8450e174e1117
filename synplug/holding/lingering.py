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
    """Return when the rest can be removed, with the guard taken: no hold of ours would lose by it.

    Somebody else's packets are waited for for a minute at the most.

    :param tell: is told once what it waits for. :param turn: sees to whatever happens within so
        many milliseconds.
    """
    give_up_s = float("inf")  # another hold has a deadline of its own
    told = False
    while backend.uses_queues and (
        obstacle := _obstacle(backend, guard, is_over=clock() > give_up_s)
    ):
        is_foreign = obstacle != _ANOTHER_HOLD
        give_up_s = min(give_up_s, clock() + LINGER_S) if is_foreign else float("inf")
        if not told:
            told = True
            tell(obstacle)
        turn(_POLL_MS)


def _obstacle(backend: Backend, guard: FlushGuard, *, is_over: bool) -> str:
    """Who would lose packets if the rest were removed now; takes the guard if nobody.

    :param is_over: those of somebody else have been waited for long enough.
    """
    if not guard.try_alone():
        return _ANOTHER_HOLD
    obstacle = "" if is_over else backend.obstacle()
    if obstacle:
        guard.leave()
    return obstacle
