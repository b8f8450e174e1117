"""What became of every connection of a load."""

from __future__ import annotations

import enum
import math
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from netlab.errors import LabError

_MAGIC = b"NETLAB\x02\n"
_RECORD = struct.Struct("=QQQQIHBBQ")  # struct record in loadgen.h


class Outcome(enum.Enum):
    """How a connection ended; the values are those of loadgen.h."""

    OK = 0
    REFUSED = 1
    RESET = 2
    EARLY_CLOSED = 3
    TIMED_OUT = 4
    ERROR = 5


_OUTCOMES = tuple(Outcome)


class Sample(NamedTuple):
    """One connection. Times ending in `_at_ns` are CLOCK_MONOTONIC, the rest durations."""

    scheduled_at_ns: int
    opened_at_ns: int
    connect_ns: int
    """From connect(2) to the established connection; 0: never established."""
    total_ns: int
    """From connect(2) to the outcome."""
    errno: int
    target: int
    outcome: Outcome
    retransmits: int
    """tcpi_total_retrans (tcp(7)) when the handshake was over: SYNs sent again."""
    answered_ns: int = 0
    """From connect(2) to the sending of the SYN that was answered: about 0 if it was the first."""


@dataclass(frozen=True, kw_only=True, repr=False)
class LoadResult:
    """What became of the connections, by outcome, and how long they took to connect."""

    samples: tuple[Sample, ...]

    def __repr__(self) -> str:
        return f"<LoadResult {self.summary()}>"

    @property
    def attempted(self) -> int:
        """Connections that were opened."""
        return len(self.samples)

    @property
    def ok(self) -> int:
        """Complete answers."""
        return self._count(Outcome.OK)

    @property
    def refused(self) -> int:
        """ECONNREFUSED on connecting."""
        return self._count(Outcome.REFUSED)

    @property
    def reset(self) -> int:
        """ECONNRESET or EPIPE, at any point."""
        return self._count(Outcome.RESET)

    @property
    def early_closed(self) -> int:
        """EOF before the complete answer."""
        return self._count(Outcome.EARLY_CLOSED)

    @property
    def timed_out(self) -> int:
        """No complete answer before the client's timeout (or the kernel's: ETIMEDOUT)."""
        return self._count(Outcome.TIMED_OUT)

    @property
    def error(self) -> int:
        """Anything else, the client's own limits (EMFILE, EADDRNOTAVAIL) included."""
        return self._count(Outcome.ERROR)

    @property
    def errors_by_errno(self) -> dict[int, int]:
        """The errors, counted by errno; EPROTO is a wrong answer."""
        return dict(Counter(s.errno for s in self.samples if s.outcome is Outcome.ERROR))

    @property
    def failures(self) -> int:
        """All that are not ok."""
        return self.attempted - self.ok

    @property
    def failed(self) -> tuple[Sample, ...]:
        """The connections that are not ok."""
        return tuple(s for s in self.samples if s.outcome is not Outcome.OK)

    @property
    def retransmitted(self) -> int:
        """Connections whose SYN was sent more than once."""
        return sum(s.retransmits > 0 for s in self.samples)

    @property
    def connect_p50_ms(self) -> float:
        """Median time to connect."""
        return self.connect_percentile_ms(50)

    @property
    def connect_p99_ms(self) -> float:
        """99th percentile of the time to connect."""
        return self.connect_percentile_ms(99)

    @property
    def connect_max_ms(self) -> float:
        """Longest time to connect."""
        return self.connect_percentile_ms(100)

    @property
    def late_p99_ms(self) -> float:
        """How late the client itself was, 99th percentile: connect(2) after schedule."""
        return _percentile_ms([s.opened_at_ns - s.scheduled_at_ns for s in self.samples], 99)

    def connect_percentile_ms(self, percent: float) -> float:
        """Nearest rank over the connections that were established; NaN if none was."""
        return _percentile_ms([s.connect_ns for s in self.samples if s.connect_ns], percent)

    def between(self, start_ns: int, end_ns: int) -> LoadResult:
        """Return the connections due in [start, end) on CLOCK_MONOTONIC (time.monotonic_ns)."""
        return LoadResult(
            samples=tuple(s for s in self.samples if start_ns <= s.scheduled_at_ns < end_ns)
        )

    def summary(self) -> str:
        """One line for people."""
        counts = ", ".join(
            f"{count} {name}"
            for name in ("ok", "refused", "reset", "early_closed", "timed_out", "error")
            if (count := getattr(self, name))
        )
        return (
            f"{self.attempted} attempted: {counts or 'none'}; connect p50 "
            f"{self.connect_p50_ms:.2f} p99 {self.connect_p99_ms:.2f} max "
            f"{self.connect_max_ms:.2f} ms; {self.retransmitted} retransmitted"
        )

    def _count(self, outcome: Outcome) -> int:
        return sum(s.outcome is outcome for s in self.samples)


def _percentile_ms(values_ns: Sequence[int], percent: float) -> float:
    if not values_ns:
        return math.nan
    rank = max(1, math.ceil(len(values_ns) * percent / 100))
    return sorted(values_ns)[rank - 1] / 1e6


def read_records(path: Path) -> LoadResult:
    """Read the file that loadgen writes.

    Raises:
        LabError: it is none.

    """
    content = path.read_bytes()
    if not content.startswith(_MAGIC):
        raise LabError(f"{path} is no record file of this loadgen")
    records = _RECORD.iter_unpack(content[len(_MAGIC) :])
    return LoadResult(samples=tuple(_sample(*record) for record in records))


def _sample(*fields: int) -> Sample:
    scheduled, opened, connect, total, errno, target, outcome, *handshake = fields
    return Sample(scheduled, opened, connect, total, errno, target, _OUTCOMES[outcome], *handshake)
