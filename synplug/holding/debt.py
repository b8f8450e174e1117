"""Whether newcomers outpace a service: as many come as it accepts, while it goes on."""

from __future__ import annotations

import sys

#: What came and what went are compared for such a while, and then for the next.
_SLICE_S = 0.08
#: By this share fewer come than go halfway between those who keep up (as many), and those who do
#: not (5 % fewer): the sum of the differences to it rises with the ones, and falls with the others.
_MIDDLE = 0.025
#: A slice counts as so many in which as many came as went, at the most: one herd decides nothing.
_MOST = 3
#: After so many rounds, in each of which never fewer waited than in the one before, there is debt.
_ROUNDS, _ROUND_S = 4, 1.0


class Debt:
    """Compares what came for a lane with what went, in the time in which the service went on.

    The sum of the differences never gets below zero, and one slice adds little to it: neither how
    much has fallen before nor how large a herd was counts. Its unit is a second in which as many
    came as went. What escapes it, standstills or herds again and again, the rounds find: they
    compare the lowest depths at the releases, and a standstill is within one of them.

    :param now_s: monotonic, as all times here.
    """

    def __init__(self, now_s: float) -> None:
        self.began_at_s = now_s
        self._looked_at_s = now_s
        self._owed_s = 0.0
        self._owing_s = 0.0  # the time that counts, since nothing was owed
        self._gone_owing = 0
        self._slice_s = 0.0
        self._slice_waiting = 0  # when it began
        self._slice_gone = 0
        self._round_at_s = now_s
        self._lowest = self._lowest_before = sys.maxsize
        self._bad_rounds = 0

    def look(self, waiting: int, now_s: float, *, goes_on: bool) -> None:
        """So many wait. *goes_on*: the time since the last look counts."""
        self._slice_s += now_s - self._looked_at_s if goes_on else 0.0
        self._looked_at_s = now_s
        if self._slice_s < _SLICE_S or not self._slice_gone:
            return
        even = _MIDDLE * self._slice_gone
        slices = (waiting - self._slice_waiting + even) / even
        self._owed_s += max(-_MOST, min(slices, _MOST)) * self._slice_s
        self._owing_s += self._slice_s
        self._gone_owing += self._slice_gone
        if self._owed_s <= 0:
            self._owe_nothing()
        self._begin_slice(waiting)

    def note(self, released: int, waiting: int, now_s: float, *, begins_anew: bool) -> None:
        """So many of the *waiting* go now.

        :param begins_anew: what came until now is no sign, for all but the rounds.
        """
        if begins_anew:
            self._owe_nothing()
            self._begin_slice(waiting)
        self._slice_gone += released
        if released == waiting:
            self._round_at_s, self._bad_rounds = now_s, 0
            self._lowest, self._lowest_before = waiting, sys.maxsize
        self._lowest = min(self._lowest, waiting)
        if now_s - self._round_at_s >= _ROUND_S:
            self._bad_rounds = self._bad_rounds + 1 if self._lowest >= self._lowest_before else 0
            self._round_at_s, self._lowest_before, self._lowest = now_s, self._lowest, waiting

    def is_found(self, waiting: int, least_s: float, most_s: float) -> bool:
        """Whether newcomers have outpaced the service for *least_s*.

        :param most_s: the same where not even a third of the *waiting* has gone meanwhile: the
            more there are to overflow a backlog, the surer it must be.
        """
        is_deep = 3 * self._gone_owing < waiting
        enough_s = max(least_s, most_s) if is_deep else least_s
        return min(self._owed_s, self._owing_s) > enough_s or self._bad_rounds >= _ROUNDS

    def _owe_nothing(self) -> None:
        self._owed_s, self._owing_s, self._gone_owing = 0.0, 0.0, 0

    def _begin_slice(self, waiting: int) -> None:
        self._slice_s, self._slice_waiting, self._slice_gone = 0.0, waiting, 0
