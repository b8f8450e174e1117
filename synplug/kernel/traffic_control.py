"""Devices, qdiscs and filters: what the plug backend needs of traffic control, through pyroute2.

Source: tc(8), ``net/sched/sch_plug.c``, ``net/sched/act_mirred.c``, ``drivers/net/ifb.c``.
pyroute2 has no flower: filters are messages of our own (:mod:`synplug.kernel.flower`). So is the
list of qdiscs, which is asked for often (:mod:`synplug.kernel.qdiscs`).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection
from ipaddress import ip_network
from itertools import chain
from typing import Any, NamedTuple, TypeVar

from synplug.errors import KernelError, UnsupportedError
from synplug.kernel import flower, routes
from synplug.kernel.flower import Installed, Prefix, SynFilter
from synplug.kernel.netlink import NLM_F_CREATE, NLM_F_EXCL, NetlinkSocket
from synplug.kernel.places import Places
from synplug.kernel.qdiscs import Qdisc, qdiscs
from synplug.kernel.route_socket import RouteSocket, load_library, refused
from synplug.record import Record

_NETLINK_ROUTE = 0
_NEWTFILTER, _DELTFILTER, _GETTFILTER = 44, 45, 46
#: Less than IPV6_MIN_MTU (1280), more than any SYN; ifb does not look at it.
_WITHOUT_IPV6_BYTES = 1000
#: Kinds of ports whose packets come once more, by the device that they belong to.
_PORTS = ("bridge", "bond", "team")
#: The kernel goes on with a dump by position (``net/sched/sch_api.c``, tc_dump_qdisc): where a
#: device has gone in between, it leaves out another one that is there.
_LOOKS = 2
_Found = TypeVar("_Found")
_GONE = (errno.ENOENT, errno.ENODEV, errno.EINVAL, errno.EOPNOTSUPP)


class Device(Record):
    """A network device.

    :param is_ours: an ifb of some run of ours.
    :param is_port: of a bridge, a bond or a team, which gets what it brings.
    :param is_vrf: it is one.
    """

    index: int
    name: str
    is_ours: bool = False
    is_port: bool = False
    is_vrf: bool = False


class PlugState(NamedTuple):
    """What the plug says of itself.

    :param waiting: packets in it. :param passed: that have left it since it was made.
    :param dropped: that did not fit. :param waiting_bytes: of those that wait.
    """

    waiting: int
    passed: int
    dropped: int
    waiting_bytes: int


class TrafficControl:
    """Traffic control in the network namespace of the calling thread.

    :param prefix: of the names of devices that are ours.
    :raises UnsupportedError: pyroute2 is not installed.
    """

    def __init__(self, prefix: str) -> None:
        load_library()
        self._prefix = prefix
        self._route = RouteSocket()
        with refused("open a routing socket"):
            self._netlink = NetlinkSocket(_NETLINK_ROUTE)

    def close(self) -> None:
        """Close the sockets; everything in the kernel stays."""
        self._netlink.close()
        self._route.close()

    # --- devices

    def devices(self) -> list[Device]:
        """All of them that are up, or may be later."""
        found = self._route.dump("list the network devices", lambda route: route.get_links())
        return [
            Device(
                index=link["index"],
                name=link.get_attr("IFLA_IFNAME"),
                is_ours=link.get_attr("IFLA_IFNAME").startswith(self._prefix),
                is_port=link.get_nested("IFLA_LINKINFO", "IFLA_INFO_SLAVE_KIND") in _PORTS,
                is_vrf=link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") == "vrf",
            )
            for link in found
        ]

    def index_of(self, name: str) -> int | None:
        """The index of the device of that name."""
        link = self._route.link("look for a network device", ifname=name)
        return None if link is None else int(link["index"])

    def has_index(self, index: int) -> bool:
        """Whether a device is there, by whatever name."""
        return self._route.link("look for a network device", index=index) is not None

    def is_renamed_ifb(self, index: int) -> bool:
        """Whether it is an ifb with a plug that has none of our names."""
        link = self._route.link("look for a network device", index=index)
        if link is None or link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") != "ifb":
            return False
        has_our_name = link.get_attr("IFLA_IFNAME").startswith(self._prefix)
        return not has_our_name and self.plug_state(index) is not None

    def make_ifb(self, name: str) -> int:
        """Make an ifb device, up; its index.

        With an MTU so small it has no IPv6 of its own (``net/ipv6/addrconf.c``, addrconf_notify):
        its router solicitations and group reports would wait in the plug and count as SYNs.

        :raises UnsupportedError: this kernel has none.
        """
        with self._route.asked(f"make the ifb device {name}") as route:
            route.link("add", ifname=name, kind="ifb", mtu=_WITHOUT_IPV6_BYTES)
        index = self.index_of(name)
        assert index is not None, "it has just been made"
        self.set_up(index)
        return index

    def set_up(self, index: int) -> None:
        """Set it up; nothing happens if it is."""
        with self._route.asked("set the ifb device up") as route:
            route.link("set", index=index, state="up")

    def remove_device(self, index: int) -> None:
        """Remove it; what waits in its qdisc is dropped."""
        with self._route.asked("remove the ifb device") as route:
            route.link("del", index=index)

    def ifb_in_flight(self, index: int) -> int:
        """Packets that an ifb has taken and not yet passed on.

        It counts what it takes as received, what it passes on as sent, and what was not redirected
        to it as dropped (``drivers/net/ifb.c``, ifb_xmit and ifb_ri_tasklet).
        """
        counters = self._counters(index)
        gone = int(counters["tx_packets"]) + int(counters["rx_dropped"])
        return max(0, int(counters["rx_packets"]) - gone)

    def ifb_stranded(self, index: int) -> int:
        """Packets of which the device that they came by was gone when they were passed on."""
        return int(self._counters(index)["tx_dropped"])

    def _counters(self, index: int) -> Any:
        with self._route.asked("read the counters of the ifb device") as route:
            (link,) = route.get_links(index)
        return link.get_attr("IFLA_STATS64")

    def local_prefixes(self) -> set[Prefix]:
        """The addresses that this machine answers for: the table *local* of both IP versions."""
        return self._listed(routes.local_prefixes)

    def addresses(self) -> set[Prefix]:
        """Those that its devices have; of one in a VRF the table *local* does not tell."""
        found = self._route.dump("list the addresses", lambda route: route.get_addr())
        names = (one.get_attr("IFA_LOCAL") or one.get_attr("IFA_ADDRESS") for one in found)
        return {ip_network(name) for name in names}

    # --- the plug

    def make_plug(self, device: int, limit_bytes: int) -> None:
        """Make a plug the root qdisc of *device*: of that limit, and open.

        A new one is plugged, takes only the limit from its options, and with any other action
        than a limit would get a limit of 0 (``net/sched/sch_plug.c``, plug_init).
        """
        with self._route.asked("make a plug qdisc") as route:
            route.tc("add", "plug", device, action="TCQ_PLUG_LIMIT", limit=limit_bytes)
        self.open_plug(device)

    def close_plug(self, device: int) -> None:
        """From here on packets wait."""
        with self._route.asked("close the plug") as route:
            route.tc("change", "plug", device, action="TCQ_PLUG_BUFFER")

    def open_plug(self, device: int) -> None:
        """Everything that waits goes, in order, and nothing waits any more."""
        with self._route.asked("open the plug") as route:
            route.tc("change", "plug", device, action="TCQ_PLUG_RELEASE_INDEFINITE")

    def plug_state(self, device: int) -> PlugState | None:
        """What the root qdisc of *device* says; None when it is no plug, or the device is gone."""
        qdisc = self._qdisc("read the plug's statistics", device, "plug")
        if qdisc is None:
            return None
        return PlugState(qdisc.queued, qdisc.sent, qdisc.dropped, qdisc.queued_bytes)

    def _qdisc(self, action: str, device: int, kind: str) -> Qdisc | None:
        """The qdisc of that kind on that device; None: two looks agree that it has none."""
        for _ in range(_LOOKS):
            for qdisc in self._qdiscs(action):
                if (qdisc.device, qdisc.kind) == (device, kind):
                    return qdisc
        return None

    def _qdiscs(self, action: str) -> list[Qdisc]:
        return self._listed(lambda netlink: qdiscs(netlink, action))

    def _listed(self, ask: Callable[[NetlinkSocket], _Found]) -> _Found:
        """What a dump finds, with another socket where this one has had its last.

        One that the kernel gave up, for want of memory, stays under way: the next is EBUSY
        (``net/netlink/af_netlink.c``, netlink_dump and __netlink_dump_start).
        """
        try:
            return ask(self._netlink)
        except KernelError as error:
            if error.errno != errno.EBUSY:
                raise
        with refused("open a routing socket"):
            another = NetlinkSocket(_NETLINK_ROUTE)
        self._netlink.close()
        self._netlink = another
        return ask(another)

    # --- filters

    def places(self) -> Places:
        """Where filters have a place now; where two looks see none, there is none."""
        looks = (self._qdiscs("list the qdiscs") for _ in range(_LOOKS))
        return Places((one.device, one.kind) for one in chain(*looks))

    def to_send(self, devices: Collection[int]) -> set[int]:
        """Those of them that have something queued to send, in whichever of their qdiscs.

        Of one whose qdiscs the hardware plays (HTB, taprio), the own one does not count it.

        To put in a clsact, or to take it out, drops what is there (``net/sched/sch_api.c``,
        qdisc_graft: dev_deactivate, which resets the qdiscs).
        """
        return {
            one.device
            for one in self._qdiscs("look at what devices have to send")
            if one.device in devices and one.queued
        }

    def make_ingress(self, device: int, *, side: int = flower.INGRESS) -> bool:
        """Make sure that *device* has a place on that side; False: it had.

        :raises UnsupportedError: somebody's ingress qdisc is in the place of a clsact.
        """
        try:
            with self._route.asked("make a clsact qdisc") as route:
                route.tc("add", "clsact", device)
        except KernelError as error:
            if error.errno != errno.EEXIST:
                raise
            if self.places().has(device, side):
                return False
            words = "an ingress qdisc takes the place of the clsact"
            raise UnsupportedError(words, remedy="leave out --loopback-egress") from error
        return True

    def remove_ingress(self, device: int) -> None:
        """Remove the clsact that was made, unless somebody else has put filters there."""
        if any(self.filters(device, parent) for parent in (flower.INGRESS, flower.EGRESS)):
            return
        with self._route.asked("remove the clsact qdisc") as route:
            route.tc("del", "clsact", device)

    def filters(self, device: int, parent: int = flower.INGRESS) -> list[Installed]:
        """The filters there."""
        body = flower.filters_at(device, parent)
        answers = self._listed(lambda net: net.dump("list the filters", _GETTFILTER, body))
        return [found for found in map(flower.installed, answers) if found.handle]

    def add_filter(self, syns: SynFilter, where: Installed, action: bytes) -> None:
        """Add one; its handle is the caller's to choose."""
        self._netlink.acknowledged(
            f"add a filter for port {syns.port}",
            _NEWTFILTER,
            flower.message(syns, where, action),
            flags=NLM_F_CREATE | NLM_F_EXCL,
        )

    def pass_mark(self, where: Installed) -> None:
        """Let packets with a mark pass the filters behind."""
        body = flower.mark_message(where)
        flags = NLM_F_CREATE | NLM_F_EXCL
        self._netlink.acknowledged("add a filter for the mark", _NEWTFILTER, body, flags=flags)

    def remove_filter(self, where: Installed) -> None:
        """Remove it; it may be gone, with its device or by somebody else.

        EOPNOTSUPP: the block there is shared. Such a one takes no filter by its device, and a
        qdisc has the same block as long as it lives: ours is gone (``net/sched/cls_api.c``).
        """
        try:
            self._netlink.acknowledged("remove a filter", _DELTFILTER, where.place())
        except KernelError as error:
            if error.errno not in _GONE:
                raise
