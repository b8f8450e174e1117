"""Become the program that is a guest, in namespaces in which it can do no harm.

``python -m guest.launch ROOT SHARED PROGRAM ARGUMENT…`` runs that program, a User Mode Linux
kernel or an emulator, chrooted into ROOT. It sees the host's files below /host, recursively
read-only, as is all else, but for the folder SHARED; has the host's network not at all; and dies,
with all its processes, with the process that started this one. Its own files (its memory, above
all) are in a tmpfs.

Without root all this is done in a user namespace (user_namespaces(7)).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from netlab.isolation import enter_private_namespaces

# <linux/sched.h>, <linux/mount.h>, <linux/fcntl.h>, <linux/prctl.h>
_CLONE_NEWNS, _CLONE_NEWPID = 0x00020000, 0x20000000
_MS_BIND, _MS_REC = 0x1000, 0x4000
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOUNT_ATTR_RDONLY = 0x1
_PR_SET_PDEATHSIG = 1
_SYS_MOUNT_SETATTR = 442  # the same on every architecture; Linux 5.12

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> int:
    """Exit as the kernel does; a signal that ended it shows as 128 + its number."""
    root, shared, *argv = sys.argv[1:]
    _die_with_parent()
    enter_private_namespaces()
    _check(_libc.unshare(_CLONE_NEWNS | _CLONE_NEWPID), "unshare")
    return _exit_code(os.fork() or _live_as_first_process(root, shared, argv))


def _live_as_first_process(root: str, shared: str, argv: Sequence[str]) -> NoReturn:
    """PID 1 of the namespace: when it ends, the kernel ends all others (pid_namespaces(7)).

    The guest itself cannot be it: PID 1 is immune to the SIGABRT that ends a panic, and its
    SIGTERM to the process group (arch/um/os-Linux/util.c, os_dump_core) must stay inside.
    """
    _die_with_parent()
    _arrange(root, shared)
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chroot(root)
        os.chdir("/")
        environment = {"HOME": "/dev/shm", "TMPDIR": "/dev/shm", "TERM": "linux"}
        os.execve(argv[0], list(argv), environment)
    os._exit(_exit_code(child))


def _exit_code(child: int) -> int:
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _die_with_parent() -> None:
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")


def _arrange(root: str, shared: str) -> None:
    """Mount what the kernel, a program of the host, is to see.

    It can mount all of that by its own name once more (hostfs), so nothing of the host's may be
    written there: not its own root, nor /dev and /proc.
    """
    host = f"{root}/host"
    _mount(root, root, _MS_BIND)
    _mount("/", host, _MS_BIND | _MS_REC)
    _mount("/dev", f"{root}/dev", _MS_BIND | _MS_REC)
    _mount("proc", f"{root}/proc", 0, kind="proc")
    _make_read_only(root)
    _mount(shared, host + shared, _MS_BIND)
    _mount("tmpfs", f"{root}/dev/shm", 0, kind="tmpfs", options="mode=1777")


def _mount(source: str, target: str, flags: int, *, kind: str = "none", options: str = "") -> None:
    words = (os.fsencode(word) for word in (source, target, kind))
    _check(_libc.mount(*words, flags, options.encode() or None), f"mount {target}")


def _make_read_only(path: str) -> None:
    """`path` and every mount below it: mount_setattr(2)."""
    # struct mount_attr: attr_set, attr_clr, propagation, userns_fd
    attributes = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_RDONLY)
    _check(
        _libc.syscall(
            ctypes.c_long(_SYS_MOUNT_SETATTR),
            _AT_FDCWD,
            os.fsencode(path),
            _AT_RECURSIVE,
            ctypes.byref(attributes),
            ctypes.c_size_t(ctypes.sizeof(attributes)),
        ),
        f"make {path} read-only",
    )


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


if __name__ == "__main__":
    sys.exit(main())
