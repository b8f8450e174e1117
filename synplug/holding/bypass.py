"""What others have on a device that a plug's filters do not stand before, or lead past."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress

from synplug.errors import SynplugError
from synplug.holding.remarks import ingress_hook_remark, tcx_remark
from synplug.kernel.flower import INGRESS
from synplug.kernel.hooks import IngressChain, ingress_chains, tcx_programs
from synplug.kernel.traffic_control import Device


def bypass_remarks(devices: Iterable[Device], side: int) -> Iterator[str]:
    """What the operator should know of it.

    What ifb lets go skips the filters of the device that it came by, and with them the hook behind
    them: netfilter's ingress (``net/core/dev.c``, __netif_receive_skb_core, skip_classify). The
    programs of tcx come before all filters (``tcx_run``).

    :param side: on which the filters stand.
    """
    chains: list[IngressChain] = []
    if side == INGRESS:
        with suppress(SynplugError):  # without nf_tables nobody has one
            chains = ingress_chains()
    for device in devices:
        names = sorted(chain.name for chain in chains if chain.sees(device.name))
        yield from ingress_hook_remark(device.name, names)
        yield from tcx_remark(device.name, tcx_programs(device.index, side))
