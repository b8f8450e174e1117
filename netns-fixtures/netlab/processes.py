"""Processes of a network namespace: who lives there, and how they are ended, by pid."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from netlab.errors import LabError

_TERM_S = 2.0
_KILL_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process as /proc shows it; `arguments` is empty for a zombie."""

    pid: int
    comm: str
    arguments: tuple[str, ...]


def network_namespace_inode(pid: int) -> int | None:
    """Inode of the network namespace of `pid`; None if it is gone or a zombie."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return None


def pids_in(inode: int) -> list[int]:
    """List the processes in the network namespace with this inode, without the caller."""
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
    return [pid for pid in pids if pid != os.getpid() and network_namespace_inode(pid) == inode]


def describe(pid: int) -> Process | None:
    """Read what /proc tells about `pid`; None if it is gone."""
    try:
        comm = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace")
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None
    words = tuple(os.fsdecode(word) for word in arguments.split(b"\0") if word)
    return Process(pid=pid, comm=comm.strip(), arguments=words)


def end_processes(pids: Iterable[int], is_ours: Callable[[int], bool]) -> None:
    """SIGTERM each process, SIGKILL those that stay; return when all have exited.

    A pidfd pins the identity first and `is_ours` is asked after that, so a recycled pid
    is never hit: pidfd_open(2). A zombie counts as exited.

    Raises:
        LabError: a process survived SIGKILL for 5 s.

    """
    with contextlib.ExitStack() as stack:
        fds = {fd: pid for pid in pids for fd in _pinned(pid, stack) if is_ours(pid)}
        _signal_all(fds, signal.SIGTERM)
        left = _wait_for_exit(fds, _TERM_S)
        _signal_all(left, signal.SIGKILL)
        left = _wait_for_exit(left, _KILL_S)
        if left:
            raise LabError(f"processes survived SIGKILL: {sorted(left.values())}")


def _pinned(pid: int, stack: contextlib.ExitStack) -> Iterator[int]:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    stack.callback(os.close, fd)
    yield fd


def _signal_all(fds: Iterable[int], number: signal.Signals) -> None:
    for fd in fds:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, number)


def _wait_for_exit(fds: dict[int, int], deadline_s: float) -> dict[int, int]:
    """Those of `fds` whose process still runs at the deadline."""
    left = dict(fds)
    poll = select.poll()
    for fd in left:
        poll.register(fd, select.POLLIN)
    deadline = time.monotonic() + deadline_s
    while left and (remaining_s := deadline - time.monotonic()) > 0:
        for fd, _ in poll.poll(remaining_s * 1000):
            poll.unregister(fd)
            del left[fd]
    return left
