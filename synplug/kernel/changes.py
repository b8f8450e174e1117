"""Notices of rtnetlink(7): that something of the network namespace is another than it was."""

from __future__ import annotations

import socket
import struct

from synplug.kernel.netlink_codec import Message, messages
from synplug.kernel.routes import hear_of_local_routes_alone

_NETLINK_ROUTE = 0
_RTMGRP_LINK, _RTMGRP_TC, _RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x1, 0x8, 0x10, 0x100
_RTMGRP_IPV4_ROUTE, _RTMGRP_IPV6_ROUTE = 0x40, 0x400
_RTM_NEWQDISC = 36
_TCMSG_IFINDEX = struct.Struct("=4xi")  # of a tcmsg: family, padding, index


def _sets_qdisc_of(message: Message, device: int | None) -> bool:
    if message.kind != _RTM_NEWQDISC or len(message.body) < _TCMSG_IFINDEX.size:
        return False
    index: int = _TCMSG_IFINDEX.unpack_from(message.body)[0]
    return index == device


class Changes:
    """Says that a device, an address, a qdisc or a filter has come or gone: rtnetlink(7).

    Or a route of the table *local*, by which a machine answers for addresses that no device has.
    """

    def __init__(self) -> None:
        groups = _RTMGRP_LINK | _RTMGRP_TC | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR
        groups |= _RTMGRP_IPV4_ROUTE | _RTMGRP_IPV6_ROUTE
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, _NETLINK_ROUTE)
        hear_of_local_routes_alone(self._socket)
        self._socket.bind((0, groups))

    def fileno(self) -> int:
        """The descriptor, readable when something has changed."""
        return self._socket.fileno()

    def take(self, own_plug: int | None = None) -> bool:
        """Whether something has; what it was the caller looks up.

        :param own_plug: the index of a device whose qdisc the caller itself sets: that is no news.
            What takes such a qdisc's place is told behind its end, which is some, in one datagram
            (``net/sched/sch_api.c``, qdisc_notify).
        """
        found = False
        while True:
            try:
                datagram = self._socket.recv(1 << 16)
            except BlockingIOError:
                return found
            except OSError:  # ENOBUFS: more than the buffer takes is a change, too
                found = True
            else:
                heard = list(messages(datagram))
                is_own = bool(heard) and all(_sets_qdisc_of(one, own_plug) for one in heard)
                found |= not is_own

    def close(self) -> None:
        """Close it."""
        self._socket.close()
