"""Rules of legacy iptables, as the kernel's structures.

Source: ``include/uapi/linux/netfilter_ipv4/ip_tables.h``, ``…_ipv6/ip6_tables.h``,
``…/netfilter/x_tables.h``, ``xt_tcpudp.h``, ``xt_mark.h``, ``xt_comment.h``, ``xt_addrtype.h``,
``xt_NFQUEUE.h``;
iptables-extensions(8).
"""

from __future__ import annotations

import struct

from synplug.model import Address, Family
from synplug.record import Record

_ALIGNMENT = struct.calcsize("@BQ") - 8
_HEAD = struct.Struct("@H29sB")  # of xt_entry_match and xt_entry_target
_ANY_PORT = (0, 65_535)
_FLAGS_MASK, _FLAGS_SYN = 0x17, 0x02  # FIN, SYN, RST, ACK
_IPPROTO_TCP = 6
_IP6T_F_PROTO = 1
_NFQUEUE_BYPASS = 1
_ADDRTYPE_LOCAL = 1 << 2
_INVERT_INPUT_DEVICE = 0x01
_LOOPBACK = b"lo\0"


def _extension(name: str, revision: int, data: bytes) -> bytes:
    """A match or a target."""
    size = -(-(_HEAD.size + len(data)) // _ALIGNMENT) * _ALIGNMENT
    return (_HEAD.pack(size, name.encode(), revision) + data).ljust(size, b"\0")


def queue_target(number: int) -> bytes:
    """``-j NFQUEUE --queue-num N --queue-bypass``: ``struct xt_NFQ_info_v3``."""
    return _extension("NFQUEUE", 3, struct.pack("@HHH", number, 1, _NFQUEUE_BYPASS))


def jump_target(chain: str) -> bytes:
    """``-j CHAIN``; libiptc turns the name into the chain's offset."""
    return _extension(chain, 0, bytes(4))


class SynMatch(Record):
    """Bare SYNs (``--tcp-flags FIN,SYN,RST,ACK SYN``) without the mark of a probe.

    :param comment: at most 255 bytes are kept.
    :param port: destination port; None for any. :param address: destination; None for any.
    :param source_ports: the first and the last one.
    :param to_this_host: ``-m addrtype --dst-type LOCAL``.
    :param not_from_loopback: ``! -i lo``.
    """

    probe_mark: int
    comment: str
    port: int | None = None
    address: Address | None = None
    source_ports: tuple[int, int] = _ANY_PORT
    to_this_host: bool = False
    not_from_loopback: bool = False

    def rule(self, family: Family, target: bytes) -> bytes:
        """The whole rule: ``struct ipt_entry`` or ``ip6t_entry``, matches, target."""
        ports = (self.port, self.port) if self.port is not None else _ANY_PORT
        tcp = struct.pack("@4H4B", *self.source_ports, *ports, 0, _FLAGS_MASK, _FLAGS_SYN, 0)
        matches = (
            _extension("tcp", 0, tcp)
            + _extension("mark", 1, struct.pack("@IIB", self.probe_mark, 0xFFFFFFFF, 1))
            + _extension("comment", 0, self.comment.encode()[:255].ljust(256, b"\0"))
        )
        if self.to_this_host:  # source types, destination types, flags
            matches += _extension("addrtype", 1, struct.pack("@HHI", 0, _ADDRTYPE_LOCAL, 0))
        device = _LOOPBACK if self.not_from_loopback else b""
        return _entry(family, self.address, device, len(matches), len(target)) + matches + target


def _entry(
    family: Family, address: Address | None, not_device: bytes, matches_size: int, target_size: int
) -> bytes:
    width = 4 if family is Family.IPV4 else 16
    packed, mask = (address.packed, b"\xff" * width) if address else (b"", b"")
    device_mask, inverted = b"\xff" * len(not_device), _INVERT_INPUT_DEVICE if not_device else 0
    addresses = struct.pack(
        f"@{width}s{width}s{width}s{width}s16s16x16s16x",
        *(b"", packed, b"", mask),
        *(not_device, device_mask),
    )  # source and destination, then their masks; input device, and output; their masks
    if family is Family.IPV4:
        head = addresses + struct.pack("@HBB", _IPPROTO_TCP, 0, inverted)
    else:
        head = addresses + struct.pack("@HBBB3x", _IPPROTO_TCP, 0, _IP6T_F_PROTO, inverted)
    size = struct.calcsize(f"@{len(head)}sIHHIQQ")
    offset = size + matches_size
    return struct.pack(f"@{len(head)}sIHHIQQ", head, 0, offset, offset + target_size, 0, 0, 0)
