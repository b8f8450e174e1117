"""The netlink codec: attributes and messages.

Source of the formats: ``include/uapi/linux/netlink.h``, netlink(7). Multi-byte fields of the
headers are in host byte order; the payloads of nfnetlink attributes in network byte order.
"""

import errno
import struct
import sys
from collections.abc import Iterator
from typing import NamedTuple

NLMSG_ERROR = 2
NLMSG_DONE = 3
HEADER = struct.Struct("=IHHII")
_NLM_F_CAPPED = 0x100
_NLM_F_ACK_TLVS = 0x200
_NLMSGERR_ATTR_MSG = 1
_NLA_F_NESTED = 0x8000
_NLA_TYPE_MASK = 0x3FFF
_ATTRIBUTE = struct.Struct("=HH")


def attribute(kind: int, payload: bytes) -> bytes:
    """Encode one attribute, padded to four bytes."""
    return _ATTRIBUTE.pack(len(payload) + 4, kind) + payload + bytes(-len(payload) % 4)


def nested(kind: int, *children: bytes) -> bytes:
    """Encode an attribute that contains attributes."""
    return attribute(kind | _NLA_F_NESTED, b"".join(children))


def text(kind: int, value: str) -> bytes:
    """Encode a string attribute, with its terminating NUL."""
    return attribute(kind, value.encode() + b"\0")


def be16(kind: int, value: int) -> bytes:
    """Encode a 16-bit attribute in network byte order."""
    return attribute(kind, value.to_bytes(2, "big"))


def be32(kind: int, value: int) -> bytes:
    """Encode a 32-bit attribute in network byte order; negative values as two's complement."""
    return attribute(kind, (value & 0xFFFFFFFF).to_bytes(4, "big"))


def attributes(data: bytes | memoryview) -> Iterator[tuple[int, memoryview]]:
    """Decode a run of attributes as ``(kind, payload)``.

    Stops at the first attribute whose length does not fit what is left, as the kernel's own
    ``nla_for_each_attr`` does, so hostile or truncated input ends the walk and never loops.
    """
    view = memoryview(data)
    offset = 0
    while len(view) - offset >= 4:
        length, kind = _ATTRIBUTE.unpack_from(view, offset)
        if length < 4 or length > len(view) - offset:
            return
        yield kind & _NLA_TYPE_MASK, view[offset + 4 : offset + length]
        offset += (length + 3) & ~3


class Message(NamedTuple):
    """One netlink message: its type, flags, sequence number and the bytes behind the header."""

    kind: int
    flags: int
    sequence: int
    body: memoryview


def messages(data: bytes | memoryview) -> Iterator[Message]:
    """Decode a datagram; stops at the first message whose length does not fit."""
    view = memoryview(data)
    offset = 0
    while len(view) - offset >= 16:
        length, kind, flags, sequence, _ = HEADER.unpack_from(view, offset)
        if length < 16 or length > len(view) - offset:
            return
        yield Message(kind, flags, sequence, view[offset + 16 : offset + length])
        offset += (length + 3) & ~3


def error_of(message: Message) -> tuple[int, str]:
    """The positive errno of an NLMSG_ERROR or NLMSG_DONE, and the kernel's own words.

    0 is an acknowledgement, or the good end of a dump. Behind the errno an error repeats the
    request, or its header; the end of a dump does not (``net/netlink/af_netlink.c``).
    """
    if len(message.body) < 4:
        return errno.EBADMSG, "truncated error message"
    code = -int.from_bytes(message.body[:4], sys.byteorder, signed=True)
    words = ""
    start = 4
    if message.kind == NLMSG_ERROR:
        if len(message.body) < 20:
            return code, ""
        (original,) = struct.unpack_from("=I", message.body, 4)
        start = 20 if message.flags & _NLM_F_CAPPED else 4 + ((original + 3) & ~3)
    if message.flags & _NLM_F_ACK_TLVS:
        for kind, payload in attributes(message.body[start:]):
            if kind == _NLMSGERR_ATTR_MSG:
                words = bytes(payload).rstrip(b"\0").decode(errors="replace")
    return code, words
