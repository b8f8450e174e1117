"""Becoming the parent of what our children leave behind.

Source: prctl(2), PR_SET_CHILD_SUBREAPER; ``kernel/exit.c``, find_new_reaper. A daemon that forks
and leaves its parent to end would be init's child, and nobody could tell whose it was.
"""

from __future__ import annotations

from synplug.errors import KernelError

_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """From now on orphaned descendants become children of this process; init gets them after it.

    :raises KernelError: the kernel refused.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise KernelError("become the parent of orphans", ctypes.get_errno())
