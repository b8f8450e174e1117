"""Telling the service manager: sd_notify(3), the datagrams of systemd's notification protocol.

Without NOTIFY_SOCKET nothing is sent. A manager that does not listen is no reason to stop serving:
one that is busy is waited for a second, and what cannot be delivered then is dropped.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from contextlib import suppress

#: A full queue of datagrams blocks (unix(7); net.unix.max_dgram_qlen is 10 at first).
_PATIENCE_S = 1.0
#: What is the supervisor's alone: a generation that spoke to the manager would be taken for it.
OWN_VARIABLES = frozenset({"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"})


class Notifier:
    """The supervisor's line to its manager.

    :param environment: NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID are read from it.
    :param clock: CLOCK_MONOTONIC in seconds. :param own_pid: ours.
    """

    def __init__(
        self, environment: Mapping[str, str], *, clock: Callable[[], float], own_pid: int
    ) -> None:
        self._clock = clock
        path = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        microseconds = environment.get("WATCHDOG_USEC", "")
        is_ours = environment.get("WATCHDOG_PID", str(own_pid)) == str(own_pid)
        #: Seconds between two signs of life, half of what is asked for (sd_watchdog_enabled(3)).
        self.interval_s: float | None = None
        if is_ours and microseconds.isdigit() and int(microseconds):
            self.interval_s = int(microseconds) / 2e6
        self._alive_s = float("-inf")

    def ready(self, status: str) -> None:
        """Started, or a reload has ended."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self, status: str) -> None:
        """A reload begins: Type=notify-reload wants to know when that was."""
        at_us = int(self._clock() * 1e6)
        self._send("RELOADING=1", f"MONOTONIC_USEC={at_us}", f"STATUS={status}")

    def stopping(self, status: str) -> None:
        """The end begins."""
        self._send("STOPPING=1", f"STATUS={status}")

    def alive(self) -> None:
        """A sign of life, if it is time for one."""
        now_s = self._clock()
        if self.interval_s is not None and now_s - self._alive_s >= self.interval_s:
            self._alive_s = now_s
            self._send("WATCHDOG=1", patience_s=0.0)

    def _send(self, *fields: str, patience_s: float = _PATIENCE_S) -> None:
        if not self._address:
            return
        data = "\n".join(field.replace("\n", " ") for field in fields)
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.settimeout(patience_s)
            end.sendto(data.encode(errors="backslashreplace"), self._address)
