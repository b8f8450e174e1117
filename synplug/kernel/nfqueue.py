"""nfnetlink_queue: bind queues, read what is held, give verdicts.

Source: ``include/uapi/linux/netfilter/nfnetlink_queue.h``, ``net/netfilter/nfnetlink_queue.c``.
Packet ids count up from 1 in each queue; a batch verdict for id N settles all ids up to N.
"""

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from synplug.errors import KernelError, PrivilegeError, UnsupportedError
from synplug.kernel.netlink import NETLINK_NETFILTER, NLM_F_REQUEST, NetlinkSocket
from synplug.kernel.netlink_codec import attribute, be32
from synplug.model import Flow
from synplug.record import Record

_SUBSYSTEM = 3
_PACKET, _VERDICT, _CONFIG, _VERDICT_BATCH = (_SUBSYSTEM << 8 | kind for kind in range(4))
_CFG_CMD, _CFG_PARAMS, _CFG_QUEUE_MAXLEN, _CFG_MASK, _CFG_FLAGS = 1, 2, 3, 4, 5
_CMD_BIND, _CMD_UNBIND, _CMD_PF_BIND = 1, 2, 3
_COPY_PACKET = 2
_F_FAIL_OPEN = 0x1
_A_PACKET_HDR, _A_VERDICT_HDR, _A_INDEV, _A_PAYLOAD = 1, 2, 5, 10
NF_DROP, NF_ACCEPT = 0, 1
#: Of ``lo``, in every network namespace (``include/net/net_namespace.h``).
LOOPBACK = 1
#: Enough for IPv6 with a few extension headers; no dearer than 64 (both end in a 1 KiB slab).
_COPY_BYTES = 128
_NOTICE_BYTES = 830
_RECEIVE_BUFFER_LIMIT_BYTES = 256 << 20
_FIRST_NUMBER, _LAST_NUMBER = 20_000, 60_000
_STATE_FILE = "/proc/thread-self/net/netfilter/nfnetlink_queue"
_FRAGMENT_HEADER, _AUTHENTICATION_HEADER = 44, 51
#: Of IPv6. Behind these the kernel looks for TCP, too (``ipv6_ext_hdr``), and behind some more.
_EXTENSION_HEADERS = frozenset((0, 43, 44, 51, 60, 135, 139, 140))
_TCP = 6
_FIN_SYN_RST_ACK, _SYN = 0x17, 0x02
#: Stands for the flow of what is no SYN.
NO_SYN = Flow(b"")

_MESSAGE = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")


class Notice(NamedTuple):
    """A packet that was queued.

    *device* is the index of the interface that it came in by. *flow* is None where its headers are
    beyond the copied bytes, :data:`NO_SYN` where somebody else's rule has sent something else
    here; *sequence* is TCP's.
    """

    queue: int
    packet: int
    device: int
    flow: Flow | None
    sequence: int


class QueueState(Record):
    """A line of /proc/net/netfilter/nfnetlink_queue.

    :param waiting: packets in it now. :param last_id: of the packet that came last.
    :param dropped_unread: packets whose notice did not fit into the socket's buffer.
    """

    number: int
    waiting: int
    dropped_unread: int
    last_id: int


def queue_states() -> dict[int, QueueState]:
    """The queues of this network namespace, by number.

    :raises UnsupportedError: no nfnetlink_queue here. :raises PrivilegeError: not readable.
    """
    if not os.path.exists(_STATE_FILE):
        _load_module()
    try:
        with open(_STATE_FILE) as file:
            lines = file.read().splitlines()
    except FileNotFoundError as error:
        raise UnsupportedError(
            "this kernel has no nfnetlink_queue", remedy="load the module nfnetlink_queue"
        ) from error
    except PermissionError as error:
        raise PrivilegeError(
            f"{_STATE_FILE} cannot be read", capability="CAP_DAC_READ_SEARCH"
        ) from error
    except OSError as error:  # no descriptor, no memory left for us
        raise KernelError(f"read {_STATE_FILE}", error.errno or 0) from error
    states = {}
    for line in lines:
        fields = [int(word) for word in line.split()]
        # number, port id, waiting, copy mode and range, dropped when full and unread, last id
        states[fields[0]] = QueueState(
            number=fields[0], waiting=fields[2], dropped_unread=fields[6], last_id=fields[7]
        )
    return states


