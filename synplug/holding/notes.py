"""What the operator is to know of a plug's filters, each once."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from synplug.holding import remarks
from synplug.holding.bypass import hook_remarks, tcx_remarks
from synplug.holding.ownership import HELD_AT
from synplug.kernel.traffic_control import Device
from synplug.model import Endpoint


class Notes:
    """Of others' filters and programs, and of what is not held.

    *objections*: what of others' keeps SYNs from being held, or does not see those that are.
    """

    def __init__(self) -> None:
        self._remarks: dict[str, None] = {}
        self.objections: dict[str, None] = {}
        #: How often filters of the run were missing.
        self.cuts = 0
        #: Endpoints that no device brings.
        self.elsewhere: tuple[Endpoint, ...] = ()

    @property
    def remarks(self) -> tuple[str, ...]:
        """All of them."""
        return (
            *self._remarks,
            *self.objections,
            *remarks.elsewhere_remark(self.elsewhere),
            *remarks.cut_remark(self.cuts),
        )

    def add(self, words: Iterable[str]) -> None:
        """Something that needs no more than to be said."""
        self._remarks |= dict.fromkeys(words)

    def see_filters(self, device: Device, others: Collection[int], first: int) -> None:
        """Others' filters on a device.

        :param others: their preferences, in order. :param first: that of the run's own.
        """
        before = [preference for preference in others if preference < first + HELD_AT]
        behind = [preference for preference in others if preference >= first + HELD_AT]
        self.objections |= dict.fromkeys(remarks.before_remark(device.name, before))
        self.objections |= dict.fromkeys(remarks.passed_by_remark(device.name, behind))

    def see_hooks(self, devices: Collection[Device], side: int) -> None:
        """What else others have on these devices, on that side."""
        self.objections |= dict.fromkeys(hook_remarks(devices, side))
        self.objections |= dict.fromkeys(tcx_remarks(devices, side))
