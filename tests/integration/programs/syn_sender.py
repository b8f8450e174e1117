"""Sends bare SYNs from many made-up clients: ``python syn_sender.py DEVICE MAC TO PORT COUNT``.

Each comes from an address of 198.18.0.0/15 (RFC 2544, for tests) and a port of its own, so each
is a connection of its own. Prints how many were sent.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
import time

_ETHERTYPE_IP = 0x0800
_PORTS_PER_ADDRESS = 1 << 14
_BREATH_S = 0.001


def main() -> None:
    """Send them."""
    device, mac, to, port, count = sys.argv[1:6]
    sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sender.bind((device, 0))
    ethernet = bytes.fromhex(mac.replace(":", "")) + bytes(6) + _ETHERTYPE_IP.to_bytes(2, "big")
    destination = socket.inet_aton(to)
    for number in range(int(count)):
        address, offset = divmod(number, _PORTS_PER_ADDRESS)
        source = (0xC6120000 + address).to_bytes(4, "big")
        packet = ethernet + _packet(source, destination, 20000 + offset, int(port))
        while not _sent(sender, packet):
            time.sleep(_BREATH_S)
    print(count)


def _sent(sender: socket.socket, packet: bytes) -> bool:
    """Whether the other end of a veth took it: its backlog may be full (netdev_max_backlog)."""
    try:
        sender.send(packet)
    except OSError as error:
        if error.errno != errno.ENOBUFS:
            raise
        return False
    return True


def _packet(source: bytes, destination: bytes, sport: int, dport: int) -> bytes:
    """An IPv4 packet with a SYN (RFC 791, RFC 9293)."""
    tcp = struct.pack("!HHIIBBHHH", sport, dport, 1, 0, 5 << 4, 0x02, 64240, 0, 0)
    pseudo = source + destination + struct.pack("!BBH", 0, 6, len(tcp))
    tcp = tcp[:16] + _checksum(pseudo + tcp).to_bytes(2, "big") + tcp[18:]
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40, 0, 0x4000, 64, 6, 0, source, destination)
    return ip[:10] + _checksum(ip).to_bytes(2, "big") + ip[12:] + tcp


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


main()
