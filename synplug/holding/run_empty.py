"""Waiting while something runs empty."""

from __future__ import annotations

import time
from collections.abc import Callable

_POLL_S = 0.002


def runs_empty(
    left: Callable[[], int],
    *,
    patience_s: float,
    at_most_s: float = float("inf"),
    go_on: Callable[[], None] = lambda: None,
) -> bool:
    """Wait until nothing is left, as long as it becomes less.

    :param left: how much there still is.
    :param patience_s: give up when it has not for so long, in seconds.
    :param at_most_s: give up after so long, whatever becomes of it.
    :param go_on: is called whenever it has become less, as a sign of life.
    :returns: whether nothing is left.
    """
    least: int | None = None
    began_s = moved_s = time.monotonic()
    while now := left():
        now_s = time.monotonic()
        if least is None or now < least:
            least, moved_s = now, now_s
            go_on()
        elif now_s - moved_s > patience_s:
            return False
        if now_s - began_s > at_most_s:
            return False
        time.sleep(_POLL_S)
    return True
