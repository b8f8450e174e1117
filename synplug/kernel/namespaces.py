"""Network namespaces, and three system calls that Python 3.10 lacks.

Source: setns(2), unshare(2), membarrier(2), namespaces(7). ctypes is imported only when one of
them is called.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from synplug.errors import KernelError, PrivilegeError, UsageError
from synplug.kernel.abi import architecture, membarrier_number

_CLONE_NEWNET = 0x40000000
_CLONE_NEWUSER = 0x10000000
_MEMBARRIER_CMD_GLOBAL = 1
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
_NAMED = "/run/netns"


def network_inode() -> int:
    """The inode number of the calling thread's network namespace, its identity."""
    return os.stat("/proc/thread-self/ns/net").st_ino


def network_of(name: str) -> str:
    """The path of a network namespace given as a name (ip-netns(8)), a path, or a pid.

    :raises UsageError: there is none.
    """
    if not name:
        raise UsageError("an empty name of a network namespace")
    if name.isdigit():
        path = f"/proc/{name}/ns/net"
    elif "/" in name:
        path = name
    else:
        path = f"{_NAMED}/{name}"
    if not os.path.exists(path):
        raise UsageError(
            f"no network namespace {name!r}: {path} does not exist",
            remedy="give a name from 'ip netns list', a path, or the pid of a process in it",
        )
    return path


def enter_network(path: str) -> None:
    """Move the calling thread into the network namespace at *path*.

    :raises PrivilegeError: needs CAP_SYS_ADMIN. :raises UsageError: it is none.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError as error:
        raise PrivilegeError(
            f"cannot open the network namespace {path}", capability="CAP_SYS_PTRACE"
        ) from error
    except OSError as error:
        raise UsageError(f"cannot open the network namespace {path}: {error.strerror}") from error
    try:
        if libc.setns(descriptor, _CLONE_NEWNET):
            _raise(f"enter the network namespace {path}", ctypes.get_errno(), path)
    finally:
        os.close(descriptor)


@contextmanager
def in_network(path: str) -> Iterator[None]:
    """Have the calling thread in the network namespace at *path* for a moment.

    :raises PrivilegeError, UsageError: as :func:`enter_network`.
    """
    with open("/proc/thread-self/ns/net") as home:
        enter_network(path)
        try:
            yield
        finally:
            enter_network(f"/proc/thread-self/fd/{home.fileno()}")


def unshare_network() -> None:
    """Give the calling process a fresh network namespace with loopback up.

    Without CAP_SYS_ADMIN it tries a user namespace of its own around it.

    :raises PrivilegeError: neither is permitted.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) and libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET):
        raise PrivilegeError("make a network namespace", capability="CAP_SYS_ADMIN")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14x", b"lo", 0)
        answer = fcntl.ioctl(control, _SIOCGIFFLAGS, request)
        flags = struct.unpack("16sH14x", answer)[1] | _IFF_UP
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags))


def wait_for_packets_in_flight() -> bool:
    """Wait until every packet that was on its way through netfilter has left it.

    A packet runs through the hooks inside an RCU read-side section, so one that still saw a
    rule which was just deleted is out of it after a grace period; MEMBARRIER_CMD_GLOBAL waits
    for one (``kernel/sched/membarrier.c`` calls synchronize_rcu). About 10 ms.

    :returns: False where the system call is missing, refused (nohz_full), or of a number that is
        not known here (:mod:`synplug.kernel.abi`). Then a SYN that was on its way can come too
        late to be let go, and its client sends it again.
    """
    number = membarrier_number(architecture())
    if number is None:
        return False
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    words = [ctypes.c_long(word) for word in (number, _MEMBARRIER_CMD_GLOBAL, 0, 0)]
    return bool(libc.syscall(*words) == 0)


def _raise(action: str, code: int, path: str) -> None:
    import errno

    if code == errno.EPERM:
        raise PrivilegeError(f"{action}: not permitted", capability="CAP_SYS_ADMIN")
    if code == errno.EINVAL:
        raise UsageError(f"{path} is not a network namespace")
    raise KernelError(action, code)
