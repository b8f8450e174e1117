"""What becomes of the generation that a swap replaces."""

from __future__ import annotations

import enum

from synplug.record import Record


class Fate(enum.Enum):
    """What became of an old generation."""

    SERVING = "serving"
    FINISHING = "finishing"
    ENDED = "ended"
    TERMINATED = "terminated"
    KILLED = "killed"


class OldGeneration(Record):
    """The generation that a swap has replaced, or has not.

    :param pid: its main process. :param stop: how it was told to close its listeners; empty: it
        was not.
    :param took_s: seconds from there to its end; None: it has not ended.
    """

    pid: int
    fate: Fate
    stop: str = ""
    took_s: float | None = None
