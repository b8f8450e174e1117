"""The netlink codec, and sockets that answer from a script."""

from __future__ import annotations

import errno
import resource
import socket
import struct
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synplug.errors import KernelError, OverrunError, PrivilegeError, SynplugError, UnsupportedError
from synplug.kernel import netlink
from synplug.kernel.netlink import NetlinkSocket
from synplug.kernel.netlink_codec import (
    Message,
    attribute,
    attributes,
    be16,
    be32,
    error_of,
    messages,
    nested,
    text,
)

# --- attributes


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (attribute(5, b"abcd"), "0800 0500 61626364"),
        (attribute(5, b"abc"), "0700 0500 61626300"),
        (attribute(5, b""), "0400 0500"),
        (text(1, "ab"), "0700 0100 61620000"),
        (be16(2, 0x1234), "0600 0200 12340000"),
        (be32(3, 1), "0800 0300 00000001"),
        (be32(3, -150), "0800 0300 ffffff6a"),
        (nested(4, be32(1, 7), text(2, "x")), "1400 0480 0800 0100 00000007 0600 0200 78000000"),
    ],
)
def test_encoding(encoded: bytes, expected: str) -> None:
    """As ``struct nlattr`` has it on a little-endian machine."""
    if struct.pack("=H", 1) != b"\1\0":
        pytest.fail("the expected bytes are for little-endian machines")
    assert encoded.hex() == expected.replace(" ", "")


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=40)), max_size=8))
def test_what_was_encoded_is_decoded(values: list[tuple[int, bytes]]) -> None:
    data = b"".join(attribute(kind, payload) for kind, payload in values)
    assert [(kind, bytes(payload)) for kind, payload in attributes(data)] == values


@given(st.binary(max_size=200))
def test_hostile_attributes_end_the_walk_and_stay_inside(data: bytes) -> None:
    view = memoryview(data)
    total = 0
    for kind, payload in attributes(view):
        assert 0 <= kind <= 0x3FFF
        total += len(payload) + 4
    assert total <= len(data)


@pytest.mark.parametrize("length", [0, 1, 3, 9, 0xFFFF])
def test_a_length_that_does_not_fit_ends_the_walk(length: int) -> None:
    good = attribute(1, b"good")
    bad = struct.pack("=HH", length, 2) + b"bad!"
    assert [kind for kind, _ in attributes(good + bad)] == [1]


def test_flags_of_a_kind_are_no_part_of_it() -> None:
    ((kind, _),) = attributes(nested(4, be32(1, 1)))
    assert kind == 4


# --- messages


def message(kind: int, body: bytes, *, flags: int = 0, sequence: int = 1) -> bytes:
    data = struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body
    return data + bytes(-len(data) % 4)


def test_a_datagram_of_several_messages() -> None:
    data = message(7, b"abc", sequence=1) + message(8, b"", flags=3, sequence=2)
    found = [(m.kind, m.flags, m.sequence, bytes(m.body)) for m in messages(data)]
    assert found == [(7, 0, 1, b"abc"), (8, 3, 2, b"")]


@given(st.binary(max_size=300))
def test_hostile_datagrams_end_the_walk_and_stay_inside(data: bytes) -> None:
    assert sum(16 + len(found.body) for found in messages(data)) <= len(data)


@pytest.mark.parametrize("cut", [1, 3, 15, 17])
def test_a_truncated_datagram_ends_before_the_cut(cut: int) -> None:
    data = message(7, b"abcd") + message(8, b"efgh")
    assert [found.kind for found in messages(data[:-cut])] == [7]


# --- errors


def error_body(code: int, *, original: bytes = b"", words: str = "") -> bytes:
    """``struct nlmsgerr``, the refused message's header, and perhaps its payload and words."""
    echoed = struct.pack("=IHHII", 16 + len(original), 1, 0, 1, 0) + original
    body = struct.pack("=i", -code) + echoed
    body += bytes(-len(body) % 4)
    return body + (text(1, words) if words else b"")


@pytest.mark.parametrize(
    ("flags", "body", "expected"),
    [
        (0x100, error_body(0), (0, "")),
        (0x100, error_body(errno.EEXIST), (errno.EEXIST, "")),
        (0x300, error_body(errno.EINVAL, words="no such chain"), (errno.EINVAL, "no such chain")),
        (0x200, error_body(22, original=b"payload", words="why"), (22, "why")),
        (0x100, error_body(22, words="not announced"), (22, "")),
        (0x300, error_body(22, words="why")[:-8], (22, "")),
        (0x300, error_body(22)[:10], (22, "")),
        (0x300, error_body(22)[:4], (22, "")),
        (0, b"\0\0", (errno.EBADMSG, "truncated error message")),
    ],
)
def test_error_messages(flags: int, body: bytes, expected: tuple[int, str]) -> None:
    assert error_of(Message(2, flags, 1, memoryview(body))) == expected


