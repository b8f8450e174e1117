"""The kernel floor against the running kernel, in the private network namespace of the tests."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from netlab.program import wait_until
from synplug.errors import KernelError
from synplug.handover.request import (
    _LARGEST_MAX_HELD,
    _MOST_ENDPOINTS,
    HoldOptions,
    hold_spec,
)
from synplug.holding.handle import KeptHold
from synplug.holding.locks import RunLocks
from synplug.kernel import nft
from synplug.kernel.abi import architecture, membarrier_number
from synplug.kernel.namespaces import wait_for_packets_in_flight
from synplug.kernel.netlink import NETLINK_NETFILTER, NetlinkSocket
from synplug.kernel.nfqueue import LOOPBACK, queue_states
from synplug.kernel.sock_diag import SocketDiagnostics, begun_by
from synplug.model import PACKETS_PER_QUEUE, Endpoint, Flow, HoldSpec

_AT_ONCE_S = 0.5  # less than the first retransmission of a SYN takes
_STILL_WAITS_S = 0.15


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


# --- the largest hold


@contextmanager
def hold_of(spec: HoldSpec) -> Iterator[KeptHold]:
    """An armed hold with a keeper, closed at the end."""
    locks = RunLocks(spec.endpoints)
    locks.take(timeout_s=0)
    hold = KeptHold(spec, locks)
    try:
        hold.arm()
        yield hold
    finally:
        hold.close()
        locks.drop()


def connecting(host: str, port: int) -> socket.socket:
    """A socket that has begun to connect."""
    made = socket.socket(_family(host))
    made.setblocking(False)
    made.connect_ex((host, port))
    return made


def is_connected(made: socket.socket, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(made, select.POLLOUT)
    return bool(poll.poll(timeout_s * 1000)) and not made.getsockopt(
        socket.SOL_SOCKET, socket.SO_ERROR
    )


def test_as_many_endpoints_and_queues_as_a_run_may_have() -> None:
    """IPv6 addresses make the longest rules. Connections to the first and the last one wait."""
    address = ip_address("::1")
    ports = range(30_000, 30_000 + _MOST_ENDPOINTS)
    endpoints = tuple(Endpoint(port=port, address=address) for port in ports)
    spec = hold_spec(endpoints, HoldOptions(max_held=_LARGEST_MAX_HELD))
    with ExitStack() as stack:
        for port in (ports[0], ports[-1]):
            listener = stack.enter_context(socket.socket(socket.AF_INET6))
            listener.bind((str(address), port))
            listener.listen()
        hold = stack.enter_context(hold_of(spec))
        hold.hold()
        clients = [
            stack.enter_context(connecting(str(address), port)) for port in (ports[0], ports[-1])
        ]
        assert not any(is_connected(client, _STILL_WAITS_S) for client in clients)
        assert len(queue_states()) == _LARGEST_MAX_HELD // PACKETS_PER_QUEUE
        result = hold.release()
        assert all(is_connected(client, _AT_ONCE_S) for client in clients)
        assert hold.finish() == ""
    assert (result.counts.held, result.counts.released, result.counts.overflowed) == (2, 2, 0)


def test_a_batch_beyond_the_usual_send_buffer() -> None:
    """More than 212,992 bytes, and less than what every user may have (twice as much)."""
    address = ip_address("fd00::1")
    table = nft.HoldTable("synplug-large")
    table.prepare([Endpoint(port=1 + n, address=address) for n in range(900)], [1], probe_mark=1)
    rules = subprocess.run(
        ["nft", "list chain inet synplug-large hold"], capture_output=True, text=True, check=True
    ).stdout
    table.close()
    assert rules.count("jump queues") == 900


# --- connections by the address that they came to

_MAPPED_V4 = "::ffff:127.0.0.1"


def listening(host: str) -> socket.socket:
    """A listener; a dual one for ``::``."""
    made = socket.socket(_family(host))
    made.bind((host, 0))
    made.listen()
    return made


@contextmanager
def half_open(bound_to: str, connected_to: str) -> Iterator[int]:
    """A listener with one connection in SYN_RECV: its handshake waits for data (tcp(7))."""
    with ExitStack() as stack:
        listener = stack.enter_context(listening(bound_to))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 30)
        port = listener.getsockname()[1]
        client = stack.enter_context(connecting(connected_to, port))
        assert is_connected(client, _AT_ONCE_S)
        yield port


@pytest.mark.parametrize(
    ("bound_to", "connected_to", "here", "elsewhere"),
    [
        ("0.0.0.0", "127.0.0.1", ["127.0.0.1", "0.0.0.0"], ["127.0.0.2", "::1", "::"]),
        ("::", "127.0.0.1", ["127.0.0.1", "0.0.0.0"], ["127.0.0.2", "::1", "::"]),
        (_MAPPED_V4, "127.0.0.1", ["127.0.0.1", "0.0.0.0"], ["127.0.0.2", "::1", "::"]),
        ("::", "::1", ["::1", "::"], ["fd00::1", "127.0.0.1", "0.0.0.0"]),
    ],
)
def test_request_sockets_and_connections_are_those_of_the_address(
    bound_to: str, connected_to: str, here: list[str], elsewhere: list[str]
) -> None:
    """However the kernel shows IPv4 on a dual socket, established or still in SYN_RECV."""
    with (
        closing(SocketDiagnostics()) as diagnostics,
        half_open(bound_to, connected_to) as port,
    ):
        assert diagnostics.request_sockets([Endpoint(port=port)]) == 1
        assert diagnostics.request_sockets([Endpoint(port=port % 65_535 + 1)]) == 0
        for host in here + elsewhere:
            counted = diagnostics.request_sockets([Endpoint(port=port, address=ip_address(host))])
            assert counted == (host in here), host
    with (
        closing(SocketDiagnostics()) as diagnostics,
        listening(bound_to) as listener,
    ):
        port = listener.getsockname()[1]
        with socket.create_connection((connected_to, port)):
            for host in here + elsewhere:
                made = diagnostics.connections([Endpoint(port=port, address=ip_address(host))])
                assert len(made) == (host in here), host


_WAYS = [
    ("0.0.0.0", "127.0.0.1"),
    ("::", "127.0.0.1"),
    (_MAPPED_V4, "127.0.0.1"),
    ("::", "::1"),
]


@pytest.mark.parametrize(("bound_to", "connected_to"), _WAYS)
def test_a_connection_is_found_again_by_its_key_in_whatever_state(
    bound_to: str, connected_to: str
) -> None:
    """Unaccepted, accepted, with unread bytes, gone: each look asks for that one alone."""
    with (
        closing(SocketDiagnostics()) as diagnostics,
        listening(bound_to) as listener,
    ):
        port = listener.getsockname()[1]
        with socket.create_connection((connected_to, port)) as client:
            (made,) = diagnostics.inbound([Endpoint(port=port)])
            assert not made.accepted
            (now,) = diagnostics.again([made])
            assert (now.key, now.accepted) == (made.key, False)
            accepted, _ = listener.accept()
            with accepted:
                client.sendall(b"hello")
                (now,) = diagnostics.again([made])
                assert now.inode == os.fstat(accepted.fileno()).st_ino
                assert now.unread_bytes == 5
                assert now.key == made.key
                accepted.recv(5)
        assert diagnostics.again([made]) == []
    with closing(SocketDiagnostics()) as diagnostics:
        assert diagnostics.again([made]) == [], "nor is there a listener any more"


@pytest.mark.parametrize(("bound_to", "connected_to"), _WAYS)
def test_a_half_closed_connections_fin_is_no_byte(bound_to: str, connected_to: str) -> None:
    """Its answer is owed; the kernel counts the end of what was sent as a byte of it."""
    with (
        closing(SocketDiagnostics()) as diagnostics,
        listening(bound_to) as listener,
    ):
        port = listener.getsockname()[1]
        with socket.create_connection((connected_to, port)) as client:
            accepted, _ = listener.accept()
            with accepted:
                client.sendall(b"hello")
                client.shutdown(socket.SHUT_WR)
                (made,) = diagnostics.inbound([Endpoint(port=port)])
                assert (made.unread_bytes, made.received_bytes) == (5, 5)
                accepted.recv(5)
                (now,) = diagnostics.again([made])
                assert (now.unread_bytes, now.received_bytes) == (0, 5)
                assert accepted.recv(5) == b""
                (now,) = diagnostics.again([made])
                assert (now.unread_bytes, now.received_bytes) == (0, 5)
                accepted.sendall(b"world")
                (now,) = diagnostics.again([made])
                assert (now.unread_bytes, now.unsent_bytes, now.acked_bytes) == (0, 0, 5)


@pytest.mark.parametrize(("bound_to", "connected_to"), _WAYS)
def test_a_handshake_is_found_again_by_its_key(bound_to: str, connected_to: str) -> None:
    with (
        closing(SocketDiagnostics()) as diagnostics,
        half_open(bound_to, connected_to) as port,
    ):
        (made,) = diagnostics.inbound([Endpoint(port=port)], established=False)
        assert made.is_handshake
        assert diagnostics.again([made]) == [made]


#: The local route of that address, as /proc/net/ipv6_route has it.
_LINK_LOCAL = f"fe80{1:028x} 80"


@pytest.mark.parametrize(("bound_to", "connected_to"), [*_WAYS, ("::", "fe80::1%lo")])
def test_a_connection_is_found_by_the_syn_that_began_it(bound_to: str, connected_to: str) -> None:
    """One to a link-local address is bound to its device, and found by that alone."""
    link_local = connected_to.startswith("fe80")
    with closing(SocketDiagnostics()) as diagnostics, ExitStack() as stack:
        if link_local:
            address = ["fe80::1/64", "dev", "lo"]
            subprocess.run(["ip", "address", "add", *address, "nodad"], check=True)
            stack.callback(subprocess.run, ["ip", "address", "del", *address], check=True)
            # The kernel makes its route a moment later (net/ipv6/addrconf.c, addrconf_dad_work).
            wait_until(
                lambda: _LINK_LOCAL in Path("/proc/net/ipv6_route").read_text(), 10, "a route"
            )
        listener = stack.enter_context(listening(bound_to))
        port = listener.getsockname()[1]
        client = stack.enter_context(socket.create_connection((connected_to, port)))
        host, source_port = client.getsockname()[:2]
        packed = ip_address(host.partition("%")[0]).packed
        flow = Flow(packed * 2 + source_port.to_bytes(2, "big") + port.to_bytes(2, "big"))
        (now,) = diagnostics.again([begun_by(flow, LOOPBACK)])
        assert not now.is_handshake
        assert not now.accepted
        (made,) = diagnostics.inbound([Endpoint(port=port)])
        assert made.key == now.key
        found_elsewhere = bool(diagnostics.again([begun_by(flow, LOOPBACK + 1)]))
        assert found_elsewhere is not link_local


# --- dumps that are interrupted


class Meddled(NetlinkSocket):
    """A socket behind whose back nftables change, whenever it has begun a dump."""

    dumps = 0
    changes = 0

    def send(self, action: str, data: bytes) -> None:
        super().send(action, data)
        Meddled.dumps += 1
        if Meddled.changes:
            Meddled.changes -= 1
            subprocess.run(["nft", f"add table inet late{Meddled.dumps}"], check=True)


@pytest.fixture
def meddled(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Meddled]]:
    """Tables with foreign names; what meddles with them."""
    Meddled.dumps = 0
    monkeypatch.setattr(nft, "NetlinkSocket", Meddled)
    with ExitStack() as stack:
        stack.callback(subprocess.run, ["nft", "flush ruleset"], check=True)
        subprocess.run(["nft", "add table inet early"], check=True)
        yield Meddled


def test_an_interrupted_dump_shows_what_came_meanwhile(meddled: type[Meddled]) -> None:
    """The kernel marks the end of the first and of the second one; the third one counts."""
    meddled.changes = 2
    assert nft.tables() == ["early", "late1", "late2"]
    assert meddled.dumps == 3


def test_a_dump_at_rest_is_asked_for_once(meddled: type[Meddled]) -> None:
    meddled.changes = 0
    assert nft.tables() == ["early"]
    assert meddled.dumps == 1


def test_the_kernel_answers_what_it_lacks() -> None:
    """An nfnetlink subsystem that does not exist: an error, and no empty list."""
    with (
        closing(NetlinkSocket(NETLINK_NETFILTER)) as sock,
        pytest.raises(KernelError, match="list nothing: EINVAL"),
    ):
        sock.dump("list nothing", 0xEE << 8, b"\1\0\0\0")


# --- calls by number


def test_membarrier_is_the_call_that_is_made() -> None:
    """Its first command tells which commands there are; another call would not know it."""
    number = membarrier_number(architecture())
    assert number is not None
    commands = ctypes.CDLL(None).syscall(number, 0, 0, 0)
    assert commands > 0
    assert commands & 1, "MEMBARRIER_CMD_GLOBAL"
    assert wait_for_packets_in_flight()


def test_root_has_a_larger_receive_buffer_than_permitted_to_others() -> None:
    """Root of the initial user namespace, that is (net/core/sock.c)."""
    permitted = int(Path("/proc/sys/net/core/rmem_max").read_text(encoding="ascii"))
    may_force = Path("/proc/self/uid_map").read_text(encoding="ascii").split()[2] == "4294967295"
    with closing(NetlinkSocket(NETLINK_NETFILTER)) as sock:
        size_bytes = sock.enlarge_receive_buffer(4 * permitted)
    assert size_bytes == 2 * permitted * (4 if may_force else 1)
