"""A moment in which no queue of somebody else holds a packet.

Removing a base chain drops what any queue of the network namespace holds
(``net/netfilter/core.c``, nf_queue_nf_hook_drop). A program that lets each packet pass has one for
some 100 µs, and one that comes between a look and the removal is lost. So the removal follows at
once when the queue has just run empty. Measured beside 2,000 packets a second, lost in 100
removals: at any moment 17 to 30, when the queue was seen empty 10 to 50, when it had just run empty
1, with a slower program 8.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager

from synplug.errors import KernelError
from synplug.kernel.nfqueue import QueueLengths

#: A queue that has been empty for so long has no traffic to speak of.
_SILENT_S = 0.005
#: One that holds for longer is waited for by whoever asks, not here.
_LIMIT_S = 0.02


@contextmanager
def gap_of_others(own: Collection[int]) -> Iterator[Callable[[], None]]:
    """What waits until no other queue than *own* holds anything, at best until one has run empty.

    Without other queues, and where it cannot be seen, it does not wait.
    """
    try:
        lengths = QueueLengths()
    except KernelError:  # no reason to leave behind what is to be removed
        yield lambda: None
        return

    def wait() -> None:
        if any(number not in own for number, _ in lengths.now()):
            _wait(lengths, own, busy=True, limit_s=_SILENT_S)
            _wait(lengths, own, busy=False, limit_s=_LIMIT_S)

    with closing(lengths):
        yield wait


def _wait(lengths: QueueLengths, own: Collection[int], *, busy: bool, limit_s: float) -> None:
    """Look again and again until another queue holds something, or none does."""
    end_s = time.monotonic() + limit_s
    while time.monotonic() < end_s:
        if busy is any(waiting and number not in own for number, waiting in lengths.now()):
            return
