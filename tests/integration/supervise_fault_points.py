"""Where the faults of ``test_supervise_faults.py`` and ``test_release_faults.py`` strike."""

from __future__ import annotations

from dataclasses import replace

from synplug.handover.timeline import Step
from tests.integration.fault_points import Party, Point
from tests.integration.swap_fault_points import SWAP_POINTS

_SUPERVISOR = "synplug.handover.supervise:_Supervisor"
_RELEASE = "synplug.handover.detached:_Release"
_LINK = "synplug.holding.link:KeeperLink"

#: What a supervisor does at a reload besides the swap, by what of :class:`Surroundings` it uses.
SUPERVISE_STEPS = {
    "publish": ("synplug.holding.supervisors:SupervisorFile", "write"),
    "notifier": ("synplug.handover.notify:Notifier", "reloading"),
    "spec": ("synplug.cli.supervise:", "spec_of"),
    "tools": ("synplug.cli.supervise:", "real_tools"),
    "tell": ("synplug.cli.supervise:_Outlets", "tell"),
    "forget": (_SUPERVISOR, "_forget"),
}
#: Those that have been passed for the first generation: before it, and when it serves.
_PASSED_BEFORE = {"publish": 2, "tools": 1, Step.COMMAND.value: 1, Step.READY.value: 1}

SUPERVISE_POINTS: dict[str, Point] = {
    f"supervise {name}": Point(
        name=f"supervise {name}",
        process=Party.ORCHESTRATOR,
        owner=owner,
        method=method,
        nth=_PASSED_BEFORE.get(name, 0) + 1,
        after="supervise notifier" if name == "forget" else "",
    )
    for name, (owner, method) in SUPERVISE_STEPS.items()
} | {
    (name := f"supervise {point.name}"): replace(
        point, name=name, nth=_PASSED_BEFORE.get(point.name.removeprefix("swap "), 0) + 1
    )
    for point in SWAP_POINTS.values()
}

#: The methods of a release, in their order, and what they ask the keeper for.
RELEASE_STEPS = {
    "attach": ("synplug.holding.attached:AttachedHold", "__init__"),
    "wait": (_RELEASE, "wait"),
    "let_go": (_RELEASE, "let_go"),
    "begin_release": (_LINK, "begin_release"),
    "ended": (_LINK, "ended"),
    "finish": (_LINK, "finish"),
    "close": (_RELEASE, "close"),
    "report": (_RELEASE, "report"),
}
RELEASE_POINTS: dict[str, Point] = {
    f"release {name}": Point(
        name=f"release {name}", process=Party.ORCHESTRATOR, owner=owner, method=method
    )
    for name, (owner, method) in RELEASE_STEPS.items()
}
