"""Reading what the kernel says of queued packets."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synplug.errors import KernelError, UnsupportedError
from synplug.kernel import nfqueue
from synplug.kernel.netlink_codec import attribute, be32
from synplug.kernel.nfqueue import (
    NO_SYN,
    Notice,
    QueueLengths,
    QueueState,
    _notice,
    flow_of,
    queue_states,
)
from tests.unit.packets import extension, ipv4, ipv6, tcp

V4 = ("10.0.0.1", "10.0.0.2")
V6 = ("fd00::1", "fd00::2")
FLOW4 = bytes.fromhex("0a000001 0a000002 9c40 0050".replace(" ", ""))
FLOW6 = bytes.fromhex(
    "fd000000000000000000000000000001 fd000000000000000000000000000002 9c40 0050".replace(" ", "")
)


def read(packet: bytes) -> tuple[bytes | None, int]:
    return flow_of(memoryview(packet))


# --- flows


def test_ipv4() -> None:
    assert read(ipv4(tcp(), *V4)) == (FLOW4, 7)


@pytest.mark.parametrize("words", range(1, 11))
def test_ipv4_with_options(words: int) -> None:
    assert read(ipv4(tcp(sequence=0xFFFFFFFF), *V4, options=bytes(words * 4))) == (
        FLOW4,
        0xFFFFFFFF,
    )


def test_ipv6() -> None:
    assert read(ipv6(tcp(), *V6)) == (FLOW6, 7)


@pytest.mark.parametrize("number", [0, 43, 60, 135, 139, 140])
@pytest.mark.parametrize("words", [0, 1, 5])
def test_ipv6_with_an_extension_header(number: int, words: int) -> None:
    packet = ipv6(tcp(), *V6, extensions=((number, extension(words)),))
    assert read(packet) == (FLOW6, 7)


def test_ipv6_with_several_extension_headers() -> None:
    chain = ((0, extension()), (60, extension(1)), (44, bytes(7)), (43, extension(2)))
    assert read(ipv6(tcp(), *V6, extensions=chain)) == (FLOW6, 7)


@pytest.mark.parametrize("words", [1, 4, 8])
def test_ipv6_with_an_authentication_header(words: int) -> None:
    """Its length is in units of its own (RFC 4302)."""
    content = bytes((words,)) + bytes(2 + 4 * (words + 1))
    assert read(ipv6(tcp(), *V6, extensions=((51, content),))) == (FLOW6, 7)


def test_the_length_byte_of_a_fragment_header_is_reserved() -> None:
    packet = ipv6(tcp(), *V6, extensions=((44, b"\x07" + bytes(6)),))
    assert read(packet) == (FLOW6, 7)


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\x45",
        ipv4(tcp(), *V4)[:33],
        ipv4(tcp(), *V4, options=bytes(40))[:67],
        ipv6(tcp(), *V6)[:53],
        b"\x44" + ipv4(tcp(), *V4)[1:],  # a header of 16 bytes
        b"\x40" + ipv4(tcp(), *V4)[1:],
        b"\x55" + ipv4(tcp(), *V4)[1:],  # no such version
        ipv6(tcp(), *V6, extensions=((0, b"\xff" + bytes(6)),)),  # beyond the packet
    ],
)
def test_packets_whose_flow_cannot_be_read(packet: bytes) -> None:
    assert read(packet) == (None, 0)


@pytest.mark.parametrize("flags", [0x00, 0x01, 0x04, 0x10, 0x12, 0x14, 0x03, 0x06])
def test_what_is_no_syn(flags: int) -> None:
    segment = bytearray(tcp())
    segment[13] = flags
    assert read(ipv4(bytes(segment), *V4)) == (NO_SYN, 0)
    assert read(ipv6(bytes(segment), *V6, extensions=((0, extension()),))) == (NO_SYN, 0)


@pytest.mark.parametrize("flags", [0x02, 0xC2, 0x42, 0x2A])
def test_a_syn_may_have_other_flags(flags: int) -> None:
    segment = bytearray(tcp())
    segment[13] = flags
    assert read(ipv4(bytes(segment), *V4)) == (FLOW4, 7)


#: ICMP, IGMP, UDP, DCCP, GRE, ESP, ICMPv6, none, OSPF, VRRP, SCTP, UDP-Lite, reserved.
@pytest.mark.parametrize("protocol", [1, 2, 17, 33, 47, 50, 58, 59, 89, 112, 132, 136, 255])
def test_another_protocol(protocol: int) -> None:
    packet = bytearray(ipv4(tcp(), *V4))
    packet[9] = protocol
    assert read(bytes(packet)) == (NO_SYN, 0)
    packet = bytearray(ipv6(tcp(), *V6))
    packet[6] = protocol
    assert read(bytes(packet)) == (NO_SYN, 0)


def inside(packet: bytes) -> None:
    """The flow is made of bytes of the packet, and of nothing behind them."""
    flow, sequence = flow_of(memoryview(packet))
    if flow is None:
        assert sequence == 0
        return
    if flow == NO_SYN:
        return
    assert len(flow) == (12 if packet[0] >> 4 == 4 else 36)
    assert flow[-4:] + sequence.to_bytes(4, "big") in packet
    assert flow[:-4] in packet


@given(st.binary(max_size=160))
def test_hostile_packets(packet: bytes) -> None:
    inside(packet)


@given(
    version=st.sampled_from((0x40, 0x60)),
    low=st.integers(0, 15),
    rest=st.binary(min_size=39, max_size=160),
    header=st.sampled_from((0, 6, 43, 44, 60, 135, 139, 140, 50)),
    chain=st.lists(st.sampled_from((0, 6, 43, 44, 60, 1, 2, 255)), max_size=40),
)
def test_hostile_packets_of_a_known_version(
    version: int, low: int, rest: bytes, header: int, chain: list[int]
) -> None:
    packet = bytearray((version | low,)) + rest
    packet[6] = header
    packet[40:] = bytes(chain) + packet[40 + len(chain) :]
    inside(bytes(packet))


@given(cut=st.integers(0, 120), words=st.integers(0, 5), number=st.sampled_from((0, 43, 44, 60)))
def test_truncated_packets(cut: int, words: int, number: int) -> None:
    content = bytes(7) if number == 44 else extension(words)
    packet = ipv6(tcp(), *V6, extensions=((number, content), (0, extension())))
    whole = len(packet) - 6  # ports, sequence and flags are in TCP's first fourteen bytes
    flow, _ = flow_of(memoryview(packet)[:cut])
    assert (flow == FLOW6) is (cut >= whole)
    assert flow in (None, FLOW6)


# --- notices


def body(*attributes: bytes, queue: int = 20_000) -> memoryview:
    return memoryview(struct.pack("!BBH", 2, 0, queue) + b"".join(attributes))


def header(packet: int) -> bytes:
    return attribute(1, struct.pack("!IHBx", packet, 0x0800, 1))


def test_a_notice() -> None:
    found = _notice(body(header(5), be32(5, 3), attribute(10, ipv4(tcp(), *V4))))
    assert found == Notice(20_000, 5, 3, FLOW4, 7)  # type: ignore[arg-type]


@pytest.mark.parametrize("device", [1, 2, 257, 1 << 24])
def test_a_notice_has_the_device_that_its_packet_came_in_by(device: int) -> None:
    found = _notice(body(header(5), be32(5, device)))
    assert found is not None
    assert found.device == device


def test_a_notice_without_a_payload_has_no_flow() -> None:
    assert _notice(body(header(5))) == Notice(20_000, 5, 0, None, 0)


def test_a_notice_without_an_id_is_none() -> None:
    assert _notice(body(attribute(10, ipv4(tcp(), *V4)))) is None
    assert _notice(body()) is None


def test_attributes_behind_a_broken_one_are_not_read() -> None:
    broken = struct.pack("=HH", 2, 99)
    assert _notice(body(broken, header(5))) is None


@given(st.binary(min_size=4, max_size=200))
def test_hostile_notices(data: bytes) -> None:
    found = _notice(memoryview(data))
    if found is not None:
        assert found.queue == int.from_bytes(data[2:4], "big")
        assert 0 < found.packet < 1 << 32


@given(st.integers(0, 200), st.integers(0, 1 << 16))
def test_truncated_notices_and_wrong_lengths(cut: int, length: int) -> None:
    data = bytearray(body(header(5), be32(5, 1), attribute(10, ipv6(tcp(), *V6))))
    data[4 + 8 + 4 + 8 : 4 + 8 + 4 + 10] = struct.pack("=H", length & 0xFFFF)
    found = _notice(memoryview(bytes(data))[: max(4, cut)])
    if found is not None and found.flow is not None:
        assert found.flow == FLOW6


# --- the state file


def test_queue_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "nfnetlink_queue"
    path.write_text(
        "20000  12345     3 2   128     4     5       77  1\n"
        "20001 -12345     0 2   128     0     0        0  1\n"
    )
    monkeypatch.setattr(nfqueue, "_STATE_FILE", str(path))
    assert queue_states() == {
        20_000: QueueState(number=20_000, waiting=3, dropped_unread=5, last_id=77),
        20_001: QueueState(number=20_001, waiting=0, dropped_unread=0, last_id=0),
    }


def test_the_lengths_of_queues_are_read_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "nfnetlink_queue"
    path.write_text("20000  12345     3 2   128     4     5       77  1\n" * 2000)
    monkeypatch.setattr(nfqueue, "_STATE_FILE", str(path))
    lengths = QueueLengths()
    assert lengths.now() == [(20_000, 3)] * 2000
    path.write_text("    7 -12345     1 2   128     0     0        0  1\n")
    assert lengths.now() == [(7, 1)]
    lengths.close()
    path.unlink()
    with pytest.raises(KernelError, match="read"):
        QueueLengths()


def test_a_kernel_without_queues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nfqueue, "_STATE_FILE", str(tmp_path / "none"))
    with pytest.raises(UnsupportedError, match="no nfnetlink_queue"):
        queue_states()
