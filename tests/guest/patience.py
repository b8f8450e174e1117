"""How long a restart may take in a guest, whose processor is emulated and shared."""

from __future__ import annotations

#: Of wrap: a second, its default, is not enough there for the requests that are in flight.
PATIENT = ["--max-hold", "60s", "--drain-timeout", "20s", "--quiesce", "20s"]
