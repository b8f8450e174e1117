"""What the live line says, step by step."""

from __future__ import annotations

import time

from synplug.cli.live import LiveLine
from synplug.handover.timeline import Step
from synplug.model import Endpoint, HoldSpec


def test_after_the_release_only_the_command_is_waited_for() -> None:
    line = LiveLine(HoldSpec(endpoints=(Endpoint(port=80),), run_id="0", max_hold_s=10))
    line.observe(Step.READY.value)
    assert "to the deadline" in line.text(time.monotonic())
    line.observe(Step.CLEAN_UP.value)
    said = line.text(time.monotonic())
    assert said == "synplug: released; waiting for the command to end"
