"""Sockets, as the kernel shows them: sock_diag(7), by raw requests.

Source: ``include/uapi/linux/inet_diag.h``, ``net/ipv4/inet_diag.c``; struct tcp_info in
``include/uapi/linux/tcp.h``. A query for one port's listeners costs about 0.03 ms; one that
also walks the connections reads the whole hash table of the kernel (docs/benchmarks.md).
"""

import struct
import sys
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from typing import NamedTuple

from synplug.kernel.namespaces import in_network, network_of
from synplug.kernel.netlink import NETLINK_SOCK_DIAG, NetlinkSocket
from synplug.kernel.netlink_codec import attributes
from synplug.model import Endpoint, Family, Flow, Listener

_TCPDIAG_GETSOCK, _SOCK_DIAG_BY_FAMILY = 18, 20
_NO_COOKIE = b"\xff" * 8
_TCP = 6
_ESTABLISHED, _SYN_SENT, _SYN_RECV, _CLOSE_WAIT, _LISTEN = 1, 2, 3, 8, 10
_OPEN = 1 << _ESTABLISHED | 1 << _CLOSE_WAIT
_UNDER_WAY = (_ESTABLISHED, _SYN_RECV, _CLOSE_WAIT)
_INET_DIAG_INFO, _INET_DIAG_SKV6ONLY = 2, 11
_REQUEST = struct.Struct("=BBBxI")
_STATES = struct.Struct("=II")  # idiag_states, idiag_dbs
_ID = struct.Struct("!HH16s16s")
_ANSWER = struct.Struct("=BBBB")
_COUNTS = struct.Struct("=IIIII")  # expires, rqueue, wqueue, uid, inode
_ANSWER_BYTES = 72
_WIDTHS = {Family.IPV4: 4, Family.IPV6: 16}
_MAPPED = bytes(10) + b"\xff\xff"
# struct tcp_info: tcpi_last_data_sent, _last_data_recv, _bytes_acked, _bytes_received.
_TCP_INFO = struct.Struct("=44xI4xI64xQQ")


class Connection(NamedTuple):
    """A connection that came in to a listener's port: established, or still a handshake.

    One that the peer has closed for its part, and we have not (CLOSE_WAIT), counts as established:
    an answer may be owed. Its FIN counts as no byte.

    :param is_handshake: it is in SYN_RECV, so all else about it is 0.
    :param accepted: a process has it; otherwise it still waits in an accept queue.
    :param unread_bytes: received, not yet read. :param unsent_bytes: not yet acknowledged.
    :param since_sent_ms: since data was last sent; of the resolution of a jiffy, as the next.
    :param acked_bytes: sent by us and acknowledged by the peer, 0 where the kernel does not tell.
    :param inode: of its socket, as in ``/proc/PID/fd``; 0 while it is not accepted.
    :param key: family, ports, addresses and device, by which the kernel finds it again.
    """

    is_handshake: bool
    accepted: bool
    unread_bytes: int
    unsent_bytes: int
    since_sent_ms: int
    since_received_ms: int
    acked_bytes: int
    received_bytes: int
    inode: int
    key: bytes = b""


def begun_by(flow: Flow, device: int) -> Connection:
    """The connection that a SYN begins, as one to look up: a handshake, for all that is known.

    :param device: the index of the interface that the SYN came in by: a socket that is bound to
        one is found by no other (``include/net/inet_sock.h``, inet_sk_bound_dev_eq).
    """
    half = (len(flow) - 4) // 2
    source, destination = flow[:half], flow[half : 2 * half]
    family = Family.IPV4 if half == _WIDTHS[Family.IPV4] else Family.IPV6
    ports = flow[-2:] + flow[-4:-2]
    key = bytes((family.af,)) + ports + destination.ljust(16, b"\0") + source.ljust(16, b"\0")
    return Connection(
        is_handshake=True,
        accepted=False,
        unread_bytes=0,
        unsent_bytes=0,
        since_sent_ms=0,
        since_received_ms=0,
        acked_bytes=0,
        received_bytes=0,
        inode=0,
        key=key + device.to_bytes(4, sys.byteorder),
    )


