"""Which devices have a qdisc that filters of ingress, or of egress, can stand at."""

from __future__ import annotations

from collections.abc import Iterable

from synplug.kernel.flower import INGRESS


class Places:
    """Those among qdiscs: an ingress qdisc has a place on that side alone, a clsact on both.

    :param qdiscs: as (index of the device, kind).
    """

    def __init__(self, qdiscs: Iterable[tuple[int, str]]) -> None:
        self._on_one_side: set[int] = set()
        self._on_both: set[int] = set()
        for device, kind in qdiscs:
            if kind == "ingress":
                self._on_one_side.add(device)
            elif kind == "clsact":
                self._on_both.add(device)

    def has(self, device: int, side: int = INGRESS) -> bool:
        """Whether *device* has a place for filters on that side."""
        return device in self._on_both or (side == INGRESS and device in self._on_one_side)
