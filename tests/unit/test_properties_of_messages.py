"""What the kernel may say, whole, cut off or with lengths that lie: read as a second opinion does.

No exception but the house's own, no walk without end, and nothing made of bytes beyond the
message.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys

from hypothesis import given
from hypothesis import strategies as st

from synplug.errors import SynplugError
from synplug.kernel import netlink, nft, sock_diag
from synplug.kernel import netlink_codec as codec
from synplug.kernel.netlink import NetlinkSocket
from synplug.kernel.netlink_codec import Message, attributes, error_of, messages
from synplug.kernel.nfqueue import _notice, flow_of
from synplug.kernel.sock_diag import SocketDiagnostics
from synplug.model import Family
from tests.unit import oracles
from tests.unit.packets import extension, ipv4, ipv6, tcp
from tests.unit.test_netlink import message

BYTES = st.binary(max_size=48)
KINDS = st.integers(0, 0xFFFF)


@st.composite
def runs_of_attributes(draw: st.DrawFn, payloads: st.SearchStrategy[bytes] = BYTES) -> bytes:
    """Attributes; then perhaps one length that lies, and perhaps a cut."""
    parts = draw(st.lists(st.tuples(KINDS, payloads), max_size=6))
    data = bytearray()
    starts = []
    for kind, payload in parts:
        starts.append(len(data))
        data += struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)
    if draw(st.booleans()) and starts:
        struct.pack_into("=H", data, draw(st.sampled_from(starts)), draw(lies(len(data))))
    return bytes(data[: draw(cuts(len(data)))])


def lies(size: int) -> st.SearchStrategy[int]:
    """Lengths near the edges, and any."""
    return st.sampled_from([0, 1, 3, 4, 5, size, size + 1, 0x7FFF, 0xFFFF]) | st.integers(0, 0xFFFF)


def cuts(size: int) -> st.SearchStrategy[int]:
    """Where something ends: often where it should."""
    return st.just(size) | st.integers(0, size)


@given(runs_of_attributes())
def test_attributes_are_what_a_second_walk_finds(data: bytes) -> None:
    assert [(kind, bytes(payload)) for kind, payload in attributes(data)] == oracles.attributes(
        data
    )


@given(runs_of_attributes(runs_of_attributes()))
def test_attributes_in_attributes(data: bytes) -> None:
    for (_, payload), (_, wanted) in zip(attributes(data), oracles.attributes(data), strict=True):
        inner = [(kind, bytes(found)) for kind, found in attributes(payload)]
        assert inner == oracles.attributes(wanted)


@st.composite
def datagrams(
    draw: st.DrawFn, bodies: st.SearchStrategy[bytes] = BYTES, sequence: int = 1
) -> bytes:
    """Messages of a dump; then perhaps one length that lies, and perhaps a cut."""
    data = bytearray()
    starts = []
    for body in draw(st.lists(bodies, max_size=4)):
        starts.append(len(data))
        kind = draw(st.sampled_from((20, 20, 20, 2, 3)) | KINDS)
        data += message(
            kind, body, flags=draw(KINDS), sequence=draw(st.sampled_from((sequence, 0)))
        )
        data += bytes(-len(data) % 4)
    if draw(st.booleans()) and starts:
        length = draw(lies(len(data)) | st.just(0xFFFFFFFF))
        struct.pack_into("=I", data, draw(st.sampled_from(starts)), length)
    return bytes(data[: draw(cuts(len(data)))])


@given(datagrams())
def test_messages_are_what_a_second_walk_finds(data: bytes) -> None:
    wanted = [(oracles.little(found[4:6]), found[16:]) for found in oracles.records(data, 16)]
    assert [(found.kind, bytes(found.body)) for found in messages(data)] == wanted


@given(BYTES | runs_of_attributes().map(lambda data: bytes(20) + data), KINDS)
def test_an_error_message_says_what_is_in_it(body: bytes, flags: int) -> None:
    code, words = error_of(Message(2, flags, 1, memoryview(body)))
    if len(body) < 4:
        assert code == errno.EBADMSG
        return
    assert code == -int.from_bytes(body[:4], sys.byteorder, signed=True)
    said: list[bytes] = []
    if flags & 0x200 and len(body) >= 20:  # NLM_F_ACK_TLVS, NLM_F_CAPPED
        original = oracles.little(body[4:8])
        start = 20 if flags & 0x100 else 4 + original + -original % 4
        said = [text for kind, text in oracles.attributes(body[start:]) if kind == 1]
    assert words == b"".join(said[-1:]).rstrip(b"\0").decode(errors="replace")


# --- sock_diag


class Scripted:
    """The kernel's side: every request is answered by these datagrams, and then by an end."""

    def __init__(self, data: list[bytes]) -> None:
        self._data = data
        self._waiting: list[bytes] = []

    def send(self, request: bytes) -> int:
        self.sequence = oracles.little(request[8:12])
        self._waiting = [*self._data, message(3, bytes(4), sequence=self.sequence)]
        return len(request)

    def recv(self, size: int, flags: int = 0) -> bytes:
        return self._waiting.pop(0)


