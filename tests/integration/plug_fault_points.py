"""Where the faults of ``tests/guest/test_plug_faults.py`` strike: the steps of a run with a plug.

Besides those of every backend, each of the plug's own calls of the kernel, in each part of a hold's
life: all of them go through the public methods of two classes.
"""

from __future__ import annotations

from dataclasses import replace

from synplug.kernel.changes import Changes
from synplug.kernel.traffic_control import TrafficControl
from tests.integration.fault_points import POINTS, Party, Point, methods_of

#: The parts of a hold's life, by the method that they begin with.
PARTS = ("Backend.arm", "Backend.hold", "Backend.open", "Backend.remove")

#: The first request of the kernel there is refused.
IN_PARTS = {
    (name := f"{cls.__name__}.{method} after {part}"): Point(
        name=name,
        process=Party.KEEPER,
        owner=f"{cls.__module__}:{cls.__name__}",
        method=method,
        after=part,
    )
    for cls in (TrafficControl, Changes)
    for method in methods_of(cls)
    for part in PARTS
}
#: The kernel has done it, and what it answers cannot be read.
_ANSWERS = {
    (name := f"answer {point.name}"): replace(
        point, name=name, refused=frozenset({"recv", "recvfrom", "recv_into"})
    )
    for point in IN_PARTS.values()
}
PLUG_POINTS: dict[str, Point] = POINTS | IN_PARTS | _ANSWERS
