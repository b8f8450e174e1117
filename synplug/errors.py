"""The errors of synplug, as one tree.

::

    SynplugError                 125  synplug itself failed
    ├── UsageError               125  bad input; nothing was touched
    │   └── TargetError          125  cannot tell which endpoints the command restarts
    ├── PrivilegeError           125  a capability is missing, and is named
    ├── UnsupportedError         125  this kernel or machine lacks something
    ├── KernelError              125  the kernel refused a request that should have worked
    ├── OverrunError             125  the kernel dropped notices, since they were read too slowly
    ├── LockError                125  another run has one of the endpoints
    ├── NoSuchHoldError            3  there is no hold of that name, or none any more
    ├── CheckError               125  the --check command failed; the command was not run
    ├── DrainError               125  the old listener did not run empty (--on-drain-timeout abort)
    ├── StopError                125  the old generation could not be told to close its listeners
    ├── KeeperError              125  the keeper died or stopped answering
    ├── ReleaseError             125  something of the hold is still in place, and is named
    └── CommandError             126  the command cannot be executed
        └── CommandNotFoundError 127  the command cannot be found

The exit codes are those of env(1), nohup(1) and timeout(1); 124, the deadline, is an
outcome and no error: see :class:`synplug.model.Outcome`.
"""

from __future__ import annotations

import errno as errno_names
import os


class SynplugError(Exception):
    """Something went wrong in synplug itself.

    :param message: what is wrong, on one line.
    :param remedy: what the operator can do about it, on one line; may be empty.
    """

    exit_code: int = 125

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        if "\n" in self.remedy:
            return f"{self.message}; {self.remedy}"
        return f"{self.message} ({self.remedy})" if self.remedy else self.message


class UsageError(SynplugError):
    """Bad input. Nothing was touched."""


class TargetError(UsageError):
    """The endpoints to hold cannot be found out."""


class PrivilegeError(SynplugError):
    """A capability is missing.

    :param capability: its name in capabilities(7), such as ``CAP_NET_ADMIN``.
    """

    def __init__(self, message: str, *, capability: str, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy or f"run it as root or with {capability}")
        self.capability = capability


class UnsupportedError(SynplugError):
    """The running kernel, or an optional package, lacks what was asked for."""


class KernelError(SynplugError):
    """The kernel refused a request.

    :param action: what was asked of it, in words.
    :param errno: the positive error number it answered with.
    :param detail: its extended acknowledgement, if it gave one.
    """

    def __init__(self, action: str, errno: int, *, detail: str = "", remedy: str = "") -> None:
        name = errno_names.errorcode.get(errno, str(errno))
        text = f"{action}: {name}, {os.strerror(errno)}"
        super().__init__(f"{text}: {detail}" if detail else text, remedy=remedy)
        self.action = action
        self.errno = errno


class OverrunError(SynplugError):
    """The kernel dropped what did not fit into a socket's receive buffer (ENOBUFS, netlink(7))."""


class LockError(SynplugError):
    """Another run holds one of the endpoints."""


class NoSuchHoldError(SynplugError):
    """No hold of that name is in force. 3 is what init scripts say of a service that is not."""

    exit_code = 3


class CheckError(SynplugError):
    """The ``--check`` command failed."""


class DrainError(SynplugError):
    """The old listener's queues did not run empty in time."""


class StopError(SynplugError):
    """The old generation could not be told to close its listeners, and still has them all."""


class KeeperError(SynplugError):
    """The keeper died, or did not answer in time."""


class ReleaseError(SynplugError):
    """The hold could not be undone completely: the message names what is left."""


class CommandError(SynplugError):
    """The command cannot be executed."""

    exit_code = 126


class CommandNotFoundError(CommandError):
    """The command cannot be found."""

    exit_code = 127


def unforeseen(error: Exception) -> SynplugError:
    """What no floor has translated, for the last resort of a process: never a traceback.

    The system refused something that nobody expected it to refuse; or it is a defect, and its
    place is named.
    """
    if isinstance(error, SynplugError):
        return error
    if isinstance(error, OSError):
        return SynplugError(f"the system refused: {error}")
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f" at {place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else ""
    return SynplugError(f"a defect in synplug{where}: {error!r}", remedy="please report it")
