"""Holding with the plug qdisc: SYNs wait in an ifb device of the run's own.

Filters send the SYNs there (:mod:`synplug.holding.diversion`); what the plug lets go enters the
stack where it was taken out of it. All is made before anything is held, with the plug open;
holding and releasing are one change of the plug each. It opens as a whole: nothing can be paced,
and a retransmit cannot be told from the SYN that it repeats.
"""

from __future__ import annotations

import errno
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from ipaddress import ip_address, ip_network

from synplug.errors import KernelError, ReleaseError, SynplugError, UnsupportedError
from synplug.holding.base import ANY_BACKEND, Backend
from synplug.holding.diversion import Diversion
from synplug.holding.ledger import DEVICE_PREFIX, note_traces
from synplug.holding.ownership import ifb_index
from synplug.holding.plug_account import PlugAccount
from synplug.holding.plug_limits import limit_bytes, refuse_what_it_cannot
from synplug.holding.remarks import behind_remark, gone_words, loss_remark
from synplug.holding.run_empty import runs_empty
from synplug.kernel.capabilities import NET_RAW
from synplug.kernel.changes import Changes
from synplug.kernel.flower import SynFilter
from synplug.kernel.namespaces import wait_for_packets_in_flight
from synplug.kernel.route_socket import load_library
from synplug.kernel.traffic_control import PlugState, TrafficControl
from synplug.model import BackendName, Flow, HoldCounts, HoldSpec

#: Soon, but the keeper has other things to do: it pauses for so many times as long as it took; for
#: another change only where that was long, with hundreds of devices.
_FOLLOW_AGAIN_S, _PAUSES, _LONG_S = 0.5, 5, 0.02
#: A plug that is open, and from which nothing has gone for so long, does not run empty.
_SETTLE_LIMIT_S = 2.0
#: So long who comes may wait behind the others: the deadman of a stopped keeper is not put off.
_BEHIND_S, _BEHIND_AT_MOST_S = 0.1, 0.25