def answered_by(data: list[bytes]) -> SocketDiagnostics:
    """A sock_diag socket that was answered so."""
    link = NetlinkSocket(netlink.NETLINK_SOCK_DIAG)
    link.close()
    link._socket = Scripted(data)  # type: ignore[assignment]
    found = SocketDiagnostics()
    found.close()
    found._netlink = link
    return found


@st.composite
def socket_messages(draw: st.DrawFn) -> bytes:
    """``struct inet_diag_msg``, with attributes that may lie; perhaps cut off."""
    whole = struct.pack(
        "=BBBB", draw(st.sampled_from((socket.AF_INET, socket.AF_INET6, 1))), 10, 0, 0
    )
    whole += draw(st.binary(min_size=68, max_size=68))
    # The kernel's flags have a byte.
    whole += draw(runs_of_attributes(st.binary(min_size=1, max_size=240)))
    return whole[: draw(cuts(len(whole)))]


@given(st.lists(datagrams(socket_messages()), max_size=3))
def test_no_listener_is_made_of_bytes_beyond_its_message(data: list[bytes]) -> None:
    bodies = [found[16:] for datagram in data for found in oracles.records(datagram, 16)]
    try:
        found = answered_by(data).listeners()
    except SynplugError:
        # NLMSG_ERROR, or NLMSG_DONE with an errno.
        assert any(
            oracles.little(one[4:6]) in (2, 3) for d in data for one in oracles.records(d, 16)
        )
        return
    proper = {(body[4:6], body[44:52]) for body in bodies if len(body) >= 72}
    for listener in found:
        cookie = listener.cookie.to_bytes(8, sys.byteorder)
        assert (listener.port.to_bytes(2, "big"), cookie) in proper


@given(socket_messages())
def test_a_socket_is_what_its_structure_says(body: bytes) -> None:
    if len(body) < 72:
        return
    listener = sock_diag._listener(memoryview(body))
    assert listener.port == int.from_bytes(body[4:6], "big")
    assert listener.accept_queue == oracles.little(body[56:60])
    assert listener.backlog == oracles.little(body[60:64])
    assert listener.inode == oracles.little(body[68:72])
    size = 4 if body[0] == Family.IPV4.af else 16
    mapped = size == 16 and body[8:20] == bytes(10) + b"\xff\xff"
    assert listener.address.packed == (body[20:24] if mapped else body[8 : 8 + size])
    flags = [payload[0] for kind, payload in oracles.attributes(body[72:]) if kind == 11]
    assert listener.v6only is any(flags)


@given(socket_messages())
def test_what_a_connection_tells_is_in_its_tcp_info(body: bytes) -> None:
    if len(body) < 72:
        return
    found = sock_diag._connection(memoryview(body))
    infos = [payload for kind, payload in oracles.attributes(body[72:]) if kind == 2]
    info = (infos or [b""])[-1].ljust(136, b"\0")
    assert found.since_sent_ms == oracles.little(info[44:48])
    assert found.since_received_ms == oracles.little(info[52:56])
    assert found.acked_bytes == oracles.little(info[120:128])
    assert found.received_bytes == oracles.little(info[128:136])


# --- nfnetlink_queue


