"""Where SYNs leave their way for the device of a run: filters on every device that brings them.

On the ingress side of each, or, for what local clients send (``--loopback-egress``), on the egress
side of ``lo``. Ours come first there: a foreign filter that ends the search would hide a SYN from
them. Only addresses that this machine answers for are matched, so what it forwards passes, unless
NAT takes it from such an address. A port of a bridge, a bond or a team is left out: what it brings
comes by the device that it belongs to, and must not be diverted twice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress

from synplug.errors import KernelError, ReleaseError, SynplugError
from synplug.holding import remarks
from synplug.holding.ledger import entries
from synplug.holding.notes import Notes
from synplug.holding.ownership import (
    CLSACT,
    HELD_AT,
    MOST_FILTERS,
    check_number,
    first_free,
    first_handle,
    places_in,
)
from synplug.holding.reach import LOOPBACK, Reach, brings_own
from synplug.holding.remains import Key, filters_left, remove_filters, remove_places
from synplug.holding.sending import LATER_S, PATIENCE_S, Sending
from synplug.holding.surroundings import Surroundings, surroundings
from synplug.kernel import flower
from synplug.kernel.flower import Installed, SynFilter
from synplug.kernel.places import Places
from synplug.kernel.traffic_control import Device, TrafficControl
from synplug.model import HoldSpec
from synplug.record import replace


class Diversion:
    """The filters of a run, and the qdiscs that had to be made for them."""

    def __init__(self, spec: HoldSpec, control: TrafficControl) -> None:
        self._spec = spec
        self._control = control
        self._side = flower.EGRESS if spec.loopback_egress else flower.INGRESS
        self._spread = False
        self._target = 0
        #: Devices with a clsact of ours, or of another run, which may end before this one.
        self._ours: dict[int, str] = {}
        #: By device, the first of its preferences.
        self._preferences: dict[int, int] = {}
        self._filters: dict[Key, Installed] = {}
        self._passing: list[SynFilter] = []
        self._own_by: list[int] = []
        self._around = Surroundings(places=Places(()))
        self._fitted: set[int] = set()
        self._entered: set[int] = set()
        self._has_room_for_tagged = True
        self._notes = Notes(spec)
        self._reach = Reach(spec, control, self._notes)
        self._first_handle = self._next_handle = first_handle(spec.run_id)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the operator should know: of others' filters, and of what is not held."""
        return self._notes.remarks

    def objections(self) -> list[str]:
        """What of others' would keep SYNs from being held, or not see those that are.

        Only looks: it can be asked before anything is put in.
        """
        self._look_around()
        for device in (devices := self._devices()):
            found = self._control.filters(device.index, self._side)
            self._notes.see_filters(device, found, first_free(found), self._around)
        self._notes.see_hooks(devices, self._side)
        return list(self._notes.objections)

    def traces(self) -> dict[str, str]:
        """What stands in the kernel, or will once all devices have filters, by kind and name.

        A device may get another name: its index says which one it was.
        """
        found = {"filters": f"handle {self._first_handle:#x} ff."}
        around, devices = self._look_around(), self._devices()
        self._entered = {device.index for device in devices}
        ours = self._ours | {
            device.index: device.name
            for device in devices
            if device.index not in self._preferences
            and (not around.places.has(device.index) or device.index in around.of_runs)
        }
        words = [f"{name}:{index}" for index, name in ours.items()]
        return found | ({CLSACT: " ".join(words)} if words else {})

    def _look_around(self) -> Surroundings:
        self._around = surroundings(self._control.places(), entries(), self._spec.run_id)
        return self._around

    def _devices(self) -> list[Device]:
        return self._reach.devices(all_there=not self._spread)

    def is_outdated(self) -> bool:
        """Whether somebody translates connections that nobody did when filters were spread."""
        return self._reach.sees_translations()

    def spread(self, target: int) -> None:
        """Give every device that the traces know the filters that it lacks.

        One that has come since is the next change. One that goes meanwhile keeps the others from
        nothing; nor, once all had theirs, does one that cannot have any.

        :param target: index of the device that the SYNs are sent to.
        :raises UnsupportedError: that takes more filters than a run has handles.
        """
        is_first = not self._spread
        devices = [device for device in self._devices() if device.index in self._entered]
        wanted = self._reach.wanted()
        self._remove_filters([key for key in self._filters if self._reach.is_left_by(key[1])])
        if is_first:
            number = len(devices) * len(wanted)
            check_number(number)
            self._has_room_for_tagged = 2 * number <= MOST_FILTERS
            self._notes.add(remarks.tagged_remark(self._has_room_for_tagged))
        self._spread, self._target = True, target
        self._own_by = [device.index for device in devices if brings_own(device)]
        self._forget_others({device.index for device in devices})
        self._look_around()
        self._look_again({device.index: device for device in devices})
        self._fitted = {index for index, _ in self._filters}
        limit_s = PATIENCE_S if is_first else LATER_S
        sending = Sending(self._control, self._lacking(devices), limit_s)
        for device in sorted(devices, key=lambda device: sending.is_busy(device.index)):
            if not sending.is_over(device.index):
                self._notes.add(remarks.dropped_remark(device.name))
            try:
                self._fit_out(device, wanted, target)
            except SynplugError as error:
                is_there = self._control.has_index(device.index)
                if is_first and (is_there or self._spec.devices):
                    raise
                if is_there:
                    self._notes.add(remarks.unheld_remark(device.name, str(error)))
        self._notes.see_hooks(devices, self._side)

    def _lacking(self, devices: Iterable[Device]) -> set[int]:
        """Those that are to get a clsact, and have no place for filters: not yet, or no more."""
        there, side = self._around.places, self._side
        others = self._preferences.keys() - self._ours.keys()
        new = {device.index for device in devices} - others
        return {index for index in new if not there.has(index, side)}

    def _fit_out(self, device: Device, wanted: Sequence[SynFilter], target: int) -> None:
        is_new = device.index not in self._preferences
        try:
            self._put_in(device, wanted, target)
        except KernelError:
            if self._look_around().places.has(device.index, self._side):
                raise
            # Another run made the place, and has ended since.
            self._filters = {
                key: one for key, one in self._filters.items() if key[0] != device.index
            }
            self._fitted.discard(device.index)
            if is_new:
                self._preferences.pop(device.index, None)
            self._put_in(device, wanted, target)

    def _put_in(self, device: Device, wanted: Sequence[SynFilter], target: int) -> None:
        if not self._prepare(device):
            return
        brings_tagged = self._side == flower.INGRESS and device.name != LOOPBACK
        for syns in wanted:
            self._add(device.index, syns, flower.redirect(target))
            if brings_tagged and self._has_room_for_tagged:
                self._add(device.index, replace(syns, is_tagged=True), flower.redirect(target))
        for syns in self._passing if brings_own(device) else ():
            self._add(device.index, syns, flower.accept())
        if device.name == LOOPBACK:  # a mark does not leave the machine
            self._pass_mark(device.index)

    def _pass_mark(self, device: int) -> None:
        """Let marked probes pass. Last of all: by the filters beside it, it is known as ours."""
        mark = self._spec.probe_mark
        if (device, mark) in self._filters or not any(key[0] == device for key in self._filters):
            return
        where = flower.mark_place(
            mark, device=device, preference=self._preferences[device], parent=self._side
        )
        with suppress(KernelError):  # without cls_fw a marked probe waits like the others
            self._control.pass_mark(where)
        found = self._control.filters(device, self._side)  # an answer can be lost as well
        if (where.preference, mark) in ((one.preference, one.handle) for one in found):
            self._filters[device, mark] = where

    def _forget_others(self, chosen: set[int]) -> None:
        """Forget devices that are gone; take the filters from one that is left out from now on.

        It may be a port now. One that has another name now keeps what it has.
        """
        there = {one.index: self._reach.leaves_out(one) for one in self._control.devices()}
        self._filters = {key: found for key, found in self._filters.items() if key[0] in there}
        self._ours = {index: name for index, name in self._ours.items() if index in there}
        for index in self._preferences.keys() - chosen:
            if there.get(index):
                self._remove_filters([key for key in self._filters if key[0] == index])
            if there.get(index, True):
                del self._preferences[index]

    def _look_again(self, devices: Mapping[int, Device]) -> None:
        """Forget the filters that somebody took out, or the qdisc with them; tell of others'."""
        noted: dict[int, list[Key]] = {}
        for key in self._filters:
            noted.setdefault(key[0], []).append(key)
        for device in self._preferences:
            found = self._control.filters(device, self._side)
            if device in devices:
                first = self._preferences[device]
                self._notes.see_filters(devices[device], found, first, self._around)
            there = {(one.preference, one.handle) for one in found}
            gone = [
                key
                for key in noted.get(device, ())
                if (self._filters[key].preference, self._filters[key].handle) not in there
            ]
            for key in gone:
                del self._filters[key]
            self._notes.cuts += bool(gone)

    def _prepare(self, device: Device) -> bool:
        """Make room for filters on a device.

        :returns: whether there is: in place of a qdisc that somebody else made, and has taken
            away, stands none of ours, which would keep them from making it again.
        """
        if device.index in self._preferences:
            if device.index in self._fitted:
                return True
            if device.index not in self._ours and not self._around.places.has(
                device.index, self._side
            ):
                return False
        if not self._around.places.has(device.index) or device.index in self._around.of_runs:
            self._ours[device.index] = device.name  # before it is made: the answer may be lost
        if not self._around.places.has(device.index, self._side):
            is_made = self._control.make_ingress(device.index, side=self._side)
            if not is_made and device.index not in self._look_around().of_runs:
                self._ours.pop(device.index, None)  # somebody else has, in this moment
        found = self._control.filters(device.index, self._side)
        self._preferences[device.index] = first_free(found)
        self._notes.see_filters(device, found, self._preferences[device.index], self._around)
        return True

    def _add(self, device: int, syns: SynFilter, action: bytes) -> None:
        if (device, syns) in self._filters:
            return
        check_number(self._next_handle - self._first_handle + 1)
        is_v6 = syns.destination.version == 6
        order = 5 if syns.is_tagged else (1 if syns.source else HELD_AT) + is_v6
        where = flower.place(
            syns,
            device=device,
            preference=self._preferences[device] + order,
            handle=self._next_handle,
            parent=self._side,
        )
        self._control.add_filter(syns, where, action)
        self._next_handle += 1
        self._filters[device, syns] = where

    def let_through(self, syns: SynFilter) -> None:
        """Divert this one connection of the machine's own no more.

        :raises SynplugError: it is diverted all the same.
        """
        check_number(self._next_handle - self._first_handle + len(self._own_by))
        self._passing.append(syns)
        for device in self._own_by:
            if device in self._preferences:
                self._add(device, syns, flower.accept())

    def end(self) -> None:
        """Divert nothing any more: remove the filters."""
        self._remove_filters(self._filters)

    def _remove_filters(self, keys: Iterable[Key]) -> None:
        remove_filters(self._control, self._filters, keys, self._spec.probe_mark)

    def remove_filters(self) -> None:
        """Remove them all, wherever they are.

        :raises ReleaseError: a filter is left; without its target it would drop SYNs for ever.
        """
        error: KernelError | None = None
        for _ in range(2):  # those that are noted, then those that the kernel has
            try:
                self.end()
            except KernelError as failure:
                error = failure
            noted = {(one.device, one.preference, one.handle) for one in self._filters.values()}
            self._filters.clear()
            self._find_filters(noted)
            if not self._filters:
                return
        why = f": {error}" if error is not None else ""
        raise ReleaseError(f"{len(self._filters)} filters are still there{why}") from error

    def remove_places(self) -> None:
        """Remove the qdiscs that were made for them, where nobody else uses them.

        What their devices have to send is waited for a while: it goes with them.

        :raises ReleaseError: one is left; it stays noted.
        """
        left = remove_places(self._control, self._ours)
        self._ours = {device: name for device, name in self._ours.items() if device in left}
        if left:
            raise ReleaseError("; ".join(left.values()))

    def find(self, traces: Mapping[str, str], target: int) -> tuple[int, dict[int, str]]:
        """Find what a dead keeper of this run left: how many filters, and on whom a clsact.

        :param traces: what :meth:`traces` said then.
        :param target: index of the device that the SYNs are sent to; 0: it is gone.
        """
        self._target = target
        self._find_filters()
        made_here, places = places_in(traces), self._control.places()
        for device in self._control.devices():
            if device.index in made_here and places.has(device.index):
                self._ours[device.index] = device.name
        return len(self._filters), dict(self._ours)

    def _find_filters(self, noted: Collection[tuple[int, int, int]] = ()) -> None:
        left = filters_left(self._control, self._spec, self._target, noted)
        self._filters |= {(one.device, one.handle): one for one in left}
