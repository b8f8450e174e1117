"""While clients wait for us, we go before a service that is busy starting."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_NICE = -10


@contextmanager
def ahead_of_others() -> Iterator[None]:
    """Let the calling thread go first, where it may: CAP_SYS_NICE; whatever it starts does not.

    A new listener is noticed when we get a processor, and the processes that have just made it
    want theirs. Who was given another priority, by nice(1) or chrt(1), keeps it. See sched(7),
    "Setting the reset-on-fork flag".
    """
    is_plain = os.sched_getscheduler(0) == os.SCHED_OTHER and _nice() == 0
    if not is_plain:
        yield
        return
    parameter = os.sched_param(0)
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, parameter)
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    try:
        yield
    finally:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, 0)
            os.sched_setscheduler(0, os.SCHED_OTHER, parameter)


def _nice() -> int:
    return os.getpriority(os.PRIO_PROCESS, 0)
