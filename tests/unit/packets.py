"""IP packets with a bare SYN in them."""

from __future__ import annotations

import struct
from ipaddress import ip_address


def tcp(source: int = 40_000, destination: int = 80, flags: int = 0x02, sequence: int = 7) -> bytes:
    """A TCP header without options."""
    return struct.pack("!HHIIBBHHH", source, destination, sequence, 0, 5 << 4, flags, 0, 0, 0)


def ipv4(payload: bytes, source: str, destination: str, *, options: bytes = b"") -> bytes:
    """An IPv4 packet; *options* in whole words."""
    length = 20 + len(options)
    head = struct.pack(
        "!BBHHHBBH4s4s",
        4 << 4 | length // 4,
        0,
        length + len(payload),
        0,
        0,
        64,
        6,
        0,
        ip_address(source).packed,
        ip_address(destination).packed,
    )
    return head + options + payload


def ipv6(
    payload: bytes, source: str, destination: str, *, extensions: tuple[tuple[int, bytes], ...] = ()
) -> bytes:
    """An IPv6 packet; *extensions* as header number and content behind the next-header byte."""
    numbers = [number for number, _ in extensions] + [6]
    chain = b"".join(
        bytes((following,)) + content
        for (_, content), following in zip(extensions, numbers[1:], strict=True)
    )
    head = struct.pack("!IHBB", 6 << 28, len(chain) + len(payload), numbers[0], 64)
    addresses = ip_address(source).packed + ip_address(destination).packed
    return head + addresses + chain + payload


def extension(words: int = 0) -> bytes:
    """An extension header of (words + 1) * 8 bytes, without its next-header byte."""
    return bytes((words,)) + bytes((words + 1) * 8 - 2)
