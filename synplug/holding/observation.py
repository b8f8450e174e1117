"""Whose SYNs passed before anybody had to wait.

The kernel's table of connections has no index by port, and a walk through it takes 10 ms and more
where there are many. It is walked before the hold, so that nobody waits for that; who began to
connect meanwhile is known from here (docs/adr/0014-look-before-the-hold.md).
"""

from __future__ import annotations

from synplug.kernel.nfqueue import Notice

#: More are not worth a look each, nor do they fit into a message of the keeper's.
LIMIT = 512


class Observation:
    """Notes flows in hexadecimal, as they are told the run, each with its SYN's device."""

    def __init__(self) -> None:
        self._found: list[tuple[str, int]] | None = []

    def note(self, notice: Notice) -> None:
        """Enter one that has passed."""
        if self._found is None or notice.flow is None or len(self._found) == LIMIT:
            self._found = None
        else:
            self._found.append((notice.flow.hex(), notice.device))

    def take(self) -> list[tuple[str, int]] | None:
        """Those that have come since the last time; None from the first one on that is missing."""
        found = self._found
        if found is not None:
            self._found = []
        return found
