"""What the steps of a run came to: how long it took, what was left, how it ended."""

from __future__ import annotations

from synplug.record import Record


class Phase(Record):
    """A part of a run: seconds from the run's start, and how long it took."""

    name: str
    start_s: float
    duration_s: float


class DrainResult(Record):
    """What was left in the old listeners' queues, and on their connections, when waiting ended.

    :param empty: nothing was left in accept queues and no request socket remained.
    :param left: connections that were left there.
    :param quiet: no established connection was busy (True also where that was not asked for).
    :param busy: connections that were.
    """

    empty: bool = True
    left: int = 0
    quiet: bool = True
    busy: int = 0


class CommandResult(Record):
    """The restart command: its argv, and how it ended.

    :param status: as a shell would have it: the exit code, or 128 + the signal's number;
        None when it was not run, or is still running.
    """

    argv: tuple[str, ...]
    ran: bool = False
    pid: int | None = None
    status: int | None = None
