"""Expressions and rules of nftables, as netlink attributes.

Source: ``include/uapi/linux/netfilter/nf_tables.h``; nft(8).
"""

from __future__ import annotations

import struct

from synplug.kernel.netlink_codec import attribute, be16, be32, nested, text
from synplug.model import Endpoint, Hook

_NFPROTO_IPV4, _NFPROTO_IPV6 = 2, 10
_RTN_LOCAL = 2
_LOOPBACK_INDEX = 1
_REGISTER = 1
_META_NFPROTO, _META_L4PROTO, _META_MARK, _META_IIF = 15, 16, 3, 4
_FIB_RESULT_ADDRTYPE, _FIB_DADDR = 3, 0x2
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_EQUAL, _NOT_EQUAL = 0, 1
_JUMP = -3
_IPPROTO_TCP = 6
_QUEUE_FLAG_BYPASS = 0x1
#: The source port's low bits say little (Linux gives connect(2) even ports only), these do.
BALANCE_SHIFT = 4


def expression(name: str, *data: bytes) -> bytes:
    """An element of a rule."""
    return nested(1, text(1, name), nested(2, *data))


def _meta(key: int) -> bytes:
    return expression("meta", be32(1, _REGISTER), be32(2, key))


def _payload(base: int, offset: int, length: int) -> bytes:
    return expression(
        "payload", be32(1, _REGISTER), be32(2, base), be32(3, offset), be32(4, length)
    )


def _mask(mask: bytes) -> bytes:
    return expression(
        "bitwise",
        be32(1, _REGISTER),
        be32(2, _REGISTER),
        be32(3, len(mask)),
        nested(4, attribute(1, mask)),
        nested(5, attribute(1, bytes(len(mask)))),
    )


def _compare(operation: int, value: bytes) -> bytes:
    return expression("cmp", be32(1, _REGISTER), be32(2, operation), nested(3, attribute(1, value)))


def jump(chain: str) -> bytes:
    """On to a chain."""
    verdict = nested(2, be32(1, _JUMP), text(2, chain))
    return expression("immediate", be32(1, 0), nested(2, verdict))


def native_queue(number: int) -> bytes:
    """Nft's own queue statement (``nft_queue``), with bypass."""
    return expression("queue", be16(1, number), be16(2, 1), be16(3, _QUEUE_FLAG_BYPASS))


def compat_queue(number: int) -> bytes:
    """The xt target NFQUEUE, revision 3, through nft's compat layer, with bypass.

    ``struct xt_NFQ_info_v3`` (``include/uapi/linux/netfilter/xt_NFQUEUE.h``), padded to 8 bytes.
    """
    info = struct.pack("=HHH2x", number, 1, _QUEUE_FLAG_BYPASS)
    return expression("target", text(1, "NFQUEUE"), be32(2, 3), attribute(3, info))


def bare_syn(probe_mark: int) -> bytes:
    """TCP, flags & (FIN|SYN|RST|ACK) == SYN, without the probe's mark."""
    return b"".join(
        (
            _meta(_META_L4PROTO),
            _compare(_EQUAL, bytes((_IPPROTO_TCP,))),
            _payload(_TRANSPORT_HEADER, 13, 1),
            _mask(b"\x17"),
            _compare(_EQUAL, b"\x02"),
            _meta(_META_MARK),
            _compare(_NOT_EQUAL, struct.pack("=I", probe_mark)),
        )
    )


def _to_this_host() -> bytes:
    """``fib daddr type local``."""
    fib = be32(1, _REGISTER), be32(2, _FIB_RESULT_ADDRTYPE), be32(3, _FIB_DADDR)
    return expression("fib", *fib) + _compare(_EQUAL, struct.pack("=I", _RTN_LOCAL))


def _not_from_loopback() -> bytes:
    return _meta(_META_IIF) + _compare(_NOT_EQUAL, struct.pack("=I", _LOOPBACK_INDEX))


def chains_of(hook: Hook) -> dict[str, bytes]:
    """The base chains, and what each matches besides.

    What local clients send passes ``output``; over loopback it would come again to ``prerouting``.
    """
    if hook is Hook.PREROUTING:
        return {"prerouting": _not_from_loopback(), "output": b""}
    return {hook.value: b""}


def sent_to(endpoint: Endpoint, hook: Hook) -> bytes:
    """What is sent to the endpoint, as seen at this hook."""
    match = b""
    if endpoint.address is not None:
        proto = _NFPROTO_IPV4 if endpoint.address.version == 4 else _NFPROTO_IPV6
        match += _meta(_META_NFPROTO) + _compare(_EQUAL, bytes((proto,)))
    address = endpoint.exact_address
    if address is not None:
        offset = 16 if address.version == 4 else 24
        match += _payload(_NETWORK_HEADER, offset, len(address.packed))
        match += _compare(_EQUAL, address.packed)
    elif hook is Hook.PREROUTING:  # where what is for others passes, too
        match += _to_this_host()
    return (
        match
        + _payload(_TRANSPORT_HEADER, 2, 2)
        + _compare(_EQUAL, endpoint.port.to_bytes(2, "big"))
    )


def one_share(index: int, shares: int) -> bytes:
    """The connections whose source port falls to queue *index* of *shares* (a power of two)."""
    if shares == 1:
        return b""
    mask = ((shares - 1) << BALANCE_SHIFT).to_bytes(2, "big")
    return (
        _payload(_TRANSPORT_HEADER, 0, 2)
        + _mask(mask)
        + _compare(_EQUAL, (index << BALANCE_SHIFT).to_bytes(2, "big"))
    )


def comment(words: str) -> bytes:
    """A comment as nft(8) shows it (libnftnl's NFTNL_UDATA_RULE_COMMENT)."""
    data = words.encode()[:120] + b"\0"
    return attribute(7, bytes((0, len(data))) + data)