@given(st.binary(max_size=120), st.integers(0, 0xFFFF))
def test_hostile_error_messages_are_no_exception(body: bytes, flags: int) -> None:
    code, words = error_of(Message(2, flags, 1, memoryview(body)))
    assert isinstance(code, int)
    assert len(body) < 4 or len(words) <= len(body)


# --- a socket that answers from a script


class Script:
    """The kernel's side of a socket: *answer* makes datagrams of what was sent."""

    def __init__(self, answer: Callable[[list[Message]], list[bytes]]) -> None:
        self.sent: list[Message] = []
        self._answer = answer
        self._waiting: list[bytes] = []
        self.send_buffer_bytes = 212_992
        self.may_force = True

    def send(self, data: bytes) -> int:
        said = list(messages(data))
        self.sent += said
        self._waiting += self._answer(said)
        return len(data)

    def getsockopt(self, level: int, option: int) -> int:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_SNDBUF)
        return self.send_buffer_bytes

    def setsockopt(self, level: int, option: int, value: int) -> None:
        """As the kernel does it: twice the number, and no more than permitted (socket(7))."""
        assert level == socket.SOL_SOCKET
        if option != socket.SO_SNDBUF and not self.may_force:
            raise PermissionError
        permitted = value if option != socket.SO_SNDBUF else min(value, 212_992)
        self.send_buffer_bytes = 2 * permitted

    def recv(self, size: int, flags: int = 0) -> bytes:
        if not self._waiting:
            raise BlockingIOError
        return self._waiting.pop(0)


def talking_to(answer: Callable[[list[Message]], list[bytes]]) -> tuple[NetlinkSocket, Script]:
    sock = NetlinkSocket(netlink.NETLINK_SOCK_DIAG)
    sock.close()
    script = Script(answer)
    sock._socket = script  # type: ignore[assignment]
    return sock, script


def ack(of: Message, code: int = 0) -> bytes:
    return message(2, error_body(code), flags=0x100, sequence=of.sequence)


def test_an_acknowledged_request() -> None:
    sock, script = talking_to(lambda said: [ack(said[0])])
    sock.acknowledged("do it", 77, b"body", flags=netlink.NLM_F_CREATE)
    (request,) = script.sent
    assert (request.kind, bytes(request.body)) == (77, b"body")
    assert request.flags == netlink.NLM_F_REQUEST | netlink.NLM_F_ACK | netlink.NLM_F_CREATE


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (errno.EPERM, PrivilegeError, "do it: not permitted"),
        (errno.EBUSY, KernelError, "do it: EBUSY"),
    ],
)
def test_a_refused_request(code: int, kind: type[Exception], words: str) -> None:
    sock, _ = talking_to(lambda said: [ack(said[0], code)])
    with pytest.raises(kind, match=words):
        sock.acknowledged("do it", 77, b"")


def test_no_answer_is_an_error_and_no_wait() -> None:
    sock, _ = talking_to(lambda said: [])
    with pytest.raises(KernelError, match="no acknowledgement"):
        sock.acknowledged("do it", 77, b"")


def test_an_answer_to_an_earlier_request_is_passed_over() -> None:
    def answer(said: list[Message]) -> list[bytes]:
        stale = message(2, error_body(errno.EBUSY), sequence=said[0].sequence - 1)
        return [stale, ack(said[0])]

    sock, _ = talking_to(answer)
    sock.acknowledged("first", 1, b"")
    sock.acknowledged("second", 1, b"")


def test_a_batch_is_one_datagram_framed_and_acknowledged_once() -> None:
    sock, script = talking_to(lambda said: [ack(said[-2])])
    sock.batch("do all", 10, [(1, 0x400, b"aaaa"), (2, 0, b"bbbb")])
    assert [found.kind for found in script.sent] == [0x10, 1, 2, 0x11]
    assert [found.flags & netlink.NLM_F_ACK for found in script.sent] == [0, 0, 4, 0]
    assert [bytes(found.body) for found in script.sent[::3]] == [b"\0\0\0\x0a"] * 2
    sequences = [found.sequence for found in script.sent]
    assert sequences == list(range(sequences[0], sequences[0] + 4))


