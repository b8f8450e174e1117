"""Decoding what sock_diag says."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from synplug.handover.drain import is_busy
from synplug.kernel import sock_diag
from synplug.kernel.netlink_codec import attribute
from synplug.kernel.sock_diag import Connection, SocketDiagnostics
from synplug.model import Endpoint, Listener

LISTEN, ESTABLISHED, SYN_SENT, SYN_RECV, TIME_WAIT, CLOSE_WAIT = 10, 1, 2, 3, 6, 8


def answer(
    source: tuple[str, int],
    destination: tuple[str, int] = ("0.0.0.0", 0),
    *attributes: bytes,
    state: int = LISTEN,
    cookie: int = 0x1122334455667788,
    received: int = 0,
    sent: int = 0,
    inode: int = 4711,
) -> bytes:
    """``struct inet_diag_msg`` with attributes behind it."""
    family = socket.AF_INET if ip_address(source[0]).version == 4 else socket.AF_INET6
    addresses = [ip_address(host).packed.ljust(16, b"\0") for host in (source[0], destination[0])]
    return (
        struct.pack("=BBBB", family, state, 0, 0)
        + struct.pack("!HH16s16s", source[1], destination[1], *addresses)
        + struct.pack("=I", 0)
        + cookie.to_bytes(8, sys.byteorder)
        + struct.pack("=IIIII", 0, received, sent, 0, inode)
        + b"".join(attributes)
    )


def tcp_info(
    *, since_sent: int, since_received: int, acked: int, received: int, size: int = 232
) -> bytes:
    """``struct tcp_info``: the offsets are those of include/uapi/linux/tcp.h."""
    info = bytearray(232)
    struct.pack_into("=I", info, 44, since_sent)
    struct.pack_into("=I", info, 52, since_received)
    struct.pack_into("=QQ", info, 120, acked, received)
    return attribute(2, bytes(info[:size]))


class Kernel:
    """Answers dumps from a table, by family and states, and requests for one socket by its key."""

    def __init__(self) -> None:
        self.sockets: list[bytes] = []
        self.requests: list[tuple[int, int, int, int, int]] = []

    def dump(self, action: str, kind: int, body: bytes) -> list[memoryview]:
        if kind == 20:  # struct inet_diag_req_v2: of one family
            family, protocol, extension, states = struct.unpack_from("=BBBxI", body)
            assert protocol == socket.IPPROTO_TCP
            source, destination = struct.unpack_from("!HH", body, 8)
            families: tuple[int, ...] = (family,)
        else:  # struct inet_diag_req: of both
            assert kind == 18
            extension, states = body[3], struct.unpack_from("=I", body, 52)[0]
            source, destination = struct.unpack_from("!HH", body, 4)
            family, families = 0, (socket.AF_INET, socket.AF_INET6)
        self.requests.append((family, states, source, destination, extension))
        return [
            memoryview(found)
            for found in self.sockets
            if len(found) < 72
            or (
                found[0] in families
                and states >> found[1] & 1
                and source in (0, struct.unpack_from("!H", found, 4)[0])
                and destination in (0, struct.unpack_from("!H", found, 6)[0])
            )
        ]

    def ask(self, action: str, kind: int, body: bytes) -> memoryview | None:
        """Without a cookie; where there is no connection, a listener of the port, or nothing."""
        family, protocol, extension, _ = struct.unpack_from("=BBBxI", body)
        assert (kind, protocol, extension) == (20, socket.IPPROTO_TCP, 1 << 1)
        assert body[48:] == b"\xff" * 8
        for found in self.sockets:
            if found[0] == family and found[4:44] == body[8:48]:
                return memoryview(found)
        for found in self.sockets:
            if found[0] == family and found[1] == LISTEN and found[4:6] == body[8:10]:
                return memoryview(found)
        return None

    def close(self) -> None:
        pass


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    factory: Callable[[int], Kernel] = lambda protocol: made  # noqa: E731
    monkeypatch.setattr(sock_diag, "NetlinkSocket", factory)
    return made


def test_a_listener(kernel: Kernel) -> None:
    kernel.sockets = [answer(("10.0.0.1", 80), received=3, sent=128)]
    assert SocketDiagnostics().listeners() == [
        Listener(
            address=ip_address("10.0.0.1"),
            port=80,
            inode=4711,
            cookie=0x1122334455667788,
            backlog=128,
            accept_queue=3,
        )
    ]


@pytest.mark.parametrize(
    ("attributes", "v6only"),
    [([], False), ([attribute(11, b"\1")], True), ([attribute(11, b"\0")], False)],
)
def test_v6only(kernel: Kernel, attributes: list[bytes], v6only: bool) -> None:
    kernel.sockets = [answer(("::", 80), ("::", 0), *attributes)]
    (found,) = SocketDiagnostics().listeners()
    assert found.address == ip_address("::")
    assert found.v6only is v6only


def test_a_dual_socket_bound_to_an_ipv4_address_serves_that(kernel: Kernel) -> None:
    """As Java binds: the kernel shows ::ffff:10.0.0.1, and packets are IPv4."""
    kernel.sockets = [answer(("::ffff:10.0.0.1", 80), ("::", 0))]
    (found,) = SocketDiagnostics().listeners([Endpoint(port=80, address=ip_address("10.0.0.1"))])
    assert str(found.endpoint()) == "10.0.0.1:80"


def test_listeners_of_endpoints_are_asked_for_by_port(kernel: Kernel) -> None:
    kernel.sockets = [
        answer(("10.0.0.1", 80), inode=1),
        answer(("10.0.0.2", 80), inode=2),
        answer(("::1", 80), ("::", 0), inode=3),
        answer(("10.0.0.1", 81), inode=4),
        answer(("10.0.0.1", 82), inode=5),
    ]
    wanted = [Endpoint(port=80, address=ip_address("10.0.0.1")), Endpoint(port=81)]
    assert [found.inode for found in SocketDiagnostics().listeners(wanted)] == [1, 4]
    assert {source for _, _, source, _, _ in kernel.requests} == {80, 81}
    assert {states for _, states, _, _, _ in kernel.requests} == {1 << LISTEN}
    assert {family for family, *_ in kernel.requests} == {socket.AF_INET, socket.AF_INET6}


def at(name: str) -> Endpoint:
    host, _, port = name.rpartition(":")
    return Endpoint(port=int(port), address=None if host == "*" else ip_address(host.strip("[]")))


def test_request_sockets_are_counted_over_ports_and_families(kernel: Kernel) -> None:
    kernel.sockets = [
        answer(("10.0.0.1", 80), state=SYN_RECV),
        answer(("fd00::1", 81), ("fd00::2", 9), state=SYN_RECV),
        answer(("10.0.0.1", 80), state=ESTABLISHED),
        answer(("10.0.0.1", 82), state=SYN_RECV),
    ]
    assert SocketDiagnostics().request_sockets([at("*:80"), at("*:81")]) == 2


LOCAL = ("10.0.0.1", "10.0.0.2", "::ffff:10.0.0.1", "fd00::1", "fd00::2", "::1")


@pytest.mark.parametrize("state", [SYN_RECV, ESTABLISHED])
@pytest.mark.parametrize(
    ("endpoints", "found"),
    [
        (["*:80"], LOCAL),
        (["0.0.0.0:80"], ("10.0.0.1", "10.0.0.2", "::ffff:10.0.0.1")),
        (["[::]:80"], ("fd00::1", "fd00::2", "::1")),
        (["10.0.0.1:80"], ("10.0.0.1", "::ffff:10.0.0.1")),
        (["[fd00::1]:80"], ("fd00::1",)),
        (["10.0.0.2:80", "[::1]:80"], ("10.0.0.2", "::1")),
        (["10.0.0.1:80", "*:80"], LOCAL),
        (["127.0.0.1:80"], ()),
        (["*:81"], ()),
    ],
)
def test_connections_to_other_addresses_of_the_port_are_somebody_elses(
    kernel: Kernel, state: int, endpoints: list[str], found: tuple[str, ...]
) -> None:
    """A connection over IPv4 to an IPv6 socket has a mapped address, and counts for IPv4."""
    kernel.sockets = [
        answer((host, 80), ("fd00::9" if ":" in host else "10.9.9.9", 9), state=state, received=n)
        for n, host in enumerate(LOCAL)
    ]
    wanted = [at(name) for name in endpoints]
    diagnostics = SocketDiagnostics()
    if state == SYN_RECV:
        assert diagnostics.request_sockets(wanted) == len(found)
    else:
        numbers = sorted(made.unread_bytes for made in diagnostics.connections(wanted))
        assert numbers == [LOCAL.index(host) for host in found]


@pytest.mark.parametrize(
    ("but", "found"),
    [
        (["10.0.0.1:80"], ("10.0.0.2", "fd00::1", "fd00::2", "::1")),
        (["0.0.0.0:80", "[fd00::1]:80"], ("fd00::2", "::1")),
        (["[::]:80"], ("10.0.0.1", "10.0.0.2", "::ffff:10.0.0.1")),
        (["10.0.0.1:81"], LOCAL),
    ],
)
def test_handshakes_with_some_addresses_are_left_out(
    kernel: Kernel, but: list[str], found: tuple[str, ...]
) -> None:
    kernel.sockets = [answer((host, 80), (host, 9), state=SYN_RECV) for host in LOCAL]
    counted = SocketDiagnostics().request_sockets([at("*:80")], map(at, but))
    assert counted == len(found)


ADDRESSES = st.one_of(
    st.none(),
    st.sampled_from(["0.0.0.0", "::"]).map(ip_address),
    st.ip_addresses(v=4),
    st.ip_addresses(v=6),
)


@given(endpoint=ADDRESSES, local=st.ip_addresses(), port=st.sampled_from((80, 81)))
def test_a_connection_counts_where_a_listener_bound_to_its_address_would(
    endpoint: IPv4Address | IPv6Address | None, local: IPv4Address | IPv6Address, port: int
) -> None:
    """The two ways to compare, by packed bytes and by the model, say the same."""
    assume(not local.is_unspecified)
    assume(local.version == 4 or local.ipv4_mapped is None)
    if endpoint is not None and not endpoint.is_unspecified and local.packed[0] % 2:
        endpoint = local  # otherwise an exact address would hardly ever match
    wanted = Endpoint(port=80, address=endpoint)
    own = Listener(address=local, port=port, inode=1, cookie=1, backlog=1, accept_queue=0)
    kernel = Kernel()
    kernel.sockets = [answer((str(local), port), (str(local), 9), state=SYN_RECV)]
    diagnostics = SocketDiagnostics()
    diagnostics._netlink.close()
    diagnostics._netlink = kernel  # type: ignore[assignment]
    assert diagnostics.request_sockets([wanted]) == own.serves(wanted)


def test_a_connection(kernel: Kernel) -> None:
    info = tcp_info(since_sent=11, since_received=22, acked=1 << 40, received=44)
    kernel.sockets = [
        answer(("10.0.0.1", 80), ("10.0.0.2", 999), info, state=ESTABLISHED, received=5, sent=6)
    ]
    (found,) = SocketDiagnostics().connections([at("*:80")])
    assert [found._replace(key=b"")] == [
        Connection(
            is_handshake=False,
            accepted=True,
            unread_bytes=5,
            unsent_bytes=6,
            since_sent_ms=11,
            since_received_ms=22,
            acked_bytes=1 << 40,
            received_bytes=44,
            inode=4711,
        )
    ]
    assert {extension for *_, extension in kernel.requests} == {1 << 1}


def test_a_connection_that_nobody_has_accepted_has_no_inode(kernel: Kernel) -> None:
    kernel.sockets = [answer(("10.0.0.1", 80), state=ESTABLISHED, inode=0)]
    (found,) = SocketDiagnostics().connections([at("*:80")])
    assert not found.accepted


def test_what_came_in_is_seen_with_one_walk(kernel: Kernel) -> None:
    kernel.sockets = [
        answer(("10.0.0.1", 80), ("10.0.0.2", 1), state=ESTABLISHED),
        answer(("10.0.0.1", 80), ("10.0.0.2", 2), state=SYN_RECV, inode=0),
        answer(("10.0.0.1", 81), ("10.0.0.2", 3), state=SYN_RECV, inode=0),
        answer(("10.0.0.1", 80), ("10.0.0.2", 4), state=TIME_WAIT, inode=0),
    ]
    diagnostics = SocketDiagnostics()
    found = diagnostics.inbound([at("*:80")])
    assert [own.is_handshake for own in found] == [False, True]
    assert not found[1].accepted
    assert len(kernel.requests) == 1
    assert [own.is_handshake for own in diagnostics.inbound([at("*:80")], established=False)] == [
        True
    ]


def test_who_has_half_closed_may_wait_for_an_answer(kernel: Kernel) -> None:
    """The FIN takes a number of its own, and is no data: read or not, it is nothing to wait for."""
    asked = tcp_info(since_sent=9000, since_received=500, acked=1, received=11)
    answered = tcp_info(since_sent=500, since_received=500, acked=9, received=11)
    silent = tcp_info(since_sent=500, since_received=500, acked=1, received=1)
    kernel.sockets = [
        answer(("10.0.0.1", 80), ("10.0.0.2", 1), asked, state=CLOSE_WAIT),
        answer(("10.0.0.1", 80), ("10.0.0.2", 2), answered, state=CLOSE_WAIT, received=3),
        answer(("10.0.0.1", 80), ("10.0.0.2", 3), answered, state=CLOSE_WAIT, received=1),
        answer(("10.0.0.1", 80), ("10.0.0.2", 4), silent, state=CLOSE_WAIT, received=1),
    ]
    diagnostics = SocketDiagnostics()
    found = diagnostics.inbound([at("*:80")])
    assert [own.unread_bytes for own in found] == [0, 2, 0, 0]
    assert [is_busy(own) for own in found] == [True, True, False, False]
    assert diagnostics.again(found) == found
    assert diagnostics.connections([at("*:80")]) == found
    assert diagnostics.inbound([at("*:80")], established=False) == []


@pytest.mark.parametrize("host", ["10.0.0.1", "fd00::1", "::ffff:10.0.0.1"])
def test_connections_are_looked_up_again(kernel: Kernel, host: str) -> None:
    """One that is finished is a TIME_WAIT, or the listener is found in its place, or nothing."""
    peer = "10.0.0.2" if "." in host and ":" not in host else "fd00::2"
    before = [answer((host, 80), (peer, n), state=SYN_RECV, inode=0) for n in range(5)]
    kernel.sockets = before
    diagnostics = SocketDiagnostics()
    found = diagnostics.inbound([at("*:80")])
    kernel.sockets = [
        answer((host, 80), (peer, 0), state=ESTABLISHED, received=7),
        before[1],
        answer((host, 80), (peer, 2), state=TIME_WAIT, inode=0),
        answer((host, 81), (peer, 3), state=ESTABLISHED),
    ]
    again = diagnostics.again(found)
    assert [(own.is_handshake, own.unread_bytes) for own in again] == [(False, 7), (True, 0)]
    kernel.sockets.append(answer((host, 80), ("::" if ":" in host else "0.0.0.0", 0)))
    assert diagnostics.again(found) == again, "a listener is no connection"


@pytest.mark.parametrize("size", [0, 44, 104, 120, 128])
def test_an_older_kernel_tells_less(kernel: Kernel, size: int) -> None:
    info = tcp_info(since_sent=11, since_received=22, acked=33, received=44, size=size)
    kernel.sockets = [answer(("10.0.0.1", 80), ("10.0.0.2", 9), info, state=ESTABLISHED)]
    (found,) = SocketDiagnostics().connections([at("*:80")])
    assert found.since_sent_ms == (11 if size >= 48 else 0)
    assert found.received_bytes == 0


@pytest.mark.parametrize(
    ("source", "destination", "flow"),
    [
        ("10.0.0.1", "10.0.0.2", "0a000001 0a000002 9c40 0050"),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", "0a000001 0a000002 9c40 0050"),
        ("fd00::1", "fd00::2", f"fd{'00' * 14}01 fd{'00' * 14}02 9c40 0050"),
    ],
)
def test_who_connects(kernel: Kernel, source: str, destination: str, flow: str) -> None:
    """The flow is that of the packets, as the queue shows them: IPv4 for mapped addresses."""
    kernel.sockets = [answer((source, 40_000), (destination, 80), state=SYN_SENT)]
    assert SocketDiagnostics().connecting([80]) == [(4711, bytes.fromhex(flow.replace(" ", "")))]
    assert {(port, to) for _, _, port, to, _ in kernel.requests} == {(0, 80)}


def test_answers_that_are_too_short_are_passed_over(kernel: Kernel) -> None:
    kernel.sockets = [answer(("10.0.0.1", 80))[:71], b""]
    assert SocketDiagnostics().listeners() == []


@given(st.binary(min_size=72, max_size=400), st.sampled_from((2, 10)))
def test_hostile_answers(data: bytes, family: int) -> None:
    body = memoryview(bytes((family,)) + data[1:])
    assert 0 <= sock_diag._listener(body).port < 1 << 16
    assert sock_diag._connection(body).unread_bytes >= 0
    assert len(sock_diag._flow(body)) in (12, 36)
