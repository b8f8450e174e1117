"""Filters of tc-flower(8) and tc-fw(8) for SYNs, as rtnetlink messages.

pyroute2 has no flower. Source of the formats: ``include/uapi/linux/pkt_cls.h``,
``include/uapi/linux/tc_act/tc_mirred.h``, ``net/sched/cls_flower.c``. Its dissector finds the TCP
header behind IP options and IPv6 extension headers by itself, which u32 does not.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import NamedTuple

from synplug.kernel.netlink_codec import attribute, attributes, be16, nested, text
from synplug.model import Endpoint
from synplug.record import Record

#: The sides of clsact: TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS); an ingress qdisc has the first.
INGRESS, EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
#: struct tcmsg: family, padding, device, handle, parent, info.
TCMSG = struct.Struct("=BBHiIII")
_MIRRED = struct.Struct("=IIiiiiI")  # index, capab, action, refcnt, bindcnt, eaction, ifindex
_GACT = struct.Struct("=IIiii")

_KIND, _OPTIONS = 1, 2
FLOWER, FW = "flower", "fw"
_ACT, _FW_ACT = 3, 4
_ACT_KIND, _ACT_OPTIONS = 1, 2
_ETH_P_ALL = 0x0003
_ETH_TYPE, _IP_PROTO = 8, 9
_IPV4_SRC, _IPV4_SRC_MASK, _IPV4_DST, _IPV4_DST_MASK = 10, 11, 12, 13
_IPV6_SRC, _IPV6_SRC_MASK, _IPV6_DST, _IPV6_DST_MASK = 14, 15, 16, 17
_TCP_SRC, _TCP_DST = 18, 19
_VLAN_ID, _VLAN_ETH_TYPE = 23, 25
_TCP_FLAGS, _TCP_FLAGS_MASK = 71, 72
_MIRRED_PARMS, _GACT_PARMS = 2, 2
_STOLEN, _OK, _EGRESS_REDIRECT = 4, 0, 1
_FIN, _SYN, _RST, _ACK = 0x01, 0x02, 0x04, 0x10
_ETHERTYPE = {4: 0x0800, 6: 0x86DD}
_ETH_P_8021Q = 0x8100
#: Of filters that may look at a SYN; in a frame with a priority tag their protocol is the tag's.
PROTOCOLS = frozenset({_ETH_P_ALL, _ETH_P_8021Q, *_ETHERTYPE.values()})
_TCP = 6

Prefix = IPv4Network | IPv6Network


class Installed(NamedTuple):
    """A filter as the kernel shows it.

    :param info: preference and protocol, as struct tcmsg has them.
    :param target: of a flower that redirects: the device, by index. The kernel shows 0 once that is
        gone (``net/sched/act_mirred.c``, mirred_device_event).
    """

    device: int
    parent: int
    handle: int
    info: int
    kind: str
    target: int = 0

    @property
    def preference(self) -> int:
        """Filters of a lower one are looked at first."""
        return self.info >> 16

    @property
    def protocol(self) -> int:
        """Of the frames that it looks at."""
        return int.from_bytes(struct.pack("=H", self.info & 0xFFFF), "big")

    def place(self) -> bytes:
        """The body of RTM_DELTFILTER; with its kind, so that one of another in its place stays."""
        header = TCMSG.pack(0, 0, 0, self.device, self.handle, self.parent, self.info)
        return header + text(_KIND, self.kind)


def syns_to(
    endpoints: Iterable[Endpoint], local: Collection[Prefix], own: Collection[Prefix] = ()
) -> Iterator[SynFilter]:
    """The SYNs that these endpoints would get here; none to an address that is elsewhere.

    :param local: the addresses that this machine answers for.
    :param own: more of them, to be taken only where they are named.
    """
    for endpoint in endpoints:
        exact = endpoint.exact_address
        versions = {family.value for family in endpoint.families}
        if exact is None:
            prefixes = {prefix for prefix in local if prefix.version in versions}
        else:
            is_here = any(exact in prefix for prefix in (*local, *own))
            prefixes = {ip_network(exact)} if is_here else set()
        for prefix in prefixes:
            yield SynFilter(destination=prefix, port=endpoint.port)


def filters_at(device: int, parent: int) -> bytes:
    """The body of RTM_GETTFILTER for all filters there."""
    return TCMSG.pack(0, 0, 0, device, 0, parent, 0)


def installed(answer: memoryview) -> Installed:
    """A filter in the answer to that."""
    _, _, _, device, handle, parent, info = TCMSG.unpack_from(answer)
    found = dict(attributes(answer[TCMSG.size :]))
    kind = bytes(found.get(_KIND, b"")).rstrip(b"\0").decode(errors="replace")
    options = found.get(_OPTIONS, memoryview(b""))
    return Installed(device, parent, handle, info, kind, _target(options) if kind == FLOWER else 0)


def _target(options: memoryview) -> int:
    """Where the one action of a flower's redirects to; 0: it is none that does."""
    for _, action in attributes(dict(attributes(options)).get(_ACT, memoryview(b""))):
        shown = dict(attributes(action))
        if bytes(shown.get(_ACT_KIND, b"")) == b"mirred\0":
            parameters = dict(attributes(shown.get(_ACT_OPTIONS, memoryview(b""))))
            packed = parameters.get(_MIRRED_PARMS, memoryview(b""))
            if len(packed) >= _MIRRED.size:
                return int(_MIRRED.unpack_from(packed)[-1])
    return 0