@pytest.mark.parametrize(
    ("body_bytes", "may_force", "buffer_bytes"),
    [
        (212_904, True, 212_992),  # with three headers and the edges' bodies: it just fits
        (212_908, True, 425_928),
        (212_908, False, 425_928),
        (900_000, True, 1_800_112),
        (900_000, False, 425_984),  # what wmem_max permits; send(2) will say EMSGSIZE
    ],
)
def test_a_batch_gets_the_send_buffer_that_it_needs(
    body_bytes: int, may_force: bool, buffer_bytes: int
) -> None:
    sock, script = talking_to(lambda said: [ack(said[-2])])
    script.may_force = may_force
    sock.batch("do all", 10, [(1, 0, bytes(body_bytes))])
    assert script.send_buffer_bytes == buffer_bytes


@pytest.mark.parametrize("culprit", [0, 1, 2])
def test_an_error_of_any_request_of_a_batch_is_raised(culprit: int) -> None:
    sock, _ = talking_to(lambda said: [ack(said[culprit], errno.ENOENT)])
    with pytest.raises(KernelError, match="ENOENT"):
        sock.batch("do all", 10, [(1, 0, b""), (2, 0, b"")])


def test_a_dump_of_several_datagrams() -> None:
    def answer(said: list[Message]) -> list[bytes]:
        own, other = said[0].sequence, said[0].sequence + 9
        return [
            message(20, b"one!", sequence=own) + message(20, b"not!", sequence=other),
            message(20, b"two!", sequence=own),
            message(3, bytes(4), sequence=own),
        ]

    sock, script = talking_to(answer)
    assert [bytes(body) for body in sock.dump("list", 20, b"")] == [b"one!", b"two!"]
    assert script.sent[0].flags == netlink.NLM_F_REQUEST | netlink.NLM_F_DUMP


def test_a_refused_dump_is_an_error_and_no_empty_list() -> None:
    sock, _ = talking_to(lambda said: [ack(said[0], errno.ENOENT)])
    with pytest.raises(KernelError, match="list: ENOENT"):
        sock.dump("list", 20, b"")


def test_an_error_at_the_end_of_a_dump_is_one() -> None:
    def answer(said: list[Message]) -> list[bytes]:
        own = said[0].sequence
        end = struct.pack("=i", -errno.ENOMEM) + text(1, "why")
        return [message(20, b"one!", sequence=own), message(3, end, flags=0x200, sequence=own)]

    sock, _ = talking_to(answer)
    with pytest.raises(KernelError, match=r"list: ENOMEM, .*: why"):
        sock.dump("list", 20, b"")


INTERRUPTED = 0x10


def changing(times: int, *, marked: str) -> tuple[NetlinkSocket, Script]:
    """A table that changes during the first so many dumps; each shows how many there were."""
    dumps = 0

    def answer(said: list[Message]) -> list[bytes]:
        nonlocal dumps
        dumps += 1
        own = said[0].sequence
        flags = {marked: INTERRUPTED} if dumps <= times else {}
        return [
            message(20, b"old!", sequence=own),
            message(20, b"%4d" % dumps, flags=flags.get("entry", 0), sequence=own),
            message(3, bytes(4), flags=flags.get("end", 0), sequence=own),
        ]

    return talking_to(answer)


@pytest.mark.parametrize("marked", ["entry", "end"])
@given(times=st.integers(0, 9))
def test_an_interrupted_dump_is_asked_for_anew(marked: str, times: int) -> None:
    sock, script = changing(times, marked=marked)
    found = [bytes(body) for body in sock.dump("list", 20, b"")]
    assert found == [b"old!", b"%4d" % (times + 1)], "all of the last one, nothing of the others"
    assert len({request.sequence for request in script.sent}) == times + 1


def test_a_dump_that_is_always_interrupted_is_an_error_or_will_do() -> None:
    sock, script = changing(99, marked="end")
    with pytest.raises(KernelError, match=r"list: EINTR, .* changed meanwhile, 10 times"):
        sock.dump("list", 20, b"")
    assert len(script.sent) == 10
    sock, script = changing(99, marked="end")
    assert len(sock.dump("list", 20, b"", complete=False)) == 2
    assert len(script.sent) == 10


