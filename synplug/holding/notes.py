"""What the operator is to know of a plug's filters, each once."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from synplug.holding import remarks
from synplug.holding.bypass import hook_remarks, tcx_remarks
from synplug.holding.ownership import HELD_AT
from synplug.holding.surroundings import Surroundings
from synplug.kernel.flower import Installed
from synplug.kernel.traffic_control import Device
from synplug.model import Endpoint, HoldSpec


class Notes:
    """Of others' filters and programs, and of what is not held.

    *objections*: what of others' keeps SYNs from being held, or does not see those that are.
    """

    def __init__(self, spec: HoldSpec) -> None:
        self._run_id, self._mark = spec.run_id, spec.probe_mark
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

    def see_filters(
        self, device: Device, found: list[Installed], first: int, around: Surroundings
    ) -> None:
        """Others' filters on a device, that come before the run's, and behind.

        :param found: all that are there. :param first: the run's preferences begin with it.
        """
        others = around.preferences_of_others(found, self._run_id, self._mark)
        before = [preference for preference in others if preference < first + HELD_AT]
        behind = [preference for preference in others if preference >= first + HELD_AT]
        self.objections |= dict.fromkeys(remarks.before_remark(device.name, before))
        self.objections |= dict.fromkeys(remarks.passed_by_remark(device.name, behind))

    def see_translations(self, chains: Collection[str], *, spares_own: bool) -> None:
        """NAT of connections of this host's own. :param spares_own: they are not diverted."""
        found = remarks.translated_remark(chains, spares_own=spares_own)
        self.objections |= dict.fromkeys(found)

    def see_arriving_translated(self, chains: Collection[str]) -> None:
        """NAT of what comes from elsewhere."""
        self.objections |= dict.fromkeys(remarks.arriving_translated_remark(chains))

    def see_hooks(self, devices: Collection[Device], side: int) -> None:
        """What else others have on these devices, on that side."""
        self.objections |= dict.fromkeys(hook_remarks(devices, side))
        self.objections |= dict.fromkeys(tcx_remarks(devices, side))
