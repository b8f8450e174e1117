"""A timer of the kernel's that ends this process, whatever state it is in.

timer_create(2) may deliver SIGKILL, and that ends a process that is stopped, spins or waits
for a lock. It needs no privilege, and no second process that could be stopped as well. It is not
inherited by fork(2), and gone with the process.
"""

from __future__ import annotations

import signal
import time

from synplug.errors import KernelError


class Deadman:
    """The timer; not running until :meth:`set`.

    :raises KernelError: the kernel refused (RLIMIT_SIGPENDING, or no CONFIG_POSIX_TIMERS).
    """

    def __init__(self) -> None:
        import ctypes

        class SigEvent(ctypes.Structure):
            """struct sigevent, and some more (``include/uapi/asm-generic/siginfo.h``)."""

            _fields_ = (
                ("value", ctypes.c_void_p),
                ("signal", ctypes.c_int),
                ("notify", ctypes.c_int),  # 0 is SIGEV_SIGNAL
                ("reserved", ctypes.c_char * 52),
            )

        self._ctypes = ctypes
        self._specification = ctypes.c_long * 4  # struct itimerspec: interval, then value
        self._timer = ctypes.c_void_p()
        event = SigEvent(signal=signal.SIGKILL)
        # Before glibc 2.34 these were in a library of their own.
        self._calls = ctypes.CDLL(None, use_errno=True)
        if not hasattr(self._calls, "timer_create"):
            self._calls = ctypes.CDLL("librt.so.1", use_errno=True)
        self._check(
            self._calls.timer_create(
                time.CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(self._timer)
            )
        )

    def set(self, delay_s: float) -> None:
        """SIGKILL for this process in so many seconds, instead of any earlier setting."""
        self._settime(max(delay_s, 1e-6))

    def stop(self) -> None:
        """No SIGKILL."""
        self._settime(0.0)

    def _settime(self, delay_s: float) -> None:
        seconds, rest_s = divmod(delay_s, 1)
        value = self._specification(0, 0, int(seconds), int(rest_s * 1e9))
        self._check(self._calls.timer_settime(self._timer, 0, self._ctypes.byref(value), None))

    def _check(self, result: int) -> None:
        if result:
            code = self._ctypes.get_errno()
            raise KernelError("set a timer that ends the keeper", code)
