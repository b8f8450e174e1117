"""Rules of legacy iptables, as the kernel's structures.

Source: ``include/uapi/linux/netfilter_ipv4/ip_tables.h``, ``…_ipv6/ip6_tables.h``,
``…/netfilter/x_tables.h``, ``xt_tcpudp.h``, ``xt_mark.h``, ``xt_comment.h``, ``xt_NFQUEUE.h``;
iptables-extensions(8).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from synplug.model import Address, Family

_ALIGNMENT = struct.calcsize("@BQ") - 8
_HEAD = struct.Struct("@H29sB")  # of xt_entry_match and xt_entry_target
_ANY_PORT = (0, 65_535)
_FLAGS_MASK, _FLAGS_SYN = 0x17, 0x02  # FIN, SYN, RST, ACK
_IPPROTO_TCP = 6
_IP6T_F_PROTO = 1
_NFQUEUE_BYPASS = 1


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


@dataclass(frozen=True, kw_only=True, slots=True)
class SynMatch:
    """Bare SYNs (``--tcp-flags FIN,SYN,RST,ACK SYN``) without the mark of a probe.

    :param comment: at most 255 bytes are kept.
    :param port: destination port; None for any. :param address: destination; None for any.
    :param source_ports: the first and the last one.
    """

    probe_mark: int
    comment: str
    port: int | None = None
    address: Address | None = None
    source_ports: tuple[int, int] = _ANY_PORT

    def rule(self, family: Family, target: bytes) -> bytes:
        """The whole rule: ``struct ipt_entry`` or ``ip6t_entry``, matches, target."""
        ports = (self.port, self.port) if self.port is not None else _ANY_PORT
        tcp = struct.pack("@4H4B", *self.source_ports, *ports, 0, _FLAGS_MASK, _FLAGS_SYN, 0)
        matches = (
            _extension("tcp", 0, tcp)
            + _extension("mark", 1, struct.pack("@IIB", self.probe_mark, 0xFFFFFFFF, 1))
            + _extension("comment", 0, self.comment.encode()[:255].ljust(256, b"\0"))
        )
        return _entry(family, self.address, len(matches), len(target)) + matches + target


def _entry(family: Family, address: Address | None, matches_size: int, target_size: int) -> bytes:
    width = 4 if family is Family.IPV4 else 16
    packed, mask = (address.packed, b"\xff" * width) if address else (b"", b"")
    addresses = struct.pack(
        f"@{width}s{width}s{width}s{width}s64x", b"", packed, b"", mask
    )  # source and destination, then their masks; no interfaces
    if family is Family.IPV4:
        head = addresses + struct.pack("@HBB", _IPPROTO_TCP, 0, 0)
    else:
        head = addresses + struct.pack("@HBBB3x", _IPPROTO_TCP, 0, _IP6T_F_PROTO, 0)
    size = struct.calcsize(f"@{len(head)}sIHHIQQ")
    offset = size + matches_size
    return struct.pack(f"@{len(head)}sIHHIQQ", head, 0, offset, offset + target_size, 0, 0, 0)
