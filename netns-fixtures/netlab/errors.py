"""What can go wrong in the lab.

::

    LabError
    ├── IsolationError   the private namespaces are missing or not permitted
    ├── BuildError       a C program of the lab did not compile
    ├── CommandError     a command failed, or did not end in time
    └── NotReadyError    something did not happen before its deadline (also a TimeoutError)
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence


class LabError(RuntimeError):
    """Base of every error that the lab raises."""


class IsolationError(LabError):
    """The process is not in the lab's private namespaces, or cannot enter them."""


class BuildError(LabError):
    """A C program of the lab did not compile."""


class CommandError(LabError):
    """A command failed: its argv, its exit status (None: out of time) and its output."""

    def __init__(self, argv: Sequence[str], status: int | None, output: str) -> None:
        self.argv = list(argv)
        self.status = status
        self.output = output
        outcome = "did not end in time" if status is None else f"exited with {status}"
        super().__init__(f"`{shlex.join(argv)}` {outcome}\n{output}".rstrip())


class NotReadyError(LabError, TimeoutError):
    """Something awaited did not happen before its deadline."""