@pytest.mark.parametrize("unread", [1, 2])
def test_a_dump_that_could_not_be_read_leaves_the_socket_usable(
    monkeypatch: pytest.MonkeyPatch, unread: int
) -> None:
    """The kernel's own answers: it refuses a socket whose last dump is not over (EBUSY)."""
    sock = NetlinkSocket(0)
    real, calls = sock._receive, 0

    def receive(action: str, flags: int = 0) -> Iterator[Message]:
        nonlocal calls
        calls += 1
        if calls == unread:
            raise KernelError(action, errno.ENOBUFS)
        return real(action, flags)

    monkeypatch.setattr(sock, "_receive", receive)
    with pytest.raises(KernelError, match="ENOBUFS"):
        sock.dump("list the links", 18, bytes(16))
    assert sock.dump("list the links", 18, bytes(16))
    sock.close()


# --- what the socket itself refuses


class Failing:
    """A socket that cannot send, or cannot receive."""

    def __init__(self, code: int, *, sends: bool = False) -> None:
        self._code = code
        self._sends = sends

    def getsockopt(self, level: int, option: int) -> int:
        return 212_992

    def send(self, data: bytes) -> int:
        if self._sends:
            return len(data)
        raise OSError(self._code, "what the C library says")

    def recv(self, size: int, flags: int = 0) -> bytes:
        raise OSError(self._code, "what the C library says")

    def recv_into(self, buffer: bytearray, size: int, flags: int) -> int:
        raise OSError(self._code, "what the C library says")


REQUESTS: list[Callable[[NetlinkSocket], object]] = [
    lambda sock: sock.acknowledged("do it", 77, b""),
    lambda sock: sock.batch("do it", 10, [(1, 0, b"")]),
    lambda sock: sock.dump("do it", 20, b""),
    lambda sock: sock.receive_into("do it", bytearray(64)),
]


@pytest.mark.parametrize("code", [errno.ENOBUFS, errno.EMSGSIZE, errno.EPERM, errno.ECONNREFUSED])
@pytest.mark.parametrize("sends", [False, True], ids=["send", "receive"])
@pytest.mark.parametrize("request_of", REQUESTS, ids=["one", "batch", "dump", "notices"])
def test_what_a_socket_refuses_is_told_with_the_action(
    code: int, sends: bool, request_of: Callable[[NetlinkSocket], object]
) -> None:
    sock, _ = talking_to(lambda said: [])
    sock._socket = Failing(code, sends=sends)  # type: ignore[assignment]
    with pytest.raises(SynplugError) as error:
        request_of(sock)
    assert error.value.message.startswith("do it: ")
    if not isinstance(error.value, OverrunError):
        assert isinstance(error.value, KernelError)
        assert error.value.errno == code


def test_only_notices_can_be_overrun() -> None:
    """A request that found no memory was not sent; nothing was dropped that came unasked."""
    sock, _ = talking_to(lambda said: [])
    sock._socket = Failing(errno.ENOBUFS)  # type: ignore[assignment]
    with pytest.raises(OverrunError):
        sock.receive_into("read", bytearray(64))
    with pytest.raises(KernelError, match="give a verdict: ENOBUFS"):
        sock.send("give a verdict", b"")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.EPROTONOSUPPORT, UnsupportedError),
        (errno.EAFNOSUPPORT, UnsupportedError),
        (errno.EMFILE, KernelError),
        (errno.ENFILE, KernelError),
        (errno.ENOMEM, KernelError),
        (errno.EACCES, KernelError),
    ],
)
def test_a_socket_that_cannot_be_opened(
    monkeypatch: pytest.MonkeyPatch, code: int, kind: type[SynplugError]
) -> None:
    def refused(*_: int) -> None:
        raise OSError(code, "what the C library says")

    monkeypatch.setattr(socket, "socket", refused)
    with pytest.raises(SynplugError) as error:
        NetlinkSocket(netlink.NETLINK_NETFILTER)
    assert type(error.value) is kind
    assert ("does not speak" in error.value.message) is (kind is UnsupportedError)


def test_a_process_without_free_descriptors_is_not_told_to_load_a_module() -> None:
    """By the kernel itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(KernelError, match=r"open a netlink socket \(sock_diag\): EMFILE"):
            NetlinkSocket(netlink.NETLINK_SOCK_DIAG)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_protocol_that_the_kernel_does_not_have() -> None:
    """By the kernel itself: netlink has 32 protocols at the most (MAX_LINKS)."""
    with pytest.raises(UnsupportedError, match="does not speak 99"):
        NetlinkSocket(99)