class SocketDiagnostics:
    """One sock_diag socket, kept for many queries. Needs no privilege."""

    def __init__(self) -> None:
        self._netlink = NetlinkSocket(NETLINK_SOCK_DIAG)

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def listeners(self, endpoints: Iterable[Endpoint] | None = None) -> list[Listener]:
        """The listening sockets that serve *endpoints*; all of the namespace for None."""
        if endpoints is None:
            return [_listener(body) for body in self._dump(1 << _LISTEN)]
        wanted = list(endpoints)
        found = []
        for port in sorted({endpoint.port for endpoint in wanted}):
            for body in self._dump(1 << _LISTEN, source_port=port):
                listener = _listener(body)
                if any(listener.serves(endpoint) for endpoint in wanted):
                    found.append(listener)
        return found

    def request_sockets(self, endpoints: Iterable[Endpoint], but: Iterable[Endpoint] = ()) -> int:
        """How many connections to *endpoints* are in SYN_RECV.

        :param but: those to these, which have an address, are left out.
        """
        return sum(1 for _ in self._made_to(endpoints, 1 << _SYN_RECV, but=but))

    def connections(self, endpoints: Iterable[Endpoint]) -> list[Connection]:
        """The established connections that came in to *endpoints*, with their tcp_info."""
        return [
            _connection(body) for body in self._made_to(endpoints, _OPEN, extension=_INET_DIAG_INFO)
        ]

    def inbound(
        self, endpoints: Iterable[Endpoint], *, established: bool = True
    ) -> list[Connection]:
        """The connections to *endpoints* in SYN_RECV, and the established ones, by one walk."""
        states = 1 << _SYN_RECV | (_OPEN if established else 0)
        bodies = self._made_to(endpoints, states, extension=_INET_DIAG_INFO)
        return [_connection(body) for body in bodies]

    def again(self, connections: Iterable[Connection]) -> list[Connection]:
        """Those of them that are still there, as they are now: each is looked up by its key.

        A look-up costs some 0.02 ms however many sockets the kernel has. Where there is no such
        connection any more, it finds the listener (inet_diag_find_one_icsk).
        """
        found = []
        for connection in connections:
            family, identity = connection.key[:1], connection.key[1:]
            request = _REQUEST.pack(family[0], _TCP, 1 << (_INET_DIAG_INFO - 1), 0)
            request += identity + _NO_COOKIE
            body = self._netlink.ask("look up a socket", _SOCK_DIAG_BY_FAMILY, request)
            if body is not None and len(body) >= _ANSWER_BYTES and body[1] in _UNDER_WAY:
                found.append(_connection(body))
        return found

    def _made_to(
        self,
        endpoints: Iterable[Endpoint],
        states: int,
        *,
        extension: int = 0,
        but: Iterable[Endpoint] = (),
    ) -> Iterator[memoryview]:
        """The sockets in *states* whose local address is one of *endpoints*, and none of *but*.

        Another service may have the same port at another address; its sockets are passed over.
        """
        wanted, unwanted = list(endpoints), list(but)
        for port in sorted({endpoint.port for endpoint in wanted}):
            exact, widths = _addresses([end for end in wanted if end.port == port])
            others, other_widths = _addresses([end for end in unwanted if end.port == port])
            for body in self._walk(states, source_port=port, extension=extension):
                address = _local_address(body)
                if len(address) in other_widths or address in others:
                    continue
                if len(address) in widths or address in exact:
                    yield body

    def connecting(self, ports: Iterable[int]) -> list[tuple[int, Flow]]:
        """The local sockets in SYN_SENT to these ports, at whatever address: inodes and flows."""
        return [
            (_COUNTS.unpack_from(body, 52)[4], _flow(body))
            for port in ports
            for body in self._walk(1 << _SYN_SENT, destination_port=port)
        ]

    def _dump(self, states: int, *, source_port: int = 0) -> Iterator[memoryview]:
        """Listeners have tables of their own, by port: a family each."""
        for family in Family:
            request = _REQUEST.pack(family.af, _TCP, 0, states) + _identity(source_port, 0)
            yield from self._answers(_SOCK_DIAG_BY_FAMILY, request)

    def _walk(
        self, states: int, *, source_port: int = 0, destination_port: int = 0, extension: int = 0
    ) -> Iterator[memoryview]:
        """One walk through the table of connections, which is both families' and has no ports.

        The older request, struct inet_diag_req, is the one that asks for both families at once
        (inet_diag_dump_compat). With 30,000 sockets in TIME_WAIT a walk takes 10 to 20 ms.
        """
        wanted = 1 << (extension - 1) if extension else 0
        request = bytes((0, 0, 0, wanted)) + _identity(source_port, destination_port)
        yield from self._answers(_TCPDIAG_GETSOCK, request + _STATES.pack(states, 0))

    def _answers(self, kind: int, request: bytes) -> Iterator[memoryview]:
        for body in self._netlink.dump("list sockets", kind, request):
            if len(body) >= _ANSWER_BYTES:
                yield body


