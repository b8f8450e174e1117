"""Make this process safe to experiment in: its own network, its own mounts, its own /run.

Nothing below can touch the rules, devices or lock files of the host. All of it goes with
the last process: namespaces(7), user_namespaces(7).
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

from netlab.errors import IsolationError

ENVIRONMENT_MARKER = "NETLAB_ISOLATED"

# <linux/sched.h> and <linux/mount.h>; Python 3.11 has no os.unshare
_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_MS_NOSUID = 0x2
_MS_NODEV = 0x4
_MS_REC = 0x4000
_MS_PRIVATE = 0x40000

# netns: `ip netns`; lock: flock files of services
_RUN_DIRECTORIES = {"netns": 0o755, "lock": 0o1777}


def is_isolated() -> bool:
    """Whether this process lives in the mount namespace that the lab made."""
    return os.environ.get(ENVIRONMENT_MARKER) == _mount_namespace()


def require_isolation() -> None:
    """Refuse to go on outside of the private namespaces.

    Raises:
        IsolationError: `enter_private_namespaces` was not called.

    """
    if not is_isolated():
        raise IsolationError("call netlab.isolation.enter_private_namespaces() first")


def enter_private_namespaces() -> None:
    """Move this process into fresh network and mount namespaces, with a fresh /run.

    Without root it also enters a user namespace in which it is uid and gid 0. A second
    call does nothing, also in child processes. Working directories below the old /run
    are lost.

    Raises:
        IsolationError: the process has several threads, or the kernel does not permit it.

    """
    if is_isolated():
        return
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise IsolationError(f"{threads} threads run; unshare(2) moves only the caller")
    uid, gid = os.geteuid(), os.getegid()
    flags = _CLONE_NEWNET | _CLONE_NEWNS
    if uid != 0:
        flags |= _CLONE_NEWUSER
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags) != 0:
        raise _not_permitted("unshare", uid)
    if uid != 0:
        _become_root_inside(uid, gid)
    if libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None) != 0:
        raise _not_permitted("make the mounts private", uid)
    flags = _MS_NOSUID | _MS_NODEV
    if libc.mount(b"tmpfs", b"/run", b"tmpfs", flags, b"mode=0755,size=64m") != 0:
        raise _not_permitted("mount a tmpfs on /run", uid)
    for name, mode in _RUN_DIRECTORIES.items():
        directory = Path("/run", name)
        directory.mkdir()
        directory.chmod(mode)
    _complete_path()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    os.environ[ENVIRONMENT_MARKER] = _mount_namespace()


def _mount_namespace() -> str:
    return os.readlink("/proc/self/ns/mnt")


def _complete_path() -> None:
    """Find nft, sysctl and the daemons, as root does: users have no sbin in their PATH."""
    directories = os.environ.get("PATH", os.defpath).split(os.pathsep)
    missing = [name for name in ("/usr/sbin", "/sbin") if name not in directories]
    os.environ["PATH"] = os.pathsep.join(directories + missing)


def _become_root_inside(uid: int, gid: int) -> None:
    """Map the caller to 0; setgroups must be denied first (user_namespaces(7))."""
    try:
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1", encoding="ascii")
    except OSError as exc:
        raise IsolationError(f"cannot map uid {uid} into the user namespace: {exc}") from exc


def _not_permitted(what: str, uid: int) -> IsolationError:
    error = os.strerror(ctypes.get_errno())
    advice = (
        "run with CAP_SYS_ADMIN"
        if uid == 0
        else "run as root, or allow user namespaces (user.max_user_namespaces, "
        "kernel.apparmor_restrict_unprivileged_userns)"
    )
    return IsolationError(f"cannot {what} as uid {uid}: {error}; {advice}")
