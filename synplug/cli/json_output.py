"""The JSON report's way out."""

from __future__ import annotations

import os
import stat

from synplug.errors import UsageError
from synplug.model import Report


class JsonOutput:
    """Where the JSON report goes: opened before anything is held, so that it can fail early.

    :param name: a path, or ``-`` for standard output; None: nowhere.
    :param again: more than one report comes, from somebody who must wait for no reader.
    """

    def __init__(self, name: str | None, *, again: bool = False) -> None:
        self._again = again
        #: What the command gets as its standard output instead of ours; None: ours.
        self.diverted = 2 if name == "-" else None
        self._descriptor: int | None = None
        if name == "-":
            self._descriptor = os.dup(1)
        elif name is not None:
            # A FIFO that nobody reads is an error now, rather than a wait without end.
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
            try:
                self._descriptor = os.open(name, flags, 0o644)
            except OSError as error:
                raise UsageError(f"--json {name}: {error.strerror}") from error
            os.set_blocking(self._descriptor, not again)

    def write(self, report: Report) -> str:
        """Write it, in the place of what a regular file had; why it could not, or ``""``."""
        if self._descriptor is None:
            return ""
        from synplug.cli.report_json import report_json

        try:
            regular = stat.S_ISREG(os.fstat(self._descriptor).st_mode)
            if regular and self.diverted is None:
                os.ftruncate(self._descriptor, 0)
                os.lseek(self._descriptor, 0, os.SEEK_SET)
            with os.fdopen(self._descriptor, "w", closefd=not self._again) as file:
                file.write(report_json(report))
        except OSError as error:
            return error.strerror or str(error)
        return ""
