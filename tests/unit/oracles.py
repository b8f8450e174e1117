"""Second opinions: what a text or packet means, told by other means than the product's.

Written from the RFCs, the man pages and the kernel's headers, with socket.inet_pton(3), Decimal
and slices; plain, slow, and without a word of synplug's own code.
"""

from __future__ import annotations

import socket
import sys
from decimal import Decimal

from synplug.model import Endpoint

_DIGITS = frozenset("0123456789")
_UNITS = {"ms": "0.001", "s": "1", "m": "60", "h": "3600", "": "1"}


def is_number(text: str) -> bool:
    """Whether it is nothing but ASCII digits."""
    return bool(text) and _DIGITS.issuperset(text)


def endpoint(text: str) -> tuple[int, bytes | None] | None:
    """Port and packed address (None: any) of PORT, ``*:PORT``, ``IPV4:PORT``, ``[IPV6]:PORT``."""
    host, colon, port = text.strip().rpartition(":")
    if not is_number(port) or len(port) > 5 or not 0 < int(port) < 65_536:
        return None
    if not colon or host == "*":
        return int(port), None
    family, bare = socket.AF_INET, host
    if host.startswith("[") and host.endswith("]"):
        family, bare = socket.AF_INET6, host[1:-1]
    try:
        return int(port), socket.inet_pton(family, bare)
    except (OSError, ValueError, UnicodeError):
        return None


def packed(found: Endpoint) -> tuple[int, bytes | None]:
    """An endpoint in the terms of :func:`endpoint`."""
    return found.port, found.address.packed if found.address else None


def seconds(text: str) -> Decimal | None:
    """The seconds of ``500ms``, ``2s``, ``1m``, ``.5h``, ``3``; up to a day."""
    text = text.strip()
    unit = next(unit for unit in _UNITS if text.endswith(unit))
    number = text.removesuffix(unit).rstrip()
    whole, point, part = number.partition(".")
    if (whole and not is_number(whole)) or (point and not is_number(part)) or not (whole or part):
        return None
    found = Decimal(number) * Decimal(_UNITS[unit])
    return found if found <= 24 * 3600 else None


def little(data: bytes) -> int:
    """An integer in host byte order."""
    return int.from_bytes(data, sys.byteorder)


def records(data: bytes, head: int) -> list[bytes]:
    """Netlink's runs: records with their length in front, aligned to four bytes (netlink(7)).

    :param head: bytes of a header: 4 with a 16-bit length for attributes, 16 with a 32-bit one
        for messages. The first record that does not fit ends the run.
    """
    found = []
    while len(data) >= head:
        length = little(data[: 2 if head == 4 else 4])
        if not head <= length <= len(data):
            break
        found.append(data[:length])
        data = data[length + -length % 4 :]
    return found


def attributes(data: bytes) -> list[tuple[int, bytes]]:
    """Kind, without the two flag bits, and payload."""
    return [(little(found[2:4]) % 0x4000, found[4:]) for found in records(data, 4)]


#: Transports other than TCP, by the numbers of IANA's registry.


def flow(packet: bytes) -> tuple[bytes, int] | None:
    """Addresses and ports, and the sequence number, of a TCP segment (RFC 791, 8200, 9293).

    None where the packet ends before they are all there, or they cannot be found; no bytes and 0
    where it is no SYN, but something else.
    """
    if not packet:
        return None
    if packet[0] // 16 == 4:
        if len(packet) < 20 or packet[0] % 16 == 0:
            return None
        number, addresses, segment = packet[9], packet[12:20], packet[packet[0] % 16 * 4 :]
    elif packet[0] // 16 == 6:
        addresses, (number, segment) = packet[8:40], _behind_extensions(packet)
    else:
        return None
    if number == -1:
        return None
    if number != 6:
        return b"", 0
    is_impossible = packet[0] // 16 == 4 and packet[0] % 16 < 5
    if is_impossible or len(segment) < 14:
        return None
    flags = f"{segment[13]:08b}"  # CWR ECE URG ACK PSH RST SYN FIN
    if flags[3] + flags[5:] != "0010":
        return b"", 0
    return addresses + segment[:4], int.from_bytes(segment[4:8], "big")


def _behind_extensions(packet: bytes) -> tuple[int, bytes]:
    """What follows the IPv6 header and its extension headers: its number, and its bytes."""
    if len(packet) < 40:
        return -1, b""
    number, rest = packet[6], packet[40:]
    while number in (0, 43, 44, 51, 60, 135, 139, 140):
        if len(rest) < 2:
            return -1, b""
        size = {44: 8, 51: 8 + 4 * rest[1]}.get(number, 8 + 8 * rest[1])
        number, rest = rest[0], rest[size:]
    return number, rest
