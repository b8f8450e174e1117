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

from synplug.errors import KernelError, ReleaseError, SynplugError, UnsupportedError, UsageError
from synplug.holding.ledger import Ledger, entries
from synplug.kernel import flower
from synplug.kernel.flower import Installed, SynFilter
from synplug.kernel.traffic_control import Device, TrafficControl
from synplug.model import HoldSpec

_HANDLES = 1 << 12
#: In their lower 12 bits, a run's handles count from 1 to this.
MOST_FILTERS = _HANDLES - 2
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
        self._passing: list[SynFilter] = []
        #: How often somebody took filters of ours from a device.
        self.cuts = 0
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
        :raises UnsupportedError: that takes more filters than a run has handles.
        """
        before = len(self._ours)
        devices = self._devices()
        wanted = list(self._wanted())
        if not self._spread:
            _check_number(len(devices) * len(wanted))
        self._spread = True
        self._forget_others({device.index for device in devices})
        self._forget_removed()
        for device in devices:
            if self._prepare(device):
                for syns in wanted:
                    self._add(device.index, syns, flower.redirect(target))
                for syns in self._passing:
                    self._add(device.index, syns, flower.accept())
        return len(self._ours) > before

    def _forget_others(self, chosen: set[int]) -> None:
        """Forget devices that are gone; take the filters from one that has become a port.

        One that has another name now keeps what it has.
        """
        there = {device.index: device.is_port for device in self._control.devices()}
        self._filters = {key: found for key, found in self._filters.items() if key[0] in there}
        self._ours = {index: name for index, name in self._ours.items() if index in there}
        for index in self._preferences.keys() - chosen:
            if there.get(index):
                self._remove_filters([key for key in self._filters if key[0] == index])
            if there.get(index, True):
                del self._preferences[index]

    def _forget_removed(self) -> None:
        """Forget the filters that somebody took out, or the qdisc with them."""
        for device in self._preferences:
            found = self._control.filters(device, self._side)
            there = {(one.preference, one.handle) for one in found}
            gone = [
                key
                for key, one in self._filters.items()
                if key[0] == device and (one.preference, one.handle) not in there
            ]
            for key in gone:
                del self._filters[key]
            self.cuts += bool(gone)

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

    def _prepare(self, device: Device) -> bool:
        """Make room for filters on a device.

        :returns: whether there is: in place of a qdisc that somebody else made, and has taken
            away, stands none of ours, which would keep them from making it again.
        """
        if device.index in self._preferences:
            if any(index == device.index for index, _ in self._filters):
                return True
            is_ours = device.index in self._ours
            if not is_ours and not self._control.has_ingress(device.index, side=self._side):
                return False
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
        return True

    def _add(self, device: int, syns: SynFilter, action: bytes) -> None:
        if (device, syns) in self._filters:
            return
        _check_number(self._next_handle - self._first_handle + 1)
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
        self._passing.append(syns)
        for device in list(self._preferences):
            with suppress(SynplugError):
                self._add(device, syns, flower.accept())

    def end(self) -> None:
        """Divert nothing any more: remove the filters."""
        self._remove_filters(list(self._filters))

    def _remove_filters(self, keys: list[tuple[int, SynFilter | int]]) -> None:
        """Remove these, all that can be.

        :raises KernelError: one could not; it stays noted.
        """
        error: KernelError | None = None
        for key in keys:
            try:
                self._control.remove_filter(self._filters[key])
                del self._filters[key]
            except KernelError as failure:
                error = failure
        if error is not None:
            raise error

    def remove(self) -> None:
        """Remove the filters, and what was made for them where nobody else uses it.

        :raises ReleaseError: a filter is left; without its target it would drop SYNs for ever.
        """
        self.end()  # there are some still where nothing was ever held
        self._find_filters()  # whatever is noted here: the kernel knows
        self.end()
        self._find_filters()
        if self._filters:
            raise ReleaseError(f"{len(self._filters)} filters are still there")
        for device in list(self._ours):
            with suppress(SynplugError):  # gone with its device
                self._control.remove_ingress(device)
            del self._ours[device]

    def find(self, traces: Mapping[str, str]) -> None:
        """Find what a dead keeper of this run left.

        :param traces: what :meth:`traces` said then.
        """
        self._find_filters()
        made_here = set(traces.get(_CLSACT, "").split())
        for device in self._control.devices():
            if device.name in made_here and self._control.has_ingress(device.index):
                self._ours[device.index] = device.name

    def _find_filters(self) -> None:
        """Note all filters of this run that the kernel has."""
        last = self._first_handle + MOST_FILTERS
        for device in self._control.devices():
            for side in (flower.INGRESS, flower.EGRESS):
                found = self._control.filters(device.index, side)
                held = [one for one in found if self._first_handle <= one.handle <= last]
                self._filters |= {(device.index, one.handle): one for one in held}
                self._find_mark(found, {one.preference for one in held})

    def _find_mark(self, found: list[Installed], held: set[int]) -> None:
        """The filter for the mark, by the preferences of ours in the same place."""
        for one in found:
            is_before = any(0 < preference - one.preference < _PREFERENCES for preference in held)
            if one.handle == self._spec.probe_mark and is_before:
                self._filters[one.device, one.handle] = one


def _check_number(filters: int) -> None:
    """Whether a run has handles for so many.

    :raises UnsupportedError: it has not.
    """
    if filters > MOST_FILTERS:
        raise UnsupportedError(
            f"a plug would need {filters} filters (devices times addresses times ports), "
            f"and can have {MOST_FILTERS}",
            remedy="name the devices with --dev, or the addresses with -p ADDRESS:PORT",
        )


def _is_of_a_run(device: str) -> bool:
    """Whether some run has made the clsact of that device; the last one that goes removes it."""
    return any(device in entry.traces.get(_CLSACT, "").split() for entry in entries())
