"""Giving up capabilities(7) that a process does not need.

Source: ``include/uapi/linux/capability.h``; capset(2), version 3: two 32-bit words a set.
"""

from __future__ import annotations

from collections.abc import Iterable

from synplug.errors import KernelError

DAC_OVERRIDE, DAC_READ_SEARCH, NET_ADMIN, NET_RAW, SYS_MODULE = 1, 2, 12, 13, 16
_VERSION_3 = 0x20080522
_PR_SET_NO_NEW_PRIVS = 38


def keep_only(capabilities: Iterable[int]) -> None:
    """Give up all others, for the calling process and for good; those it lacks it still lacks.

    It cannot gain any by execve(2) either (prctl(2), PR_SET_NO_NEW_PRIVS). Call it in a process
    of one thread: capabilities are a thread's.

    :raises KernelError: the kernel refused.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    words = ctypes.c_uint32 * 2
    header = words(_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; low, then high
    _check(libc.capget(header, data), ctypes.get_errno())
    kept = sum(1 << capability for capability in capabilities)
    for word in (0, 1):
        mask = kept >> 32 * word & 0xFFFFFFFF
        permitted = data[3 * word + 1] & mask
        data[3 * word : 3 * word + 3] = [data[3 * word] & mask, permitted, 0]
    _check(libc.capset(header, data), ctypes.get_errno())
    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), ctypes.get_errno())


def _check(result: int, code: int) -> None:
    if result:
        raise KernelError("give up capabilities", code)
