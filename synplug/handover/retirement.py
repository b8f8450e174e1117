"""The end of a generation that no longer listens: it may finish, then it must."""

from __future__ import annotations

import signal
from collections.abc import Iterable

from synplug.errors import SynplugError
from synplug.fate import Fate
from synplug.handover.generation import Generation
from synplug.handover.plan import RetirePlan
from synplug.handover.tools import Signals, Tools
from synplug.model import Endpoint

#: Processes that outlive SIGKILL for so long wait for a device, and are left to the kernel.
_KILL_S = 5.0
_LOOK_S = 0.05


class Retirement:
    """One that is retired; :meth:`step` until it is over.

    :param endpoints: to which its clients have connected.
    :param finishes: it was told to end, and does so when it has finished; otherwise it is told
        to when it has no connection left.
    """

    def __init__(
        self,
        generation: Generation,
        *,
        endpoints: Iterable[Endpoint],
        plan: RetirePlan,
        tools: Tools,
        finishes: bool,
    ) -> None:
        self.generation = generation
        self._endpoints = tuple(endpoints)
        self._plan = plan
        self._clock = tools.clock
        self._finishes = finishes
        self._began_s = tools.clock()
        self._looked_s = float("-inf")
        self._quiet_looks = 0
        self._signalled_s: float | None = None
        self._killed_s: float | None = None
        self._is_over = False
        #: What has become of it so far.
        self.fate = Fate.FINISHING
        #: Seconds until it had ended; None: it has not.
        self.took_s: float | None = None

    def step(self) -> bool:
        """See to it; looks every 50 ms at the most. Returns whether it is over.

        What cannot be seen now is looked at again the next time.
        """
        try:
            return self._step()
        except SynplugError:
            return False

    def _step(self) -> bool:
        now_s = self._clock()
        if self._is_over or now_s - self._looked_s < _LOOK_S:
            return self._is_over
        self._looked_s = now_s
        if not self.generation.look():
            self._end(now_s)
        elif self._killed_s is not None:
            self.generation.kill()  # again: it may have forked meanwhile
            self._is_over = now_s - self._killed_s >= _KILL_S
        elif self._signalled_s is not None:
            if now_s - self._signalled_s >= self._plan.kill_after_s:
                self._kill(now_s)
        elif now_s - self._began_s >= self._plan.linger_s or self._has_finished():
            self._terminate(now_s)
        return self._is_over

    def see_out(self, signals: Signals, *, is_hurried: bool) -> None:
        """Wait until it is over; a signal hurries it."""
        if is_hurried:
            self.hurry()
        while not self.step():
            if signals.take():
                self.hurry()
            signals.pause(_LOOK_S)

    def hurry(self) -> None:
        """Wait no longer: SIGTERM now, SIGKILL the next time."""
        now_s = self._clock()
        if self._signalled_s is None:
            self._terminate(now_s)
        elif self._killed_s is None:
            self._kill(now_s)

    def _has_finished(self) -> bool:
        """Whether two looks in a row have found no connection; asked only where it does not end."""
        if self._finishes:
            return False
        try:
            left = self.generation.connections(self._endpoints)
        except SynplugError:  # not to be seen now: then it has the whole of its time
            left = 1
        self._quiet_looks = 0 if left else self._quiet_looks + 1
        return self._quiet_looks >= 2

    def _terminate(self, now_s: float) -> None:
        self.generation.send(signal.SIGTERM)
        self._signalled_s = now_s

    def _kill(self, now_s: float) -> None:
        self.generation.kill()
        self._killed_s = now_s

    def _end(self, now_s: float) -> None:
        self._is_over = True
        self.took_s = now_s - self._began_s
        if self._killed_s is not None:
            self.fate = Fate.KILLED
        elif self._signalled_s is not None:
            self.fate = Fate.TERMINATED
        else:
            self.fate = Fate.ENDED
