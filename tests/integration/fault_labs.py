"""The labs in which cases of the fault matrix run, several at the same time."""

from __future__ import annotations

import itertools
from pathlib import Path
from queue import SimpleQueue

from tests.integration.fault_cases import Case
from tests.integration.fault_machine import Machine
from tests.integration.fault_run import FaultLab, Observation


class Labs:
    """Labs that cases take turns in; one that is not as it should be is replaced."""

    def __init__(self, folder: Path, count: int, machine: Machine) -> None:
        self._folder = folder
        self._count = count
        self._machine = machine
        self._numbers = itertools.count(1)
        self._idle: SimpleQueue[FaultLab | None] = SimpleQueue()
        for _ in range(self._count):
            self._idle.put(None)

    def observe(self, case: Case) -> Observation:
        """Run one case in a lab that is free."""
        lab = self._idle.get()
        try:
            if lab is None:
                folder = self._folder / f"lab{next(self._numbers)}"
                lab = FaultLab(folder, self._machine).__enter__()
            seen = lab.observe(case)
        except BaseException:
            self._replace(lab)
            raise
        if seen.left_after_recover:
            self._replace(lab)
        else:
            self._idle.put(lab)
        return seen

    def _replace(self, lab: FaultLab | None) -> None:
        self._idle.put(None)
        if lab is not None:
            lab.__exit__()

    def close(self) -> None:
        """End them, when no case runs."""
        for _ in range(self._count):
            lab = self._idle.get()
            if lab is not None:
                lab.__exit__()