class QueueLengths:
    """How many packets wait in each queue of this network namespace: a look takes some 20 µs.

    :raises KernelError: it cannot be read.
    """

    def __init__(self) -> None:
        try:
            self._descriptor = os.open(_STATE_FILE, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise KernelError(f"read {_STATE_FILE}", error.errno or 0) from error

    def now(self) -> list[tuple[int, int]]:
        """Each queue's number, and how many."""
        data = b""
        while part := os.pread(self._descriptor, 1 << 16, len(data)):
            data += part
        return [(int(fields[0]), int(fields[2])) for fields in map(bytes.split, data.splitlines())]

    def close(self) -> None:
        """Look no more."""
        os.close(self._descriptor)


def _load_module() -> None:
    """Make the kernel load nfnetlink_queue, as the first message to it does.

    ``net/netfilter/nfnetlink.c``, nfnetlink_rcv_msg. The command PF_BIND has no effect (3.8).
    """
    sock = NetlinkSocket(NETLINK_NETFILTER)
    body = bytes(4) + attribute(_CFG_CMD, struct.pack("!BxH", _CMD_PF_BIND, 0))
    try:
        # Whether it helped, the state file tells; without privilege or the module it does not.
        with suppress(PrivilegeError, KernelError, UnsupportedError):
            sock.acknowledged("load nfnetlink_queue", _CONFIG, body)
    finally:
        sock.close()


class PacketQueues:
    """A run of consecutive queues, bound to one socket.

    :param count: how many. :param length_packets: the most that each may hold.
    :param fail_open: let packets through, instead of dropping them, when a queue is full.
    :raises PrivilegeError: no CAP_NET_ADMIN.
    """

    def __init__(self, *, count: int, length_packets: int, fail_open: bool) -> None:
        self._socket = NetlinkSocket(NETLINK_NETFILTER)
        self._buffer = bytearray(1 << 16)
        self._view = memoryview(self._buffer)
        try:
            self.numbers = self._bind_free(count)
            for number in self.numbers:
                self._configure(number, length_packets, fail_open)
            wanted = count * length_packets * _NOTICE_BYTES
            self._socket.enlarge_receive_buffer(
                max(1 << 20, min(wanted, _RECEIVE_BUFFER_LIMIT_BYTES) // 2)
            )
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """The socket's descriptor: readable when a packet was queued."""
        return self._socket.fileno()

    def _bind_free(self, count: int) -> tuple[int, ...]:
        """Bind *count* consecutive numbers that nobody has, away from the usual small ones.

        A rule somewhere may name a number that nobody is bound to at the moment; binding that
        would take over its packets. Nothing tells such numbers, so they are drawn at random.
        """
        taken = set(queue_states())
        for _ in range(200):
            drawn = int.from_bytes(os.urandom(4), "big")  # to import random takes 2 ms
            first = _FIRST_NUMBER + drawn % (_LAST_NUMBER - count - _FIRST_NUMBER)
            numbers = tuple(range(first, first + count))
            if taken.isdisjoint(numbers) and self._bind(numbers):
                return numbers
        raise KernelError("bind a free queue number", errno.EBUSY)

    def _bind(self, numbers: tuple[int, ...]) -> bool:
        for index, number in enumerate(numbers):
            try:
                self._command(number, _CMD_BIND)
            except (PrivilegeError, KernelError) as error:
                # EPERM is also the answer where another socket has the number.
                taken = number in queue_states()
                for bound in numbers[:index]:
                    self._command(bound, _CMD_UNBIND)
                if taken or (isinstance(error, KernelError) and error.errno == errno.EBUSY):
                    return False
                raise
        return True

    def _command(self, number: int, command: int) -> None:
        self._config(number, attribute(_CFG_CMD, struct.pack("!BxH", command, 0)))

    def _configure(self, number: int, length: int, fail_open: bool) -> None:
        self._config(number, be32(_CFG_QUEUE_MAXLEN, length))
        self._config(number, attribute(_CFG_PARAMS, struct.pack("!IB", _COPY_BYTES, _COPY_PACKET)))
        if fail_open:
            flags = be32(_CFG_MASK, _F_FAIL_OPEN) + be32(_CFG_FLAGS, _F_FAIL_OPEN)
            self._config(number, flags)

    def _config(self, number: int, attributes: bytes) -> None:
        body = struct.pack("!BBH", 0, 0, number) + attributes
        self._socket.acknowledged(f"configure netfilter queue {number}", _CONFIG, body)

    def read(self) -> Iterator[Notice]:
        """The packets queued since the last call; ends when there are none left.

        :raises OverrunError: notices were lost, and their packets dropped, since the reader was
            too slow. The next call goes on.
        """
        while True:
            size = self._socket.receive_into("read the netfilter queue", self._buffer)
            if not size:
                return
            offset = 0
            while size - offset >= 20:
                length, kind, _, _, _ = _MESSAGE.unpack_from(self._buffer, offset)
                if length < 20 or length > size - offset:
                    break
                if kind == _PACKET:  # anything else answers a verdict whose packet is gone
                    notice = _notice(self._view[offset + 16 : offset + length])
                    if notice is not None:
                        yield notice
                offset += (length + 3) & ~3

    def verdict(self, queue: int, packet: int, verdict: int) -> None:
        """Settle one packet. A packet that is no longer there is no error."""
        self._settle(_VERDICT, queue, packet, verdict)

    def verdict_up_to(self, queue: int, packet: int, verdict: int) -> None:
        """Settle every packet of the queue up to *packet*, in the order of their arrival."""
        self._settle(_VERDICT_BATCH, queue, packet, verdict)

    def _settle(self, kind: int, queue: int, packet: int, verdict: int) -> None:
        head = _ATTRIBUTE.pack(12, _A_VERDICT_HDR)
        body = struct.pack("!BBH", 0, 0, queue) + head + struct.pack("!II", verdict, packet)
        message = _MESSAGE.pack(16 + len(body), kind, NLM_F_REQUEST, 0, 0) + body
        self._socket.send("give a verdict", message)

    def states(self) -> list[QueueState]:
        """What the kernel says of these queues now; a queue that is gone is missing."""
        states = queue_states()
        return [states[number] for number in self.numbers if number in states]

    def close(self) -> None:
        """Unbind by closing: what is still held is dropped."""
        self._socket.close()


def _notice(body: memoryview) -> Notice | None:
    """Decode a packet message behind its netlink header; None where it has no id."""
    queue = body[2] << 8 | body[3]
    packet, device, flow, sequence = 0, 0, None, 0
    offset, end = 4, len(body)
    while end - offset >= 4:
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        if length < 4 or length > end - offset:
            break
        if kind == _A_PACKET_HDR and length >= 8:
            packet = int.from_bytes(body[offset + 4 : offset + 8], "big")
        elif kind == _A_INDEV:
            device = int.from_bytes(body[offset + 4 : offset + 8], "big") if length == 8 else 0
        elif kind == _A_PAYLOAD:
            flow, sequence = flow_of(body[offset + 4 : offset + length])
        offset += (length + 3) & ~3
    return Notice(queue, packet, device, flow, sequence) if packet else None


def flow_of(packet: memoryview) -> tuple[Flow | None, int]:
    """The flow and the TCP sequence number of a SYN; None where they are not in the packet.

    The flow of what is certainly no SYN is :data:`NO_SYN`.
    """
    if len(packet) >= 20 and packet[0] >> 4 == 4:
        protocol, start, addresses = packet[9], (packet[0] & 15) * 4, packet[12:20]
    elif len(packet) >= 40 and packet[0] >> 4 == 6:
        protocol, start = _transport(packet)
        addresses = packet[8:40]
    else:
        return None, 0
    if not start:
        return None, 0
    if protocol != _TCP:
        return NO_SYN, 0
    if start < 20 or len(packet) < start + 14:
        return None, 0
    if packet[start + 13] & _FIN_SYN_RST_ACK != _SYN:
        return NO_SYN, 0
    flow = Flow(bytes(addresses) + bytes(packet[start : start + 4]))
    return flow, int.from_bytes(packet[start + 4 : start + 8], "big")


def _transport(packet: memoryview) -> tuple[int, int]:
    """The transport of an IPv6 packet, and where it begins (RFC 8200); 0, 0: beyond its end."""
    header, offset = packet[6], 40
    while header in _EXTENSION_HEADERS:
        if offset + 2 > len(packet):
            return 0, 0
        if header == _FRAGMENT_HEADER:
            size = 8
        elif header == _AUTHENTICATION_HEADER:
            size = (packet[offset + 1] + 2) * 4
        else:
            size = (packet[offset + 1] + 1) * 8
        header, offset = packet[offset], offset + size
    return header, offset
