"""What a plug reaches: the devices that bring SYNs, and the endpoints that are here."""

from __future__ import annotations

from collections.abc import Iterable

from synplug.errors import UsageError
from synplug.holding.notes import Notes
from synplug.kernel import flower
from synplug.kernel.flower import SynFilter
from synplug.kernel.hooks import ARRIVING, LEAVING, translations
from synplug.kernel.traffic_control import Device, TrafficControl
from synplug.model import Endpoint, HoldSpec
from synplug.record import replace

LOOPBACK = "lo"


def devices_for(spec: HoldSpec, control: TrafficControl, *, all_there: bool) -> list[Device]:
    """Those that may bring traffic.

    :param all_there: one that was named must not be missing.
    :raises UsageError: it is.
    """
    named = {LOOPBACK} if spec.loopback_egress else set(spec.devices)
    found = [device for device in control.devices() if not device.is_ours]
    missing = named - {device.name for device in found}
    if missing and all_there:
        raise UsageError(f"no network device {min(missing)!r}")
    return [device for device in found if (device.name in named if named else not device.is_port)]


def brings_own(device: Device) -> bool:
    """Whether what the machine sends to an address of its own comes in by that device.

    It does by lo, or by the VRF that has the address (``net/ipv4/route.c``,
    ip_route_output_key_hash_rcu; ``net/ipv6/route.c``, ip6_rt_get_dev_rcu).
    """
    return device.name == LOOPBACK or device.is_vrf


class Reach:
    """Which SYNs of a run are diverted now, and of which devices.

    :param notes: are told of what is not.
    """

    def __init__(self, spec: HoldSpec, control: TrafficControl, notes: Notes) -> None:
        self._spec = spec
        self._control = control
        self._notes = notes
        #: By hook, the chains that may translate a connection there; empty: not seen yet.
        self._translations: dict[int, list[str]] = {}
        self._spared: frozenset[int] = frozenset()  # the devices that are left out on their account
        self._wanted: frozenset[SynFilter] = frozenset()

    def devices(self, *, all_there: bool) -> list[Device]:
        """Those that may bring some; parameters and errors as of :func:`devices_for`.

        Of this host's own connections those that NAT translates as they leave cannot be diverted:
        mirred takes the entry of conntrack from a SYN (``net/sched/act_mirred.c``, nf_reset_ct),
        and the one that it gets then clashes with the first. Who brings them is left out, unless
        it is named. What translates them is looked for until it is found.
        """
        found = devices_for(self._spec, self._control, all_there=all_there)
        own = {device.index for device in found if brings_own(device)}
        self.sees_translations()
        leaving = self._translations.get(LEAVING, []) if own else []
        is_named = self._spec.loopback_egress or bool(self._spec.devices)
        self._spared = frozenset(own if leaving and not is_named else ())
        self._notes.see_translations(leaving, spares_own=not is_named)
        if not self._spec.loopback_egress:
            self._notes.see_arriving_translated(self._translations.get(ARRIVING, []))
        return [device for device in found if device.index not in self._spared]

    def leaves_out(self, device: Device) -> bool:
        """Whether it brings none now, whatever it brought before."""
        return device.is_port or device.index in self._spared

    def sees_translations(self) -> bool:
        """Whether connections are translated, of those that were not at the last look."""
        found = {
            hook: chains
            for hook in (ARRIVING, LEAVING)
            if hook not in self._translations and (chains := translations(hook))
        }
        self._translations |= found
        return bool(found)

    def wanted(self) -> list[SynFilter]:
        """Those SYNs, as the addresses are now."""
        found = syns_by_endpoint(self._spec.endpoints, self._control)
        self._notes.elsewhere = tuple(endpoint for endpoint, syns in found.items() if not syns)
        wanted = [syns for filters in found.values() for syns in filters]
        self._wanted = frozenset(wanted)
        return wanted

    def is_left_by(self, what: SynFilter | int) -> bool:
        """Whether what a filter matches is wanted no more: its address has gone.

        :param what: SYNs; a mark, or one connection, stays.
        """
        if isinstance(what, int) or what.source is not None:
            return False
        return replace(what, is_tagged=False) not in self._wanted


def syns_by_endpoint(
    endpoints: Iterable[Endpoint], control: TrafficControl
) -> dict[Endpoint, list[SynFilter]]:
    """The SYNs to each, as the addresses are now: none to an address that is elsewhere.

    One that is named is looked for among those of the devices, too: it may be in a VRF.
    """
    endpoints = list(endpoints)
    local = control.local_prefixes()
    is_named = any(endpoint.exact_address for endpoint in endpoints)
    own = control.addresses() if is_named else set()
    return {endpoint: list(flower.syns_to([endpoint], local, own)) for endpoint in endpoints}
