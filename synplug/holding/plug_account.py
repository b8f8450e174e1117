"""What became of the SYNs that came to a plug, by what its qdisc says of itself."""

from __future__ import annotations

from synplug.holding.remarks import full_remark, stranded_remark
from synplug.kernel.traffic_control import PlugState
from synplug.model import HoldCounts

_NOTHING = PlugState(0, 0, 0, 0)


class PlugAccount:
    """The account of one hold: from its begin on, as compared with before."""

    def __init__(self) -> None:
        self._before = self.last = _NOTHING
        self.peak = self.peak_bytes = 0
        self._lost = self._untold_loss = 0
        #: How many could not go back to the device that had brought them.
        self.stranded = 0

    def remarks(self, limit_bytes: int) -> tuple[str, ...]:
        """What the operator should know of it."""
        was_full = self.last.dropped > self._before.dropped
        return (
            *stranded_remark(self.stranded),
            *(full_remark(limit_bytes, self.peak, self.peak_bytes) if was_full else ()),
        )

    def begin(self, state: PlugState) -> None:
        """From here on SYNs wait."""
        self._before = self.last = state
        self.peak, self.peak_bytes = state.waiting, state.waiting_bytes

    def note(self, state: PlugState) -> None:
        """It looks like this now."""
        self.last = state
        self.peak = max(self.peak, state.waiting)
        self.peak_bytes = max(self.peak_bytes, state.waiting_bytes)

    def count_loss(self, earlier: PlugState, now: PlugState | None) -> None:
        """Count what neither waits any more nor has passed; None: nor is the plug there.

        A device that goes down drops what waits; what it takes when it is up again, waits.
        """
        if now is None:
            now = self.last = PlugState(0, earlier.passed, earlier.dropped, 0)
        lost = max(0, earlier.waiting + earlier.passed - now.waiting - now.passed)
        self._lost += lost
        self._untold_loss += lost

    def take_loss(self) -> int:
        """How many were lost since somebody asked."""
        untold, self._untold_loss = self._untold_loss, 0
        return untold

    def counts(self, *, let_through: int, are_local: bool) -> HoldCounts:
        """It all. :param are_local: whether all that it holds comes from this host."""
        released = self.last.passed - self._before.passed - self.stranded
        lost = self._lost + self.stranded
        held = released + self.last.waiting + lost
        return HoldCounts(
            held=held,
            held_local=held if are_local else 0,
            released=released,
            let_through=let_through,
            overflowed=self.last.dropped - self._before.dropped,
            lost=lost,
            waiting=self.last.waiting,
            peak=self.peak,
        )
