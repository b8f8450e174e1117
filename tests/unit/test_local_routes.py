"""The routes by which a machine answers for addresses: asked for, and heard of."""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import ip_address, ip_network

import pytest

from synplug.errors import KernelError
from synplug.kernel.changes import Changes
from synplug.kernel.netlink import NetlinkSocket
from synplug.kernel.netlink_codec import HEADER, attribute
from synplug.kernel.routes import hear_of_local_routes_alone, local_prefixes

LOCAL, MAIN = 255, 254
NEWLINK, NEWADDR, NEWROUTE, DELROUTE = 16, 20, 24, 25


def route(*, to: str = "10.98.0.0/24", table: int = LOCAL, kind: int = 2) -> bytes:
    """``struct rtmsg`` and its destination; one that is everything has none."""
    network = ip_network(to)
    af = socket.AF_INET if network.version == 4 else socket.AF_INET6
    head = struct.pack("=BBBBBBBBI", af, network.prefixlen, 0, 0, table, 0, 0, kind, 0)
    return head + (attribute(1, network.network_address.packed) if network.prefixlen else b"")


def notice(kind: int, body: bytes) -> bytes:
    return HEADER.pack(16 + len(body), kind, 0, 0, 0) + body


@pytest.mark.parametrize(
    ("data", "is_heard"),
    [
        (notice(NEWROUTE, route()), True),
        (notice(DELROUTE, route()), True),
        (notice(NEWROUTE, route(to="2001:db8::/64")), True),
        (notice(NEWROUTE, route(table=MAIN, kind=1)), False),
        (notice(DELROUTE, route(table=MAIN, kind=1)), False),
        (notice(NEWROUTE, route(table=MAIN, kind=2)), False),
        (notice(NEWROUTE, route(kind=3)), False),
        (notice(NEWLINK, bytes(16)), True),
        (notice(NEWADDR, bytes(8)), True),
    ],
    ids=[
        "new",
        "gone",
        "IPv6",
        "main",
        "gone from main",
        "other table",
        "broadcast",
        "link",
        "addr",
    ],
)
def test_only_local_routes_wake_anybody(data: bytes, is_heard: bool) -> None:
    """The kernel runs the same program for a socket of any family."""
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with sender, receiver:
        hear_of_local_routes_alone(receiver)
        sender.send(data)
        receiver.setblocking(False)
        if is_heard:
            assert receiver.recv(1000) == data
        else:
            with pytest.raises(BlockingIOError):
                receiver.recv(1000)


class Answering(NetlinkSocket):
    """A kernel with these routes."""

    def __init__(self, *routes: bytes, code: int = 0) -> None:
        self._routes, self._code = routes, code
        self.asked: list[bytes] = []

    def dump(
        self, action: str, kind: int, body: bytes = b"", *, complete: bool = True
    ) -> list[memoryview]:
        assert kind == 26  # RTM_GETROUTE
        self.asked.append(body)
        if self._code:
            raise KernelError(action, self._code)
        return [memoryview(one) for one in self._routes]


def test_local_addresses_of_both_versions() -> None:
    """One that has no IPv6 answers with the routes of IPv4, one that is old with all tables."""
    wanted = {ip_network("10.98.0.0/24"), ip_network("::1/128"), ip_network("0.0.0.0/0")}
    kernel = Answering(
        *(route(to=str(one)) for one in wanted),
        route(to="10.1.0.0/16", table=MAIN, kind=1),
        route(to="10.1.0.255/32", kind=3),
    )
    assert local_prefixes(kernel) == wanted
    assert [(body[0], body[4], body[7]) for body in kernel.asked] == [
        (socket.AF_INET, LOCAL, 2),
        (socket.AF_INET6, LOCAL, 2),
    ], "the kernel looks at one table"


def test_a_namespace_without_any_address_has_no_table() -> None:
    assert local_prefixes(Answering(code=errno.ENOENT)) == set()
    with pytest.raises(KernelError):
        local_prefixes(Answering(code=errno.ENOBUFS))


def test_this_machine_answers_for_itself() -> None:
    asked = NetlinkSocket(0)
    try:
        found = local_prefixes(asked)
    finally:
        asked.close()
    assert any(ip_address("127.0.0.1") in prefix for prefix in found)


def test_it_is_heard_of_them_besides_devices_addresses_and_filters() -> None:
    heard = Changes()
    _, groups = heard._socket.getsockname()
    heard.close()
    assert groups == 0x1 | 0x8 | 0x10 | 0x100 | 0x40 | 0x400, "RTMGRP_…, rtnetlink.h"
