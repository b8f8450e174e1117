"""How long a restart may take in a guest, whose processor is emulated and shared."""

from __future__ import annotations

#: Of wrap, whose defaults are for requests that take milliseconds: a second for each wait.
PATIENT = ["--max-hold", "60s", "--drain-timeout", "20s", "--quiesce", "20s"]