class SynFilter(Record):
    """SYNs to a port of these addresses; from this one source alone, if it is given.

    :param source: address and port of one connection, to be let through.
    :param is_tagged: in frames with a priority and no VLAN (id 0, IEEE 802.1Q), which a device
        brings as if they had no tag, and only those. To a filter their protocol is that of the
        tag (``include/linux/if_vlan.h``, skb_protocol).
    """

    destination: Prefix
    port: int
    source: tuple[Prefix, int] | None = None
    is_tagged: bool = False

    @property
    def ethertype(self) -> int:
        """The protocol of the frames that it looks at."""
        return _ETH_P_8021Q if self.is_tagged else _ETHERTYPE[self.destination.version]


def place(
    syns: SynFilter, *, device: int, preference: int, handle: int, parent: int = INGRESS
) -> Installed:
    """Where a filter is to stand. A preference takes filters of one protocol only."""
    in_network_order = struct.unpack("=H", syns.ethertype.to_bytes(2, "big"))[0]
    return Installed(device, parent, handle, preference << 16 | in_network_order, FLOWER)


def message(syns: SynFilter, where: Installed, action: bytes) -> bytes:
    """The body of RTM_NEWTFILTER."""
    return where.place() + nested(_OPTIONS, _keys(syns), action)


def mark_place(mark: int, *, device: int, preference: int, parent: int = INGRESS) -> Installed:
    """Where a filter for packets with a mark is to stand."""
    in_network_order = struct.unpack("=H", _ETH_P_ALL.to_bytes(2, "big"))[0]
    return Installed(device, parent, mark, preference << 16 | in_network_order, FW)


def mark_message(where: Installed) -> bytes:
    """The body of RTM_NEWTFILTER: packets with that mark are looked at no further."""
    return where.place() + nested(_OPTIONS, _accept(_FW_ACT))


def redirect(device: int) -> bytes:
    """The action that sends a packet out of *device*, instead of where it was going."""
    parameters = _MIRRED.pack(0, 0, _STOLEN, 0, 0, _EGRESS_REDIRECT, device)
    return _action("mirred", attribute(_MIRRED_PARMS, parameters))


def accept() -> bytes:
    """The action that ends the search for filters."""
    return _accept(_ACT)


def _accept(where: int) -> bytes:
    parameters = attribute(_GACT_PARMS, _GACT.pack(0, 0, _OK, 0, 0))
    return _action("gact", parameters, where)


def _action(kind: str, parameters: bytes, where: int = _ACT) -> bytes:
    return nested(where, nested(1, text(_ACT_KIND, kind), nested(_ACT_OPTIONS, parameters)))


def _keys(found: SynFilter) -> bytes:
    keys = be16(_ETH_TYPE, found.ethertype) + attribute(_IP_PROTO, bytes([_TCP]))
    if found.is_tagged:
        keys += be16(_VLAN_ID, 0)  # the id in the host's order, were it another one
        keys += be16(_VLAN_ETH_TYPE, _ETHERTYPE[found.destination.version])
    keys += be16(_TCP_DST, found.port)
    keys += be16(_TCP_FLAGS, _SYN) + be16(_TCP_FLAGS_MASK, _FIN | _SYN | _RST | _ACK)
    is_v4 = found.destination.version == 4
    to, to_mask = (_IPV4_DST, _IPV4_DST_MASK) if is_v4 else (_IPV6_DST, _IPV6_DST_MASK)
    keys += _address(found.destination, to, to_mask)
    if found.source is not None:
        source, port = found.source
        of, of_mask = (_IPV4_SRC, _IPV4_SRC_MASK) if is_v4 else (_IPV6_SRC, _IPV6_SRC_MASK)
        keys += _address(source, of, of_mask) + be16(_TCP_SRC, port)
    return keys


def _address(prefix: Prefix, kind: int, mask_kind: int) -> bytes:
    return attribute(kind, prefix.network_address.packed) + attribute(
        mask_kind, prefix.netmask.packed
    )
