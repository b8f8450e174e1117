"""The empty rest of a hold stays where its removal would cost somebody packets.

To remove a base chain flushes every queue of the network namespace: other holds', and those of
whoever else uses netfilter queues (docs/adr/0003-owner-tables-and-keeper.md).
"""

from __future__ import annotations

from collections.abc import Callable

from synplug.holding.base import Backend
from synplug.holding.locks import FlushGuard
from synplug.kernel.deadman import Deadman

_ANOTHER_HOLD = "another synplug run holds connections in this network namespace"
#: How long an empty table may stay for the packets of somebody who is no synplug.
LINGER_S = 60.0
_POLL_MS = 20
#: A removal takes milliseconds. Meanwhile nobody else can begin to hold, or change legacy rules.
_REMOVAL_S = 5.0


def wait_until_harmless(
    backend: Backend,
    guard: FlushGuard,
    deadman: Deadman,
    *,
    clock: Callable[[], float],
    is_hurried: Callable[[], bool],
    tell: Callable[[str], None],
    turn: Callable[[int | None], None],
) -> None:
    """Return when the rest can be removed, with the guard taken: no hold of ours would lose by it.

    Somebody else's packets are waited for for a minute at the most. When it returns the deadman
    runs: one that is stopped with the guard taken would keep everybody from holding.

    :param is_hurried: whether somebody else's packets count no more. :param tell: is told once
        what it waits for. :param turn: sees to whatever happens within so many milliseconds.
    """
    give_up_s = float("inf")  # another hold has a deadline of its own
    told = False
    while True:
        deadman.set(_REMOVAL_S + backend.patience_s)
        is_over = is_hurried() or clock() > give_up_s
        obstacle = _obstacle(backend, guard, is_over=is_over) if backend.flushes_queues else ""
        if not obstacle:
            return
        deadman.stop()  # it would remove the table, too
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
