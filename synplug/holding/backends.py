"""Which backends to try, in which order."""

from __future__ import annotations

from collections.abc import Callable

from synplug.holding.base import Backend
from synplug.holding.gates import NftGate
from synplug.holding.nfqueue import QueueBackend
from synplug.model import BackendName, HoldSpec, Hook

MakeBackend = Callable[[HoldSpec], Backend]


def nfqueue(spec: HoldSpec) -> Backend:
    """Netfilter queues behind an nftables rule."""
    return QueueBackend(spec, NftGate(spec))


def nfqueue_iptables(spec: HoldSpec) -> Backend:
    """Netfilter queues behind legacy iptables rules."""
    from synplug.holding.iptables_gate import IptablesGate

    return QueueBackend(spec, IptablesGate(spec))


def plug(spec: HoldSpec) -> Backend:
    """The plug qdisc of an ifb device."""
    from synplug.holding.plug import PlugBackend

    return PlugBackend(spec)


def plug_objections() -> list[str]:
    """Why ``auto`` would not take a plug in this network namespace, whatever is held; only looks.

    :raises SynplugError: that cannot be seen.
    """
    from synplug.holding.diversion import Diversion
    from synplug.holding.ledger import DEVICE_PREFIX
    from synplug.kernel.traffic_control import TrafficControl

    control = TrafficControl(DEVICE_PREFIX)
    try:
        return Diversion(HoldSpec(endpoints=(), run_id="0" * 8), control).objections()
    finally:
        control.close()


_MAKERS: dict[BackendName, tuple[MakeBackend, ...]] = {
    BackendName.AUTO: (nfqueue, nfqueue_iptables, plug),
    BackendName.NFQUEUE: (nfqueue,),
    BackendName.NFQUEUE_IPTABLES: (nfqueue_iptables,),
    BackendName.PLUG: (plug,),
}


def backends_for(name: BackendName, hook: Hook = Hook.INPUT) -> tuple[MakeBackend, ...]:
    """The makers of the backends to try: the first that this kernel has is taken.

    :param hook: the plug knows no hook: it holds what is sent to this host.
    """
    if hook is Hook.INPUT:
        return _MAKERS[name]
    return tuple(make for make in _MAKERS[name] if make is not plug)
