"""What the run and its keeper say to each other: JSON objects over a SEQPACKET socket pair.

What is longer than a message may be (thousands of listeners) goes as a file in memory, whose
descriptor is the message: it is there as a whole, or not at all, and the sender never waits.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from ipaddress import ip_address
from typing import Any

from synplug import errors
from synplug.errors import KeeperError, PrivilegeError, SynplugError
from synplug.model import Endpoint, HoldCounts, HoldResult, HoldSpec, Hook, Listener, ReleaseReason
from synplug.record import as_dict

_MESSAGE_BYTES = 1 << 16
_IN_A_FILE = b"file"


class Channel:
    """One end of it."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Both ends."""
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(one), cls(other)

    def fileno(self) -> int:
        """The descriptor, for poll(2)."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this end; the other one reads its end of file."""
        self._socket.close()

    def send(self, event: str, **fields: Any) -> bool:
        """Say something; False when nobody is at the other end any more, or it does not listen.

        Never waits: the other end may be stopped, and its buffer full.
        """
        try:
            self._send(json.dumps({"event": event, **fields}).encode())
        except (BrokenPipeError, ConnectionResetError, BlockingIOError):
            return False
        return True

    def receive(self) -> dict[str, Any] | None:
        """The next thing that was said, waiting for it; None at the end."""
        try:
            data = self._receive()
        except ConnectionResetError:
            # The other end went with something of ours unread; what it said before comes now.
            try:
                data = self._receive()
            except ConnectionResetError:
                return None
        return json.loads(data) if data else None

    def _send(self, data: bytes) -> None:
        if len(data) <= _MESSAGE_BYTES:
            self._socket.send(data, socket.MSG_DONTWAIT)
            return
        with os.fdopen(os.memfd_create("synplug-message"), "wb", buffering=0) as file:
            file.write(data)
            socket.send_fds(self._socket, [_IN_A_FILE], [file.fileno()], socket.MSG_DONTWAIT)

    def _receive(self) -> bytes:
        data, files, _, _ = socket.recv_fds(
            self._socket, _MESSAGE_BYTES, 1, socket.MSG_CMSG_CLOEXEC
        )
        if data != _IN_A_FILE:
            return data
        if not files:  # the kernel says so by leaving it out: unix(7), SCM_RIGHTS
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        with os.fdopen(files[0], "rb") as file:
            file.seek(0)
            return file.read()


def error_to_wire(error: SynplugError) -> dict[str, str]:
    """An error, for the other end."""
    return {
        "kind": type(error).__name__,
        "message": error.message,
        "remedy": error.remedy,
        "capability": getattr(error, "capability", ""),
    }


def error_from_wire(data: dict[str, str]) -> SynplugError:
    """The same error, on this end."""
    if data["kind"] == PrivilegeError.__name__:
        return PrivilegeError(data["message"], capability=data["capability"], remedy=data["remedy"])
    kind = getattr(errors, data["kind"], KeeperError)
    if kind is errors.KernelError:  # its message is complete already
        kind = SynplugError
    error = kind(data["message"], remedy=data["remedy"])
    assert isinstance(error, SynplugError)
    return error


def spec_to_wire(spec: HoldSpec) -> dict[str, Any]:
    """What somebody else needs to know of a hold."""
    return {
        "run_id": spec.run_id,
        "endpoints": [endpoint_to_wire(endpoint) for endpoint in spec.endpoints],
        "hook": spec.hook.value,
        "max_hold_s": spec.max_hold_s,
    }


def spec_from_wire(wire: dict[str, Any], name: str) -> HoldSpec:
    """Its opposite, of the hold of that name."""
    return HoldSpec(
        endpoints=tuple(map(endpoint_from_wire, wire["endpoints"])),
        run_id=wire["run_id"],
        name=name,
        hook=Hook(wire["hook"]),
        max_hold_s=float(wire["max_hold_s"]),
    )


def endpoint_to_wire(endpoint: Endpoint) -> list[Any]:
    """An endpoint, for the other end."""
    return [endpoint.port, None if endpoint.address is None else str(endpoint.address)]


def endpoint_from_wire(data: list[Any]) -> Endpoint:
    """The same, on this end."""
    port, address = data
    return Endpoint(port=port, address=None if address is None else ip_address(address))


def listener_to_wire(listener: Listener) -> dict[str, Any]:
    """A listener, for the other end."""
    return as_dict(listener) | {"address": str(listener.address)}


def listener_from_wire(data: dict[str, Any]) -> Listener:
    """The same, on this end."""
    return Listener(**data | {"address": ip_address(data["address"])})


def result_to_wire(result: HoldResult) -> dict[str, Any]:
    """A finished hold, for the other end."""
    return as_dict(result) | {"reason": result.reason.value}


def result_from_wire(data: dict[str, Any]) -> HoldResult:
    """The same, on this end."""
    return HoldResult(
        **data
        | {
            "reason": ReleaseReason(data["reason"]),
            "counts": HoldCounts(**data["counts"]),
            "warnings": tuple(data["warnings"]),
        }
    )
