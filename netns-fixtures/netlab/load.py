"""Open-loop load from a namespace, and what became of every connection."""

from __future__ import annotations

import enum
import math
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Self

from netlab.compiled import compiled
from netlab.errors import CommandError, LabError, NotReadyError
from netlab.program import Endpoint, tail, wait_until
from netlab.topology import Namespace

Protocol = Literal["http", "redis"]

_MAGIC = b"NETLAB\x01\n"
_RECORD = struct.Struct("=QQQQIHBB")  # struct record in loadgen.h


class Outcome(enum.Enum):
    """How a connection ended; the values are those of loadgen.h."""

    OK = 0
    REFUSED = 1
    RESET = 2
    EARLY_CLOSED = 3
    TIMED_OUT = 4
    ERROR = 5


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


@dataclass(frozen=True, kw_only=True)
class LoadResult:
    """What became of the connections, by outcome, and how long they took to connect."""

    samples: tuple[Sample, ...]

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
        """The connections due in [start, end) on CLOCK_MONOTONIC (time.monotonic_ns)."""
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


class Load:
    """New connections at `rate_per_s`, round robin over `targets`, while the context is open.

    `sources` are client addresses of either family, used in turn with targets of theirs.
    Entering waits for the first complete answer, unless `expect_ready` is false (for
    targets that never answer). `duration_s` ends the load by itself.
    """

    def __init__(
        self,
        namespace: Namespace,
        targets: Sequence[Endpoint | str],
        rate_per_s: float,
        protocol: Protocol = "http",
        timeout_s: float = 5.0,
        sources: Sequence[str] = (),
        *,
        duration_s: float | None = None,
        expect_ready: bool = True,
        ready_deadline_s: float = 10.0,
    ) -> None:
        self.namespace = namespace
        self.targets = [_endpoint(target) for target in targets]
        self.timeout_s = timeout_s
        self._options = ["--rate", f"{rate_per_s:g}", "--protocol", protocol]
        self._options += ["--timeout-ms", str(round(timeout_s * 1000))]
        if duration_s is not None:
            self._options += ["--duration-ms", str(round(duration_s * 1000))]
        self._options += [word for source in sources for word in ("--source", source)]
        for address, port in self.targets:
            self._options += ["--target", f"{address},{port}"]
        self._expect_ready = expect_ready
        self._ready_deadline_s = ready_deadline_s
        self._duration_s = duration_s or 0.0
        self._child: subprocess.Popen[str] | None = None
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._result: LoadResult | None = None

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="netlab-load-")
        argv = [str(compiled("loadgen")), *self._options, "--output", str(self._file("records"))]
        with (
            self._file("output").open("w", encoding="utf-8") as output,
            self._file("errors").open("w", encoding="utf-8") as errors,
        ):
            self._child = self.namespace.popen(argv, stdout=output, stderr=errors)
        try:
            if self._expect_ready:
                self._wait_for_first_answer(self._child)
        except BaseException:
            self._child.kill()
            self._clean_up()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.stop()
        elif self._child is not None:
            self._child.kill()
        self._clean_up()

    @property
    def result(self) -> LoadResult:
        """What became of all connections; only after `stop` or the end of the context."""
        if self._result is None:
            raise LabError("the load still runs: call stop() first")
        return self._result

    def stop(self) -> LoadResult:
        """Open no more, wait for the open connections (`timeout_s` at most), collect."""
        if self._result is None:
            self._result = self._finish(lambda child: child.terminate(), self.timeout_s + 10)
        return self._result

    def wait(self) -> LoadResult:
        """Wait for the end of `duration_s` and of the open connections, collect."""
        if self._result is None:
            deadline_s = self._duration_s + self.timeout_s + 10
            self._result = self._finish(lambda child: None, deadline_s)
        return self._result

    def _finish(
        self, begin: Callable[[subprocess.Popen[str]], None], deadline_s: float
    ) -> LoadResult:
        if self._child is None:
            raise LabError("the load was not started")
        begin(self._child)
        try:
            status: int | None = self._child.wait(deadline_s)
        except subprocess.TimeoutExpired:
            status = None
            self._child.kill()
        if status != 0:
            raise CommandError(["loadgen", *self._options], status, tail(self._file("errors")))
        return _read(self._file("records"))

    def _wait_for_first_answer(self, child: subprocess.Popen[str]) -> None:
        def answered() -> bool:
            if child.poll() not in (None, 0):
                raise CommandError(
                    ["loadgen", *self._options], child.returncode, tail(self._file("errors"))
                )
            return "ready" in tail(self._file("output"))

        try:
            wait_until(answered, self._ready_deadline_s, "a first answer to the load client")
        except NotReadyError as exc:
            raise NotReadyError(f"{exc} from {self.targets}") from exc

    def _file(self, name: str) -> Path:
        if self._directory is None:
            raise LabError("the load was not started")
        return Path(self._directory.name, name)

    def _clean_up(self) -> None:
        if self._child is not None:
            self._child.wait()
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None


def _endpoint(target: Endpoint | str) -> Endpoint:
    """`ADDR:PORT` or `[ADDR]:PORT`, or already a pair."""
    if isinstance(target, str):
        address, _, port = target.rpartition(":")
        return address.strip("[]"), int(port)
    return target


def _read(path: Path) -> LoadResult:
    content = path.read_bytes()
    if not content.startswith(_MAGIC):
        raise LabError(f"{path} is no record file of this loadgen")
    outcomes = tuple(Outcome)
    return LoadResult(
        samples=tuple(
            Sample(*fields[:6], outcomes[fields[6]], fields[7])
            for fields in _RECORD.iter_unpack(content[len(_MAGIC) :])
        )
    )
