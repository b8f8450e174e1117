"""Named holds: where a keeper that was left alone can be found.

Its socket lies in the folder of the network namespace, which is root's alone; who has the name's
lock may put it there, so one that nobody has the lock of is a dead keeper's.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from contextlib import suppress

from synplug.errors import KernelError, NoSuchHoldError, UsageError
from synplug.holding.channel import Channel
from synplug.holding.locks import name_lock, socket_beside
from synplug.holding.runtime import tidy

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
_UCRED = struct.Struct("=iII")  # pid, uid, gid; unix(7), SO_PEERCRED


def check_name(name: str) -> str:
    """The name, if it is one.

    :raises UsageError: it is none.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name for a hold",
            remedy="letters, digits, and _ . @ - behind the first; 64 at most",
        )
    return name


class Door:
    """The socket at which a keeper is asked for by name; needs the name's lock.

    :raises KernelError: it cannot be made.
    """

    def __init__(self, name: str) -> None:
        self._path = _path(name)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        with suppress(FileNotFoundError):
            os.unlink(self._path)  # a dead keeper's, since we have the lock
        try:
            self._socket.bind(self._path)
            self._socket.listen()
        except OSError as error:
            self._socket.close()
            raise KernelError(f"make the socket {self._path}", error.errno or 0) from error

    def fileno(self) -> int:
        """The descriptor, readable when somebody is there."""
        return self._socket.fileno()

    def admit(self) -> Channel | None:
        """Who is there; None if they have gone already."""
        try:
            guest, _ = self._socket.accept()
        except OSError:
            return None
        guest.setblocking(True)
        return Channel(guest)

    def close(self) -> None:
        """Be found no more."""
        with suppress(FileNotFoundError):
            os.unlink(self._path)
        self._socket.close()
        tidy(os.path.dirname(self._path))


def call(name: str) -> tuple[Channel, int]:
    """A channel to the keeper of the hold of that name, and the keeper's pid.

    :raises NoSuchHoldError: there is none in this network namespace.
    """
    end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        end.connect(_path(check_name(name)))
        credentials = end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        end.close()
        raise no_such_hold(name) from error
    except OSError as error:
        end.close()
        raise KernelError(f"ask for the hold named {name!r}", error.errno or 0) from error
    return Channel(end), _UCRED.unpack(credentials)[0]


def no_such_hold(name: str) -> NoSuchHoldError:
    """The error that says so."""
    return NoSuchHoldError(
        f"no hold named {name!r} is in force in this network namespace",
        remedy="it has ended, at its deadline perhaps, or there never was one; "
        "'synplug status' shows those in force",
    )


def _path(name: str) -> str:
    return socket_beside(name_lock(name))
