"""On a terminal: a line that lives while connections wait, and the phases drawn at the end."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from types import TracebackType

from synplug.cli.render import milliseconds
from synplug.errors import SynplugError
from synplug.handover.timeline import Step
from synplug.holding.ledger import entries
from synplug.kernel.nfqueue import queue_states
from synplug.model import HoldSpec, Report

_RHYTHM_S = 0.1
_BAR = 40
_WORDS = {
    Step.HOLD.value: "holding",
    Step.DRAIN.value: "waiting for the old listener's queues",
    Step.READY.value: "restarting",
    Step.RELEASE.value: "letting go",
}


class LiveLine:
    """The line. It is drawn by a thread, which begins when connections wait: no fork is to come.

    The cursor is left at the line's start, so that what the command prints takes its place.
    """

    def __init__(self, spec: HoldSpec) -> None:
        self._spec = spec
        self._phase = ""
        self._held_since_s = 0.0
        self._queues: list[int] = []
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    def observe(self, step: str) -> None:
        """A step begins."""
        self._phase = step
        if step == Step.DRAIN.value and self._thread is None:
            self._held_since_s = time.monotonic()
            self._queues = _queues_of(self._spec.run_id)
            self._thread = threading.Thread(target=self._draw, daemon=True)
            self._thread.start()

    def __enter__(self) -> LiveLine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_over.set()
        if self._thread is not None:
            self._thread.join()
            _write("\r\x1b[K")

    def _draw(self) -> None:
        while not self._is_over.is_set():
            _write(f"\r\x1b[K{self.text(time.monotonic())}\r")
            self._is_over.wait(_RHYTHM_S)

    def text(self, now_s: float) -> str:
        """The line, at this time. From the release on there is no deadline, only the command."""
        if self._phase == Step.CLEAN_UP.value:
            return "synplug: released; waiting for the command to end"
        left_s = max(0.0, self._held_since_s + self._spec.max_hold_s - now_s)
        words = _WORDS.get(self._phase, self._phase)
        waiting = _waiting(self._queues)
        held = "" if waiting is None else f"{waiting} wait, "
        return f"synplug: {words}; {held}{left_s:.1f} s to the deadline"


def _queues_of(run_id: str) -> list[int]:
    """The netfilter queues of a run, as the ledger has them; none with the plug."""
    with suppress(SynplugError, OSError, ValueError):
        for entry in entries():
            if entry.run_id == run_id:
                return [int(word) for word in entry.traces.get("queues", "").split()]
    return []


def _waiting(queues: list[int]) -> int | None:
    """How many wait in these queues; None: nobody can tell."""
    if not queues:
        return None
    with suppress(SynplugError, OSError, ValueError):
        states = queue_states()
        return sum(states[number].waiting for number in queues if number in states)
    return None


def _write(text: str) -> None:
    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            sys.stderr.write(text)
            sys.stderr.flush()


def timeline(report: Report) -> str:
    """The phases as bars, one below the other."""
    end_s = max((phase.start_s + phase.duration_s for phase in report.phases), default=0.0)
    if not end_s:
        return ""
    lines = []
    for phase in report.phases:
        begins = round(_BAR * phase.start_s / end_s)
        ends = max(begins + 1, round(_BAR * (phase.start_s + phase.duration_s) / end_s))
        bar = " " * begins + "█" * (ends - begins)
        lines.append(f"  {phase.name:<10}{bar:<{_BAR + 1}} {milliseconds(phase.duration_s)}")
    return "\n".join(lines)
