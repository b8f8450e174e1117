"""Signals for a supervisor, and what it does while a swap in it waits for one."""

from __future__ import annotations

import signal
from collections.abc import Callable

from synplug.handover.drain import POLL_S
from synplug.handover.tools import HasDescriptor, Signals

#: Of the signals that come, those that end nothing and only go on to the generations.
PASSED_ON = (signal.SIGUSR1,)
#: Those that end everything, besides SIGINT and SIGTERM.
ENDING = (signal.SIGQUIT,)


class SupervisorSignals:
    """Signals as a swap sees them: SIGHUP is kept for after it, and waiting is not idle.

    :param pass_on: gives one to the generations, each at once.
    """

    def __init__(
        self,
        signals: Signals,
        meanwhile: Callable[[bool], None],
        pass_on: Callable[[int], None],
    ) -> None:
        self._signals = signals
        self._meanwhile = meanwhile
        self._pass_on = pass_on
        self.reloads_heard = 0
        self.ending: int | None = None

    def take(self) -> list[int]:
        """Those that end us."""
        ends = []
        for number in self._signals.take():
            if number == signal.SIGHUP:
                self.reloads_heard += 1
            elif number in PASSED_ON:
                self._pass_on(number)
            else:
                self.ending = number
                self._pass_on(number)  # now: a swap may have to end first, and it takes its time
                ends.append(number)
        return ends

    def pause(self, timeout_s: float, until: HasDescriptor | None = None) -> None:
        """Wait; the duties that cost time wait where every millisecond counts."""
        self._meanwhile(timeout_s > POLL_S)
        self._signals.pause(timeout_s, until)
