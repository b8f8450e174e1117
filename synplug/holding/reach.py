"""What a plug reaches: the devices that bring SYNs, and the endpoints that are here."""

from __future__ import annotations

from collections.abc import Iterable

from synplug.errors import UsageError
from synplug.kernel import flower
from synplug.kernel.flower import SynFilter
from synplug.kernel.traffic_control import Device, TrafficControl
from synplug.model import Endpoint, HoldSpec

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