class PlugBackend(Backend):
    """SYNs wait in a plug."""

    name = "plug"
    capabilities = ANY_BACKEND - {NET_RAW}
    can_pace = False
    outlives_its_keeper = True
    uses_queues = flushes_queues = False

    def __init__(self, spec: HoldSpec) -> None:
        with suppress(UnsupportedError):  # it is told when it is needed
            load_library()  # before the watcher is forked: after a crash there is no time for it
        self._spec = spec
        self._limit_bytes = limit_bytes(spec)
        self._ifb_name = DEVICE_PREFIX + spec.run_id
        self._ifb: int | None = None
        self._made_index: int | None = None
        self._made: TrafficControl | None = None
        self._diverted: Diversion | None = None
        self._changes: Changes | None = None
        self._account = PlugAccount()
        self._is_held = self._is_over = self._is_stale = False  # stale: something has changed
        self._passing = 0
        self._follow_again_s = self._rest_until_s = 0.0
        self._behind = ""  # why what has changed is not followed yet
        self._troubles: dict[str, None] = {}

    @property
    def _control(self) -> TrafficControl:
        if self._made is None:
            self._made = TrafficControl(DEVICE_PREFIX)
        return self._made

    @property
    def _diversion(self) -> Diversion:
        if self._diverted is None:
            self._diverted = Diversion(self._spec, self._control)
        return self._diverted

    @property
    def remarks(self) -> tuple[str, ...]:
        return (
            *self._troubles,
            *behind_remark(self._behind),
            *self._account.remarks(self._limit_bytes),
            *(self._diverted.remarks if self._diverted is not None else ()),
        )

    # --- arming

    def traces(self) -> dict[str, str]:
        index = "" if self._made_index is None else f":{self._made_index}"
        return {"ifb device": self._ifb_name + index} | self._diversion.traces()

    def arm(self) -> None:
        refuse_what_it_cannot(self._spec)
        if self._spec.backend is BackendName.AUTO and (said := self._diversion.objections()):
            remedy = "if that may be, --backend plug; or hold elsewhere, with --dev"
            raise UnsupportedError(said[0], remedy=remedy)
        self._changes = Changes()  # before the devices are looked at that get filters now
        self._ifb = self._made_index = self._control.make_ifb(self._ifb_name)
        self._control.make_plug(self._ifb, self._limit_bytes)
        self._spread()

    def _spread(self) -> None:
        """Divert what all devices bring; the ledger knows of a place for filters beforehand."""
        assert self._ifb is not None, "arm() comes first"
        note_traces(self._spec.run_id, self.traces())
        self._diversion.spread(self._ifb)

    # --- holding

    def hold(self, go_on: Callable[[], None] = lambda: None) -> None:
        go_on()
        self._is_stale |= self._diversion.is_outdated()
        if self._ifb is not None and (self._has_changed() or self._is_stale):
            self._follow_changes()
        gone = KernelError(gone_words(self._ifb_name), errno.ENODEV, remedy="see who does that")
        if self._ifb is None:
            raise gone
        try:
            self._control.close_plug(self._ifb)
            state = self._state()
            if state is None:
                raise gone
            self._account.begin(state)
        except SynplugError:  # it may be closed: what was lost is the answer
            with suppress(SynplugError):
                self._control.open_plug(self._ifb)
            raise
        self._is_held = True

    def fileno(self) -> int:
        assert self._changes is not None, "arm() comes first"
        return self._changes.fileno()

    def absorb(self) -> bool:
        if self._has_changed() and not self._is_over:
            self._is_stale = True
            if not self._is_held or time.monotonic() >= self._rest_until_s:
                self._follow_changes(spreads=self._is_held)
        return False

    def _has_changed(self) -> bool:
        return self._changes is not None and self._changes.take(self._ifb)

    def _follow_changes(self, *, spreads: bool = True) -> None:
        """Divert what new devices bring, and to new addresses; put back what somebody removed.

        What cannot be done now is tried again.

        :param spreads: False: that has time until it holds; but SYNs pass by the device already,
            and where they cannot, nobody connects.
        """
        if self._ifb is None:
            return
        began_s = time.monotonic()
        self._is_stale &= not spreads
        try:
            self._count_loss()  # while it may be down: later what has come since may stand for it
            if self._ifb is not None:
                self._control.set_up(self._ifb)  # to one that is down nothing can be sent
            if self._ifb is not None and spreads:
                self._spread()
                # Another run may have been faster with a clsact that we share.
                note_traces(self._spec.run_id, self.traces())
        except SynplugError as error:
            self._behind = str(error)
        else:
            self._behind = ""
        now_s = time.monotonic()
        pause_s = _PAUSES * (now_s - began_s)
        self._follow_again_s = now_s + max(_FOLLOW_AGAIN_S, pause_s)
        self._rest_until_s = now_s + (pause_s if now_s - began_s > _LONG_S else 0.0)

    def let_through(self, flow: Flow) -> None:
        """A SYN that waits already stays; its retransmit passes."""
        half = (len(flow) - 4) // 2
        source, destination = (ip_network(ip_address(flow[at : at + half])) for at in (0, half))
        port, to_port = struct.unpack("!HH", flow[-4:])
        syns = SynFilter(destination=destination, port=to_port, source=(source, port))
        try:
            self._diversion.let_through(syns)
        except SynplugError as error:
            words = f"connections of the restart's own wait with the others: {error}"
            self._troubles[words] = None
        else:
            self._passing += 1

    def waiting(self) -> int:
        try:
            state = self._state()
        except SynplugError:  # whoever waits must be let go all the same
            state = self._account.last
        return state.waiting if state is not None else 0

    def _state(self) -> PlugState | None:
        state = None if self._ifb is None else self._control.plug_state(self._ifb)
        if state is not None:
            self._account.note(state)
        return state

    def check_for_loss(self) -> int:
        now_s = time.monotonic()
        is_due = self._is_stale and now_s >= self._rest_until_s
        if self._is_held and (is_due or (self._behind and now_s > self._follow_again_s)):
            self._follow_changes()
        self._count_loss()
        return self._account.take_loss()

    def _count_loss(self) -> None:
        if self._ifb is None or self._is_over:
            return
        before = self._account.last
        now = self._state()
        if now is None:  # somebody removed it, or its plug: what is diverted does not wait any more
            self._diversion.end()
            self._ifb = None
            if self._is_held:
                self._troubles[gone_words(self._ifb_name)] = None
        if self._is_held:
            self._account.count_loss(before, now)

    # --- the end

    def open(self, go_on: Callable[[], None] = lambda: None) -> int:
        burst = self._account.last.waiting
        try:
            if self._ifb is not None:
                self._control.open_plug(self._ifb)
                if not self._is_over:
                    self._keep_order()
        except SynplugError:
            self._count_loss()
            if self._ifb is not None:
                raise
        finally:  # what is not diverted does not wait
            self._troubles |= dict.fromkeys(loss_remark(self._account.take_loss()))
            self._is_held, self._is_over = False, True
            go_on()  # there may be thousands of them
            self._diversion.end()
        return burst

    def _keep_order(self) -> None:
        """Divert who comes until all have gone that wait: the plug is open, so nobody is stopped.

        Who is not diverted any more would overtake what a busy processor has not got to yet.
        """
        with suppress(SynplugError):
            runs_empty(self._left, patience_s=_BEHIND_S, at_most_s=_BEHIND_AT_MOST_S)

    def _left(self) -> int:
        """Packets that wait in the device, or are on their way through it."""
        if self._ifb is None or (state := self._state()) is None:
            return 0
        left = state.waiting + self._control.ifb_in_flight(self._ifb)
        if not left:
            self._account.stranded = self._control.ifb_stranded(self._ifb)
        return left

    def confirm_empty(self, go_on: Callable[[], None] = lambda: None) -> None:
        wait_for_packets_in_flight()
        if not runs_empty(self._left, patience_s=_SETTLE_LIMIT_S, go_on=go_on):
            waiting = self._account.last.waiting
            raise ReleaseError(f"{waiting} packets still wait in {self._ifb_name}")

    def obstacle(self) -> str:
        return ""

    def remove(self) -> None:
        self._diversion.remove_filters()
        try:
            self._diversion.remove_places()
        finally:
            self._remove_ifb()

    def _still_there(self) -> int | None:
        """The run's device: by its name, since it may have lost its plug; by its index, with it."""
        index = self._control.index_of(self._ifb_name)
        if index is not None or self._made_index is None:
            return index
        return self._made_index if self._control.is_renamed_ifb(self._made_index) else None

    def _remove_ifb(self) -> None:
        left = self._still_there()
        if left is not None:
            self._control.remove_device(left)
        self._ifb = None
        if self._still_there() is not None:
            raise ReleaseError(f"the device {self._ifb_name} is still there")

    def counts(self) -> HoldCounts:
        are_local = self._spec.loopback_egress
        return self._account.counts(let_through=self._passing, are_local=are_local)

    def close(self) -> None:
        if self._made is None:
            return
        for step in (self.open, self.confirm_empty):
            with suppress(SynplugError):  # a device without its plug; what counts is the next
                step()
        try:
            self.remove()
        finally:
            self._made.close()
            self._made = None
            if self._changes is not None:
                self._changes.close()

    def clean_up_after_death(self, traces: Mapping[str, str]) -> list[str]:
        """Open what is still there, let it run empty, and remove it."""
        try:
            self._made_index = ifb_index(traces)
            self._ifb = device = self._still_there()
            waiting = self.waiting()
            if device is not None:
                with suppress(SynplugError):  # without its plug nothing waits
                    self._control.open_plug(device)
            filters, places = self._diversion.find(traces, device or 0)
            self._diversion.end()
            self.confirm_empty()
            self.remove()
            left = self._control.places()
            let_go = f", whose {waiting} SYNs were let go" if waiting else ""
            return [
                *([f"{filters} tc filters"] if filters else ()),
                *(
                    f"the clsact of {name}"
                    for index, name in places.items()
                    if not left.has(index)  # or others use it now
                ),
                *([f"the device {self._ifb_name} with its plug{let_go}"] if device else ()),
            ]
        finally:
            if self._made is not None:
                self._made.close()
                self._made = None
