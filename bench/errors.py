"""What can go wrong in a benchmark."""

from __future__ import annotations

from netlab.errors import LabError


class BenchError(LabError):
    """A contender cannot run, or what it did cannot be measured: there are no figures then."""
