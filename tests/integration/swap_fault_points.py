"""Where the faults of ``test_swap_faults.py`` strike: the steps of a swap."""

from __future__ import annotations

from synplug.handover.timeline import Step, SwapStep
from tests.integration.fault_points import Party, Point

_SWAP = "synplug.handover.swap:Swap"
_RUN_HOLD = "synplug.handover.run_hold:RunHold"

#: The method that a step begins with; the command is the new generation's.
SWAP_STEPS: dict[Step | SwapStep, tuple[str, str]] = {
    Step.CHECK: (_SWAP, "_check"),
    Step.ARM: (_RUN_HOLD, "arm"),
    Step.COMMAND: ("synplug.handover.launch:Launch", "start"),
    Step.READY: ("synplug.handover.launch:Launch", "until_ready"),
    Step.LOOK_AHEAD: ("synplug.handover.drain:Drain", "look_ahead"),
    Step.HOLD: (_RUN_HOLD, "begin"),
    Step.DRAIN: ("synplug.handover.drain:Drain", "wait"),
    SwapStep.STOP: ("synplug.handover.closing:Closing", "stop"),
    Step.RELEASE: (_RUN_HOLD, "release"),
    Step.CLEAN_UP: ("synplug.holding.handle:KeptHold", "finish"),
    SwapStep.LINGER: ("synplug.handover.generation:Retirement", "step"),
}

SWAP_POINTS: dict[str, Point] = {
    f"swap {step.value}": Point(
        name=f"swap {step.value}", process=Party.ORCHESTRATOR, owner=owner, method=method
    )
    for step, (owner, method) in SWAP_STEPS.items()
}
