"""What happened when: the phases of a run."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from synplug.steps import Phase


class Step(enum.Enum):
    """Every step between start and finish, in their order; the values are the report's names.

    A step that is added here needs a case in the fault matrix (tests/integration/fault_points.py).
    """

    CHECK = "check"
    ARM = "arm"
    LOOK_AHEAD = "look-ahead"
    HOLD = "hold"
    DRAIN = "drain"
    COMMAND = "command"
    READY = "ready"
    RELEASE = "release"
    CLEAN_UP = "clean-up"


class SwapStep(enum.Enum):
    """The steps that only a swap has, beside the others."""

    STOP = "stop"
    LINGER = "linger"


class Timeline:
    """Collects phases; they may overlap, and the order is that of their starts.

    :param observe: is told of each step as it begins.
    """

    def __init__(
        self, clock: Callable[[], float], observe: Callable[[str], None] | None = None
    ) -> None:
        self._clock = clock
        self._observe = observe
        self._start_s = clock()
        self._phases: list[Phase] = []

    @contextmanager
    def phase(self, step: Step | SwapStep) -> Iterator[None]:
        """Time what happens inside, also when it raises."""
        self.begins(step)
        from_s = self._clock()
        try:
            yield
        finally:
            self.note(step, from_s, self._clock())

    def begins(self, step: Step | SwapStep) -> None:
        """Tell who looks on."""
        if self._observe is not None:
            self._observe(step.value)

    def note(self, step: Step | SwapStep, from_s: float, to_s: float) -> None:
        """Enter a phase by its clock times."""
        self._phases.append(
            Phase(name=step.value, start_s=from_s - self._start_s, duration_s=to_s - from_s)
        )

    def phases(self) -> tuple[Phase, ...]:
        """All of them."""
        return tuple(sorted(self._phases, key=lambda phase: phase.start_s))