@st.composite
def packets(draw: st.DrawFn) -> tuple[bytes, int]:
    """A TCP packet with options or extension headers, and where its TCP header begins."""
    segment = tcp(
        draw(st.integers(0, 65_535)),
        draw(st.integers(0, 65_535)),
        sequence=draw(st.integers(0, 2**32 - 1)),
    )
    if draw(st.booleans()):
        options = draw(st.binary(max_size=10).map(lambda data: data * 4))
        source, destination = (str(draw(st.ip_addresses(v=4))) for _ in range(2))
        return ipv4(segment, source, destination, options=options), 20 + len(options)
    chain = []
    for number in draw(st.lists(st.sampled_from((0, 43, 44, 51, 60, 135, 139, 140)), max_size=5)):
        words = draw(st.integers(0, 4))
        contents = {
            44: draw(st.binary(min_size=7, max_size=7)),
            51: bytes((words,)) + bytes((words + 2) * 4 - 2),
        }
        chain.append((number, contents.get(number, extension(words))))
    source, destination = (str(draw(st.ip_addresses(v=6))) for _ in range(2))
    whole = ipv6(segment, source, destination, extensions=tuple(chain))
    return whole, len(whole) - len(segment)


@given(packets(), st.data())
def test_a_flow_is_the_packets_own_wherever_it_is_cut(
    made: tuple[bytes, int], data: st.DataObject
) -> None:
    packet, start = made
    addresses = packet[12:20] if packet[0] >> 4 == 4 else packet[8:40]
    flow = (
        addresses + packet[start : start + 4],
        int.from_bytes(packet[start + 4 : start + 8], "big"),
    )
    assert oracles.flow(packet) == flow_of(memoryview(packet)) == flow
    cut = packet[: data.draw(st.integers(0, len(packet)))]
    readable = len(cut) >= start + 14  # as far as the flags
    assert flow_of(memoryview(cut)) == (flow if readable else (None, 0))


@st.composite
def damaged_packets(draw: st.DrawFn) -> bytes:
    """One with some bytes changed, or any bytes at all."""
    packet = bytearray(draw(packets())[0])
    for _ in range(draw(st.integers(0, 6))):
        packet[draw(st.integers(0, len(packet) - 1))] = draw(st.integers(0, 255))
    return bytes(packet)


@given(damaged_packets() | st.binary(max_size=160))
def test_no_flow_is_read_that_is_not_there(packet: bytes) -> None:
    flow, sequence = flow_of(memoryview(packet))
    if flow is None:
        assert sequence == 0
    else:
        assert (flow, sequence) == oracles.flow(packet)


@given(
    st.binary(min_size=4, max_size=4),
    st.lists(
        st.tuples(st.just(1), st.binary(max_size=9))
        | st.tuples(st.just(5), st.binary(max_size=5))
        | st.tuples(st.just(10), damaged_packets())
        | st.tuples(st.integers(0, 30), BYTES),
        max_size=5,
    ),
    st.data(),
)
def test_a_notice_is_made_of_its_own_attributes(
    head: bytes, parts: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    body = head + b"".join(codec.attribute(kind, payload) for kind, payload in parts)
    body = body[: data.draw(st.integers(4, len(body)))]
    found = _notice(memoryview(body))
    given_ = oracles.attributes(body[4:])
    ids = [
        int.from_bytes(payload[:4], "big")
        for kind, payload in given_
        if kind == 1 and len(payload) >= 4
    ]
    if found is None:
        assert not ids or ids[-1] == 0
        return
    assert (found.queue, found.packet) == (int.from_bytes(head[2:], "big"), ids[-1])
    devices = [payload for kind, payload in given_ if kind == 5]
    last = devices[-1] if devices else b""
    assert found.device == (int.from_bytes(last, "big") if len(last) == 4 else 0)
    contents = [payload for kind, payload in given_ if kind == 10]
    assert found.flow is None or (found.flow, found.sequence) == oracles.flow(contents[-1])


# --- nf_tables


@given(st.binary(min_size=8, max_size=8), BYTES)
def test_a_rules_counter_is_read(count: bytes, other: bytes) -> None:
    counter = codec.nested(
        1,
        codec.text(1, "counter"),
        codec.nested(2, codec.attribute(2, count)),
    )
    before = codec.nested(1, codec.text(1, "cmp"), codec.attribute(2, other))
    rule = bytes(4) + codec.text(1, "name") + codec.nested(4, before, counter)
    assert nft._packets_counted(memoryview(rule)) == int.from_bytes(count, "big")