def diagnostics_in(network: str) -> SocketDiagnostics:
    """The sockets of the network namespace of this name, path or pid.

    A netlink socket stays in the one in which it was made, and keeps that alive until it is closed.

    :raises PrivilegeError, UsageError: there is none, or it cannot be entered.
    """
    with in_network(network_of(network)):
        return SocketDiagnostics()


def _identity(source_port: int, destination_port: int) -> bytes:
    """A struct inet_diag_sockid of any socket with these ports."""
    return _ID.pack(source_port, destination_port, b"", b"") + bytes(4) + _NO_COOKIE


def _listener(body: memoryview) -> Listener:
    family = body[0]
    port, _, source, _ = _ID.unpack_from(body, 4)
    _, queued, backlog, _, inode = _COUNTS.unpack_from(body, 52)
    v6only = any(
        kind == _INET_DIAG_SKV6ONLY and payload[0] for kind, payload in attributes(body[72:])
    )
    address = ip_address(source[: 4 if family == Family.IPV4.af else 16])
    if (
        address.version == 6
    ):  # a dual socket bound to an IPv4 address serves that (RFC 4291, 2.5.5.2)
        address = address.ipv4_mapped or address
    return Listener(
        address=address,
        port=port,
        inode=inode,
        cookie=int.from_bytes(body[44:52], sys.byteorder),
        backlog=backlog,
        accept_queue=queued,
        v6only=v6only,
        device=int.from_bytes(body[40:44], sys.byteorder),
    )


def _addresses(endpoints: Iterable[Endpoint]) -> tuple[set[bytes], set[int]]:
    """The addresses that endpoints stand for, packed; and the widths of which any one will do."""
    exact: set[bytes] = set()
    widths: set[int] = set()
    for endpoint in endpoints:
        if endpoint.exact_address is not None:
            exact.add(endpoint.exact_address.packed)
        else:
            widths.update(_WIDTHS[family] for family in endpoint.families)
    return exact, widths


def _local_address(body: memoryview) -> bytes:
    """As packets to the socket carry it: IPv4 where an IPv6 socket has a mapped address."""
    source = bytes(body[8:24])
    if body[0] == Family.IPV4.af:
        return source[:4]
    return source[12:] if source.startswith(_MAPPED) else source


def _flow(body: memoryview) -> Flow:
    source, destination = bytes(body[8:24]), bytes(body[24:40])
    if body[0] == Family.IPV4.af:
        source, destination = source[:4], destination[:4]
    elif destination.startswith(_MAPPED):  # an IPv6 socket, IPv4 packets
        source, destination = source[12:], destination[12:]
    return Flow(source + destination + bytes(body[4:8]))


def _connection(body: memoryview) -> Connection:
    _, unread, unsent, _, inode = _COUNTS.unpack_from(body, 52)
    info = b""
    for kind, payload in attributes(body[72:]):
        if kind == _INET_DIAG_INFO:
            info = bytes(payload)
    info = info.ljust(_TCP_INFO.size, b"\0")  # older kernels tell less
    sent, received, acked_bytes, received_bytes = _TCP_INFO.unpack_from(info)
    if body[1] == _CLOSE_WAIT:  # its FIN has a sequence number, which is no data
        unread, received_bytes = max(0, unread - 1), max(0, received_bytes - 1)
    return Connection(
        is_handshake=body[1] == _SYN_RECV,
        accepted=inode != 0,
        unread_bytes=unread,
        unsent_bytes=unsent,
        since_sent_ms=sent,
        since_received_ms=received,
        acked_bytes=acked_bytes,
        received_bytes=received_bytes,
        inode=inode,
        key=bytes(body[:1]) + bytes(body[4:44]),
    )
