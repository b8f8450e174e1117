"""Where SYNs leave their way for the device of a run: filters on every device that brings them.

On the ingress side of each, or, for what local clients send (``--loopback-egress``), on the egress
side of ``lo``. Ours come first there: a foreign filter that ends the search would hide a SYN from
them. Only addresses that this machine answers for are matched, so what it forwards passes. A port
of a bridge, a bond or a team is left out: what it brings comes by the device that it belongs to,
and must not be diverted twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_network

from synplug.errors import KernelError, SynplugError, UsageError
from synplug.holding.ledger import Ledger, entries
from synplug.kernel import flower
from synplug.kernel.flower import Installed, SynFilter
from synplug.kernel.traffic_control import Device, TrafficControl
from synplug.model import HoldSpec

_HANDLES = 1 << 12
#: For a mark, a connection, and SYNs to be held; the latter two by IP version.
_PREFERENCES = 5
_LOOPBACK = "lo"
_CLSACT = "clsact"


class Diversion:
    """The filters of a run, and the qdiscs that had to be made for them."""

    def __init__(self, spec: HoldSpec, control: TrafficControl) -> None:
        self._spec = spec
        self._control = control
        self._side = flower.EGRESS if spec.loopback_egress else flower.INGRESS
        self._spread = False
        #: Devices with a clsact of ours, or of another run, which may end before this one.
        self._ours: dict[int, str] = {}
        #: By device, the first of its preferences.
        self._preferences: dict[int, int] = {}
        self._filters: dict[tuple[int, SynFilter | int], Installed] = {}
        self._next_handle = self._first_handle

    @property
    def _first_handle(self) -> int:
        """By its upper 20 bits a filter is known as this run's."""
        return (int(self._spec.run_id, 16) & ~(_HANDLES - 1) or 1 << 31) + 1

    def traces(self) -> dict[str, str]:
        """What will stand in the kernel, by kind and name."""
        found = {"filters": f"handle {self._first_handle:#x} ff."}
        ours = self._ours or {
            device.index: device.name
            for device in self._devices()
            if not self._control.has_ingress(device.index)
        }
        return found | ({_CLSACT: " ".join(ours.values())} if ours else {})

    def enter_into_ledger(self, traces: dict[str, str]) -> None:
        """Have the ledger know of a device that has come during the hold."""
        for entry in entries():
            if entry.run_id == self._spec.run_id:
                Ledger(entry.run_id).write(replace(entry, traces=traces))

    def _devices(self) -> list[Device]:
        """Those that may bring traffic.

        :raises UsageError: one that was named is not there.
        """
        named = {_LOOPBACK} if self._spec.loopback_egress else set(self._spec.devices)
        found = [device for device in self._control.devices() if not device.is_ours]
        missing = named - {device.name for device in found}
        if missing and not self._spread:
            raise UsageError(f"no network device {min(missing)!r}")
        return [
            device for device in found if (device.name in named if named else not device.is_port)
        ]

    def spread(self, target: int) -> bool:
        """Give every device the filters that it lacks; whether one had to get a clsact.

        :param target: index of the device that the SYNs are sent to.
        """
        before = len(self._ours)
        devices = self._devices()
        self._spread = True
        there = {device.index for device in devices}
        self._filters = {key: found for key, found in self._filters.items() if key[0] in there}
        self._ours = {index: name for index, name in self._ours.items() if index in there}
        self._preferences = {at: first for at, first in self._preferences.items() if at in there}
        wanted = list(self._wanted())
        for device in devices:
            self._prepare(device)
            for syns in wanted:
                self._add(device.index, syns, flower.redirect(target))
        return len(self._ours) > before

    def _wanted(self) -> Iterator[SynFilter]:
        local = self._control.local_prefixes()
        for endpoint in self._spec.endpoints:
            exact = endpoint.exact_address
            versions = {family.value for family in endpoint.families}
            prefixes = (
                {prefix for prefix in local if prefix.version in versions}
                if exact is None
                else {ip_network(exact)}
            )
            for prefix in prefixes:
                yield SynFilter(destination=prefix, port=endpoint.port)

    def _prepare(self, device: Device) -> None:
        """Make room for filters on a device."""
        if device.index in self._preferences:
            return
        if self._control.make_ingress(device.index, side=self._side) or _is_of_a_run(device.name):
            self._ours[device.index] = device.name
        taken = {found.preference for found in self._control.filters(device.index, self._side)}
        self._preferences[device.index] = next(
            first
            for first in range(1, 1 << 15)
            if taken.isdisjoint(range(first, first + _PREFERENCES))
        )
        if device.name == _LOOPBACK:  # a mark does not leave the machine
            where = flower.mark_place(
                self._spec.probe_mark,
                device=device.index,
                preference=self._preferences[device.index],
                parent=self._side,
            )
            with suppress(KernelError):  # without cls_fw a marked probe waits like the others
                self._control.pass_mark(where)
                self._filters[device.index, self._spec.probe_mark] = where

    def _add(self, device: int, syns: SynFilter, action: bytes) -> None:
        if (device, syns) in self._filters:
            return
        is_v6 = syns.destination.version == 6
        order = (1 if syns.source else 3) + is_v6
        where = flower.place(
            syns,
            device=device,
            preference=self._preferences[device] + order,
            handle=self._next_handle,
            parent=self._side,
        )
        self._next_handle += 1
        self._filters[device, syns] = where
        self._control.add_filter(syns, where, action)

    def let_through(self, syns: SynFilter) -> None:
        """Divert this one connection no more."""
        for device in list(self._preferences):
            with suppress(SynplugError):
                self._add(device, syns, flower.accept())

    def end(self) -> None:
        """Divert nothing any more: remove the filters."""
        for key in list(self._filters):
            self._control.remove_filter(self._filters.pop(key))

    def remove(self) -> None:
        """Remove the filters, and what was made for them where nobody else uses it."""
        self.end()  # there are some still where nothing was ever held
        for device in list(self._ours):
            with suppress(SynplugError):  # gone with its device
                self._control.remove_ingress(device)
            del self._ours[device]

    def find(self, traces: Mapping[str, str]) -> None:
        """Find what a dead keeper of this run left.

        :param traces: what :meth:`traces` said then.
        """
        last = self._first_handle + _HANDLES - 2
        made_here = set(traces.get(_CLSACT, "").split())
        for device in self._control.devices():
            for side in (flower.INGRESS, flower.EGRESS):
                for found in self._control.filters(device.index, side):
                    if self._first_handle <= found.handle <= last:
                        self._filters[device.index, found.handle] = found
                        self._find_mark(found)
            if device.name in made_here and self._control.has_ingress(device.index):
                self._ours[device.index] = device.name

    def _find_mark(self, held: Installed) -> None:
        """The filter for the mark, by a filter of ours on the same device, if it is there."""
        for found in self._control.filters(held.device, held.parent):
            is_before = 0 < held.preference - found.preference < _PREFERENCES
            if found.handle == self._spec.probe_mark and is_before:
                self._filters[held.device, found.handle] = found


def _is_of_a_run(device: str) -> bool:
    """Whether some run has made the clsact of that device; the last one that goes removes it."""
    return any(device in entry.traces.get(_CLSACT, "").split() for entry in entries())
