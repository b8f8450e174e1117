"""Netlink sockets: requests, dumps and acknowledged batches.

Source of the formats: ``include/uapi/linux/netlink.h`` and
``include/uapi/linux/netfilter/nfnetlink.h``, netlink(7). Multi-byte fields of the headers
are in host byte order; the payloads of nfnetlink attributes in network byte order.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from synplug.errors import KernelError, OverrunError, PrivilegeError, UnsupportedError
from synplug.kernel.abi import architecture, buffer_force_options
from synplug.kernel.netlink_codec import (
    HEADER,
    NLMSG_DONE,
    NLMSG_ERROR,
    Message,
    error_of,
    messages,
)

NETLINK_SOCK_DIAG = 4
NETLINK_NETFILTER = 12

_NAMES = {NETLINK_SOCK_DIAG: "sock_diag", NETLINK_NETFILTER: "nfnetlink"}

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP = 0x300
NLM_F_CREATE = 0x400
NLM_F_EXCL = 0x200

_NLM_F_DUMP_INTR = 0x10

_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NETLINK_GET_STRICT_CHK = 12

_NFNL_BATCH_BEGIN = 0x10
_NFNL_BATCH_END = 0x11

_RECEIVE_BYTES = 1 << 17
_DUMP_TRIES = 10


class NetlinkSocket:
    """A netlink socket whose requests are answered, or raise.

    :param protocol: NETLINK_SOCK_DIAG or NETLINK_NETFILTER.
    :raises UnsupportedError: the kernel does not have that protocol.
    :raises KernelError: no socket could be had: descriptors or memory have run out, for example.

    What send(2) and recv(2) refuse is a :class:`KernelError` in every method, too.
    """

    def __init__(self, protocol: int) -> None:
        self._socket = _open(protocol)
        self._sequence = 0
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK):
            try:
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
            except OSError:  # only the wording of errors depends on these (Linux 4.3, 4.12, 4.20)
                continue

    def fileno(self) -> int:
        """The socket's descriptor, for poll(2)."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close it; what the kernel ties to the socket goes with it."""
        self._socket.close()

    def enlarge_receive_buffer(self, size_bytes: int) -> int:
        """Set the receive buffer, beyond rmem_max where that is permitted; returns what it is.

        SO_RCVBUFFORCE wants CAP_NET_ADMIN in the initial user namespace (``net/core/sock.c``);
        elsewhere rmem_max bounds it. The kernel keeps twice the number it is given (socket(7)).
        """
        try:
            _, force = buffer_force_options(architecture())
            self._socket.setsockopt(socket.SOL_SOCKET, force, size_bytes)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size_bytes)
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)

    def _enlarge_send_buffer(self, message_bytes: int) -> None:
        """Make the send buffer large enough for one message, beyond wmem_max where permitted.

        A message may be 32 bytes shorter than the buffer, otherwise send(2) says EMSGSIZE
        (``net/netlink/af_netlink.c``, netlink_sendmsg).
        """
        if message_bytes <= self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) - 32:
            return
        try:
            force, _ = buffer_force_options(architecture())
            self._socket.setsockopt(socket.SOL_SOCKET, force, message_bytes)
        except PermissionError:  # as for the receive buffer
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, message_bytes)

    def send(self, action: str, data: bytes) -> None:
        """Send encoded messages to the kernel without waiting for an answer."""
        try:
            self._socket.send(data)
        except OSError as error:
            raise _failed(action, error) from error

    def receive_into(self, action: str, buffer: bytearray) -> int:
        """Receive one datagram without blocking; 0 when there is none.

        :raises OverrunError: earlier ones were dropped, since the buffer was full.
        """
        try:
            return self._socket.recv_into(buffer, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                raise OverrunError(f"{action}: more came than its buffer takes") from error
            raise _failed(action, error) from error

    def message(self, kind: int, flags: int, body: bytes) -> bytes:
        """Encode one message with the next sequence number."""
        self._sequence = (self._sequence + 1) & 0x7FFFFFFF
        return HEADER.pack(16 + len(body), kind, flags, self._sequence, 0) + body

    def acknowledged(self, action: str, kind: int, body: bytes, *, flags: int = 0) -> None:
        """Send one request and wait for its acknowledgement.

        :raises KernelError: what the kernel answered. :raises PrivilegeError: EPERM.
        """
        self.send(action, self.message(kind, NLM_F_REQUEST | NLM_F_ACK | flags, body))
        self._settle(action, self._sequence, self._sequence)

    def batch(
        self,
        action: str,
        subsystem: int,
        requests: Sequence[tuple[int, int, bytes]],
        *,
        just_before: Callable[[], None] = lambda: None,
    ) -> None:
        """Send nfnetlink requests ``(kind, flags, body)`` as one transaction: all, or none.

        Only the last one asks for an acknowledgement; an error of any other one is reported
        unasked (``net/netfilter/nfnetlink.c``, nfnetlink_rcv_batch).

        :param just_before: is called when all is ready to be sent.
        """
        edge = bytes((0, 0)) + subsystem.to_bytes(2, "big")
        data = self.message(_NFNL_BATCH_BEGIN, NLM_F_REQUEST, edge)
        first = self._sequence
        for index, (kind, flags, body) in enumerate(requests, 1):
            ack = NLM_F_ACK if index == len(requests) else 0
            data += self.message(kind, NLM_F_REQUEST | flags | ack, body)
        last = self._sequence
        data += self.message(_NFNL_BATCH_END, NLM_F_REQUEST, edge)
        self._enlarge_send_buffer(len(data))
        just_before()
        self.send(action, data)
        self._settle(action, first, last)

    def ask(self, action: str, kind: int, body: bytes) -> memoryview | None:
        """Send a request for one object; the body of the answer, or None where there is none.

        :raises KernelError: what else the kernel answered.
        """
        self.send(action, self.message(kind, NLM_F_REQUEST, body))
        while True:
            for message in self._receive(action):
                if message.sequence != self._sequence:
                    continue
                if message.kind != NLMSG_ERROR:
                    return message.body
                code, words = error_of(message)
                if code != errno.ENOENT:
                    _refuse(action, code, words)
                return None

    def dump(
        self, action: str, kind: int, body: bytes, *, complete: bool = True
    ) -> list[memoryview]:
        """Send a dump request and return the bodies of the answers.

        The kernel marks a dump during which something changed, since parts may be missing from
        it; such a one is asked for anew (``Documentation/userspace-api/netlink/intro.rst``, "Dump
        consistency").

        :param complete: an answer that is marked even the last time is an error; False: it counts.
        :raises KernelError: what the kernel answered; EINTR: every answer was marked.
        """
        for _ in range(_DUMP_TRIES):
            found, interrupted = self._dump(action, kind, body)
            if not interrupted:
                return found
        if complete:
            raise KernelError(action, errno.EINTR, detail=f"changed meanwhile, {_DUMP_TRIES} times")
        return found

    def _dump(self, action: str, kind: int, body: bytes) -> tuple[list[memoryview], bool]:
        """One dump, and whether it was interrupted; its end can be marked, too, or be an error."""
        self.send(action, self.message(kind, NLM_F_REQUEST | NLM_F_DUMP, body))
        try:
            return self._read_dump(action)
        except KernelError:
            self._end_dump(action)
            raise

    def _end_dump(self, action: str) -> None:
        """Read the rest of one of which something could not be read.

        Until its end is read the kernel refuses the socket's next one: EBUSY
        (``net/netlink/af_netlink.c``, __netlink_dump_start). It answers inside our recv(2).
        """
        with suppress(KernelError, BlockingIOError):
            while not any(
                message.kind in (NLMSG_DONE, NLMSG_ERROR) and message.sequence == self._sequence
                for message in self._receive(action, socket.MSG_DONTWAIT)
            ):
                pass

    def _read_dump(self, action: str) -> tuple[list[memoryview], bool]:
        found: list[memoryview] = []
        interrupted = False
        while True:
            for message in self._receive(action):
                if message.sequence != self._sequence:
                    continue
                interrupted |= bool(message.flags & _NLM_F_DUMP_INTR)
                if message.kind in (NLMSG_DONE, NLMSG_ERROR):
                    _refuse(action, *error_of(message))
                    return found, interrupted
                found.append(message.body)

    def _settle(self, action: str, first: int, last: int) -> None:
        """Read until the acknowledgement of *last*; the kernel answers inside our send(2).

        Answers to requests before *first* are left-overs of a refused batch.
        """
        while True:
            try:
                answers = self._receive(action, socket.MSG_DONTWAIT)
            except BlockingIOError:
                raise KernelError(action, errno.ENOMSG, detail="no acknowledgement") from None
            for message in answers:
                if message.kind != NLMSG_ERROR or message.sequence < first:
                    continue
                _refuse(action, *error_of(message))
                if message.sequence == last:
                    return

    def _receive(self, action: str, flags: int = 0) -> Iterator[Message]:
        """The messages of the next datagram."""
        try:
            return messages(self._socket.recv(_RECEIVE_BYTES, flags))
        except BlockingIOError:
            raise
        except OSError as error:
            raise _failed(action, error) from error


def _open(protocol: int) -> socket.socket:
    """A bound socket; its port number is the kernel's choice."""
    name = _NAMES.get(protocol, str(protocol))
    try:
        made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    except OSError as error:
        if error.errno in (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT):
            raise UnsupportedError(
                f"this kernel does not speak {name}: {error.strerror}",
                remedy="load the module nfnetlink" if protocol == NETLINK_NETFILTER else "",
            ) from error
        raise _failed(f"open a netlink socket ({name})", error) from error
    try:
        made.bind((0, 0))
    except OSError as error:
        made.close()
        raise _failed(f"bind a netlink socket ({name})", error) from error
    return made


def _failed(action: str, error: OSError) -> KernelError:
    """What stands for an errno of the socket itself, not of an answer."""
    return KernelError(action, error.errno or 0)


def _refuse(action: str, code: int, words: str) -> None:
    """Raise what *code* means; 0 means nothing."""
    if code == errno.EPERM:
        raise PrivilegeError(f"{action}: not permitted", capability="CAP_NET_ADMIN")
    if code:
        raise KernelError(action, code, detail=words)
