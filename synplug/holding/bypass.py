"""What others have on a device that a plug's filters do not stand before, or lead past."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress

from synplug.errors import SynplugError
from synplug.holding.remarks import ingress_hook_remark, tcx_remark
from synplug.kernel.flower import INGRESS
from synplug.kernel.hooks import IngressChain, ingress_chains, tcx_programs
from synplug.kernel.traffic_control import Device


def hook_remarks(devices: Iterable[Device], side: int) -> Iterator[str]:
    """On the ingress hook of netfilter: SYNs pass it by.

    What ifb lets go skips the filters of the device that it came by, and with them that hook behind
    them (``net/core/dev.c``, __netif_receive_skb_core, skip_classify).

    :param side: on which the filters stand.
    """
    chains: list[IngressChain] = []
    if side == INGRESS:
        with suppress(SynplugError):  # without nf_tables nobody has one
            chains = ingress_chains()
    for device in devices:
        names = sorted(chain.name for chain in chains if chain.sees(device.name))
        yield from ingress_hook_remark(device.name, names)


def tcx_remarks(devices: Iterable[Device], side: int) -> Iterator[str]:
    """On the programs of tcx, which come before all filters (``net/core/dev.c``, tcx_run)."""
    for device in devices:
        yield from tcx_remark(device.name, tcx_programs(device.index, side))
