"""Holding with the plug qdisc: SYNs wait in an ifb device of the run's own.

Filters on the ingress side of every device send the SYNs there; what the plug lets go enters
the stack where it was taken out of it. All is made before anything is held, with the plug open;
holding and releasing are one change of the plug each. It opens as a whole: nothing can be paced,
and a retransmit cannot be told from the SYN that it repeats.

The filters come first on each device: a foreign one that ends the search would hide a SYN
from them. Only addresses that this machine answers for are matched, so what it forwards passes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from ipaddress import ip_address, ip_network

from synplug.errors import KernelError, ReleaseError, SynplugError, UnsupportedError, UsageError
from synplug.holding.base import ANY_BACKEND, Backend
from synplug.kernel import flower
from synplug.kernel.capabilities import NET_RAW
from synplug.kernel.flower import Installed, SynFilter
from synplug.kernel.namespaces import wait_for_packets_in_flight
from synplug.kernel.traffic_control import Changes, Device, PlugState, TrafficControl
from synplug.model import Flow, HoldCounts, HoldSpec, OnFull

#: Of the names of the devices; a run id fills what is left of a name (IFNAMSIZ, 15).
PREFIX = "synplug"
#: A SYN with its Ethernet header has 74 bytes over IPv4, 94 over IPv6; more with more options.
BYTES_PER_SYN = 128
_HANDLES = 1 << 12
_PREFERENCES = 5
_SETTLE_LIMIT_S, _SETTLE_POLL_S = 2.0, 0.002


class PlugBackend(Backend):
    """SYNs wait in a plug."""

    name = "plug"
    capabilities = ANY_BACKEND - {NET_RAW}
    can_pace = False
    outlives_its_keeper = True

    def __init__(self, spec: HoldSpec) -> None:
        self._spec = spec
        self._ifb_name = PREFIX + spec.run_id
        self._ifb: int | None = None
        self._made: TrafficControl | None = None
        self._changes: Changes | None = None
        self._ours: dict[int, str] = {}  # devices with a clsact of ours
        #: By device, the first of its preferences: a mark, a connection, to be held; v4 before v6.
        self._preferences: dict[int, int] = {}
        self._filters: dict[tuple[int, SynFilter | int], Installed] = {}
        self._next_handle = self._first_handle
        self._before = PlugState(0, 0, 0, 0)
        self._last = self._before
        self._peak = 0
        self._lost = 0
        self._passing = 0

    @property
    def _first_handle(self) -> int:
        """By its upper 20 bits a filter is known as this run's."""
        return (int(self._spec.run_id, 16) & ~(_HANDLES - 1) or 1 << 31) + 1

    @property
    def _control(self) -> TrafficControl:
        if self._made is None:
            self._made = TrafficControl(PREFIX)
        return self._made

    # --- arming

    def traces(self) -> dict[str, str]:
        found = {"ifb device": self._ifb_name, "filters": f"handle {self._first_handle:#x} ff."}
        ours = self._ours or {
            device.index: device.name
            for device in self._devices()
            if not self._control.has_ingress(device.index)
        }
        return found | ({"clsact": " ".join(ours.values())} if ours else {})

    def arm(self) -> None:
        if self._spec.on_full is OnFull.PASS:
            raise UnsupportedError(
                "a plug drops what does not fit", remedy="leave out --on-full pass"
            )
        if self._spec.max_held_per_source:
            raise UnsupportedError(
                "a plug knows no sources", remedy="leave out --max-held-per-source"
            )
        self._changes = Changes()
        self._ifb = self._control.make_ifb(self._ifb_name)
        self._control.make_plug(self._ifb, self._spec.max_held_packets * BYTES_PER_SYN)
        self._look_at_devices()

    def _devices(self) -> list[Device]:
        """Those that may bring traffic.

        :raises UsageError: one that was named is not there.
        """
        found = [device for device in self._control.devices() if not device.is_ours]
        missing = set(self._spec.devices) - {device.name for device in found}
        if missing and self._ifb is None:
            raise UsageError(f"no network device {min(missing)!r}")
        return [
            device
            for device in found
            if not self._spec.devices or device.name in self._spec.devices
        ]

    def _look_at_devices(self) -> None:
        """Give every device the filters that it lacks."""
        wanted = list(self._wanted())
        devices = self._devices()
        there = {device.index for device in devices}
        self._filters = {key: found for key, found in self._filters.items() if key[0] in there}
        for device in devices:
            self._prepare(device)
            for syns in wanted:
                self._add(device.index, syns, flower.redirect(self._ifb_index))

    @property
    def _ifb_index(self) -> int:
        assert self._ifb is not None, "arm() comes first"
        return self._ifb

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
        if self._control.make_ingress(device.index):
            self._ours[device.index] = device.name
        taken = {found.preference for found in self._control.filters(device.index)}
        self._preferences[device.index] = next(
            first
            for first in range(1, 1 << 15)
            if taken.isdisjoint(range(first, first + _PREFERENCES))
        )
        if device.name == "lo":  # a mark does not leave the machine
            where = flower.mark_place(
                self._spec.probe_mark,
                device=device.index,
                preference=self._preferences[device.index],
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
        )
        self._next_handle += 1
        self._filters[device, syns] = where
        self._control.add_filter(syns, where, action)

    # --- holding

    def hold(self) -> None:
        self._control.close_plug(self._ifb_index)
        self._before = self._last = self._state() or self._before

    def fileno(self) -> int:
        assert self._changes is not None, "arm() comes first"
        return self._changes.fileno()

    def absorb(self) -> None:
        if self._changes is not None and self._changes.take() and self._ifb is not None:
            with suppress(SynplugError):  # a device that is gone again: the next change tells
                self._look_at_devices()

    def let_through(self, flow: Flow) -> None:
        """A SYN that waits already stays; its retransmit passes."""
        half = (len(flow) - 4) // 2
        source, destination = (ip_network(ip_address(flow[at : at + half])) for at in (0, half))
        port, to_port = (int.from_bytes(flow[at : at + 2], "big") for at in (-4, -2))
        syns = SynFilter(destination=destination, port=to_port, source=(source, port))
        for device in list(self._preferences):
            with suppress(SynplugError):
                self._add(device, syns, flower.accept())
        self._passing += 1

    def waiting(self) -> int:
        state = self._state()
        return state.waiting if state is not None else 0

    def _state(self) -> PlugState | None:
        state = None if self._ifb is None else self._control.plug_state(self._ifb)
        if state is not None:
            self._last = state
            self._peak = max(self._peak, state.waiting)
        return state

    def release_next(self, limit: int) -> int:
        raise NotImplementedError(f"a plug opens as a whole, not by {limit}")

    def check_for_loss(self) -> int:
        waited = self._last.waiting
        if self._ifb is None or self._state() is not None:
            return 0
        self._ifb = None  # somebody removed it: redirected SYNs would be dropped from here on
        self._remove_filters()
        self._lost += waited
        return waited

    # --- the end

    def open(self) -> int:
        burst = self.waiting()
        try:
            if self._ifb is not None:
                self._control.open_plug(self._ifb)
        finally:  # what is not redirected does not wait
            self._remove_filters()
        return burst

    def _remove_filters(self) -> None:
        for key in list(self._filters):
            self._control.remove_filter(self._filters.pop(key))

    def confirm_empty(self) -> None:
        wait_for_packets_in_flight()
        if self._ifb is None:
            return
        give_up_s = time.monotonic() + _SETTLE_LIMIT_S
        while time.monotonic() < give_up_s:
            state = self._state()
            if state is None or not (state.waiting or self._control.ifb_in_flight(self._ifb)):
                return
            time.sleep(_SETTLE_POLL_S)
        raise ReleaseError(f"{self._last.waiting} packets still wait in {self._ifb_name}")

    def obstacle(self) -> str:
        return ""

    def remove(self) -> None:
        for device in list(self._ours):
            with suppress(SynplugError):  # gone with its device
                self._control.remove_ingress(device)
            del self._ours[device]
        if self._ifb is not None:
            self._control.remove_device(self._ifb)
            self._ifb = None
        if self._control.index_of(self._ifb_name) is not None:
            raise ReleaseError(f"the device {self._ifb_name} is still there")

    def counts(self) -> HoldCounts:
        released = self._last.passed - self._before.passed
        return HoldCounts(
            held=released + self._last.waiting + self._lost,
            released=released,
            let_through=self._passing,
            overflowed=self._last.dropped - self._before.dropped,
            lost=self._lost,
            waiting=self._last.waiting,
            peak=self._peak,
        )

    def close(self) -> None:
        if self._made is None:
            return
        for step in (self.open, self.confirm_empty, self.remove):
            with suppress(SynplugError):
                step()
        self._made.close()
        self._made = None
        if self._changes is not None:
            self._changes.close()

    def _find_mark(self, held: Installed) -> None:
        """The filter for the mark, by a filter of ours on the same device, if it is there."""
        for found in self._control.filters(held.device):
            is_before = 0 < held.preference - found.preference < _PREFERENCES
            if found.handle == self._spec.probe_mark and is_before:
                self._filters[held.device, found.handle] = found

    def clean_up_after_death(self, traces: Mapping[str, str]) -> None:
        """Open what is still there, let it run empty, and remove it."""
        self._ifb = self._control.index_of(self._ifb_name)
        last = self._first_handle + _HANDLES - 2
        made_here = set(traces.get("clsact", "").split())
        for device in self._control.devices():
            for found in self._control.filters(device.index):
                if self._first_handle <= found.handle <= last:
                    self._filters[device.index, found.handle] = found
                    self._find_mark(found)
            if device.name in made_here and self._control.has_ingress(device.index):
                self._ours[device.index] = device.name
        try:
            self.open()
            self.confirm_empty()
            self.remove()
        finally:
            self._control.close()
            self._made = None
