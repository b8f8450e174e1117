"""Routes of the table *local*, as rtnetlink(7) messages: what the machine answers for.

Source of the formats: ``include/uapi/linux/rtnetlink.h``, ``include/uapi/linux/filter.h``.
"""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import ip_network

from synplug.errors import KernelError
from synplug.kernel.abi import architecture, attach_filter_option
from synplug.kernel.flower import Prefix
from synplug.kernel.netlink import NetlinkSocket
from synplug.kernel.netlink_codec import attributes
from synplug.model import Family

NEWROUTE, DELROUTE, _GETROUTE = 24, 25, 26
_RTMSG = struct.Struct("=BBBBBBBBI")
_DESTINATION = 1
_TABLE_LOCAL, _TYPE_LOCAL = 255, 2
#: Offsets in a message of rtnetlink: of its kind, of rtm_table and rtm_type behind the header.
_KIND_AT, _TABLE_AT, _TYPE_AT = 4, 16 + 4, 16 + 7

_LOAD_HALF, _LOAD_BYTE, _JUMP_EQUAL, _RETURN = 0x28, 0x30, 0x15, 0x06
_ALL = 0xFFFFFFFF


def local_prefixes(asked: NetlinkSocket) -> set[Prefix]:
    """The table *local* of both IP versions. The kernel looks at no other: a router has many."""
    found: set[Prefix] = set()
    for family in Family:
        body = _RTMSG.pack(family.af, 0, 0, 0, _TABLE_LOCAL, 0, 0, _TYPE_LOCAL, 0)
        try:
            routes = asked.dump("list the local addresses", _GETROUTE, body)
        except KernelError as error:
            if error.errno != errno.ENOENT:  # the table is made with the first address
                raise
            continue
        for route in routes:
            af, length, _, _, table, _, _, kind, _ = _RTMSG.unpack_from(route)
            if (af, table, kind) == (family.af, _TABLE_LOCAL, _TYPE_LOCAL):
                size = 4 if family is Family.IPV4 else 16
                to = dict(attributes(route[_RTMSG.size :])).get(_DESTINATION, bytes(size))
                found.add(ip_network((bytes(to), length)))
    return found


def hear_of_local_routes_alone(sock: socket.socket) -> None:
    """Have the kernel keep the notices of all other routes to itself.

    A router's routes change all the time, and nobody is to be woken by them. A filter of bpf(4)
    sees a message as it lies in memory, and reads numbers in network order.
    """
    import ctypes

    new, gone = (socket.htons(kind) for kind in (NEWROUTE, DELROUTE))
    instructions = (
        (_LOAD_HALF, 0, 0, _KIND_AT),
        (_JUMP_EQUAL, 1, 0, new),
        (_JUMP_EQUAL, 0, 4, gone),
        (_LOAD_BYTE, 0, 0, _TABLE_AT),
        (_JUMP_EQUAL, 0, 3, _TABLE_LOCAL),
        (_LOAD_BYTE, 0, 0, _TYPE_AT),
        (_JUMP_EQUAL, 0, 1, _TYPE_LOCAL),
        (_RETURN, 0, 0, _ALL),
        (_RETURN, 0, 0, 0),
    )
    program = b"".join(struct.pack("=HBBI", *words) for words in instructions)
    kept = ctypes.create_string_buffer(program, len(program))
    sock.setsockopt(
        socket.SOL_SOCKET,
        attach_filter_option(architecture()),
        struct.pack("@HP", len(instructions), ctypes.addressof(kept)),
    )
