"""Where the faults of ``test_swap_faults.py`` strike: the steps of a swap, and their parts."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace

from synplug.handover.closing import Closing
from synplug.handover.generation import Generation, Lineage
from synplug.handover.launch import Launch
from synplug.handover.migrate import OptionalMigration
from synplug.handover.pidfile import Pidfile
from synplug.handover.retirement import Retirement
from synplug.handover.run_hold import RunHold
from synplug.handover.swap import Swap
from synplug.handover.timeline import Step, SwapStep
from synplug.holding.locks import RunLocks
from synplug.kernel.sock_diag import SocketDiagnostics
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
    SwapStep.LINGER: ("synplug.handover.retirement:Retirement", "step"),
}

SWAP_POINTS: dict[str, Point] = {
    f"swap {step.value}": Point(
        name=f"swap {step.value}", process=Party.ORCHESTRATOR, owner=owner, method=method
    )
    for step, (owner, method) in SWAP_STEPS.items()
}

#: What a swap works with, by the name under which it does; what it makes has a step in its making.
_PARTS: dict[str, type] = {
    "_hold": RunHold,
    "_launch": Launch,
    "_closing": Closing,
    "_migration": OptionalMigration,
    "_pidfile": Pidfile,
    "_lineage": Lineage,
    "_old": Generation,
    "new": Generation,
    "_tools.locks": RunLocks,
    "_tools.sockets": SocketDiagnostics,
    "retirement": Retirement,
}
#: What asks nothing of the system.
_VALUES = {"_watch", "_warnings", "signals", "timeline", "clock"}
_CALLBACK = re.compile(r"callback\((self\.[\w.]+)\)")
_CALL = re.compile(r"self\.((?:_tools\.)?\w+)\.(\w+)\(")
#: Of its tools, what is no part but a function.
_FUNCTIONS = {"recover": ("synplug.handover.assembly:", "_recover")}


def _calls() -> set[tuple[str, str]]:
    """What a swap calls of its parts, or has called at its end: the names of part and method."""
    return set(_CALL.findall(_CALLBACK.sub(r"\1(", inspect.getsource(Swap))))


def unknown_parts() -> set[str]:
    """Parts whose methods nobody strikes, and functions."""
    names = {part if part != "_tools" else method for part, method in _calls()}
    return names - set(_PARTS) - _VALUES - set(_FUNCTIONS)


def _part_points() -> dict[str, Point]:
    """Besides the steps: all that a swap calls of its parts, so that nothing new is left out."""
    places = {
        (f"{cls.__module__}:{cls.__name__}", method)
        for part, method in _calls()
        if (cls := _PARTS.get(part)) is not None
    }
    places |= {(f"{cls.__module__}:{cls.__name__}", "__init__") for cls in (Pidfile, Closing)}
    places |= set(_FUNCTIONS.values())
    return {
        (name := f"swap {(owner.partition(':')[2] or 'Tools')}.{method}"): Point(
            name=name, process=Party.ORCHESTRATOR, owner=owner, method=method
        )
        for owner, method in sorted(places - set(SWAP_STEPS.values()))
    }


SWAP_PART_POINTS = _part_points()
#: The last look at the new listeners, and that at whom they belong to.
for _point in (
    replace(SWAP_PART_POINTS["swap SocketDiagnostics.listeners"], after="swap drain"),
    replace(SWAP_PART_POINTS["swap Generation.listeners"], after="swap ready", nth=1),
):
    SWAP_PART_POINTS[f"{_point.name} {_point.after}"] = replace(
        _point, name=f"{_point.name} {_point.after}"
    )
