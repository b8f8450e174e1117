"""Processes, as /proc shows them: families, open sockets, control groups.

Source: proc(5). Processes come and go while this reads; one that is gone has no answer, which
is no error. Names are untrusted text.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress

from synplug.errors import KernelError, PrivilegeError
from synplug.model import Process

CAP_NET_ADMIN = 12
#: The hierarchies that systemd keeps: the unified one, and its own of version 1 (cgroups(7)).
SYSTEMDS = ("", "name=systemd")
#: include/linux/proc_ns.h, PROC_CGROUP_INIT_INO and PROC_PID_INIT_INO
FIRST_NAMESPACES = {"cgroup": 0xEFFFFFFB, "pid": 0xEFFFFFFC}
#: include/linux/sched.h: a thread of the kernel's own.
_PF_KTHREAD = 0x00200000
_GONE_OR_HIDDEN = (errno.ENOENT, errno.ESRCH, errno.EACCES, errno.EPERM)


def _read(path: str) -> str:
    """The file's text; empty when the process is gone or hidden."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def pids() -> Iterator[int]:
    """Every process."""
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def name(pid: int) -> str:
    """The command name (comm), for people: what is not printable is a question mark."""
    comm = _read(f"/proc/{pid}/comm").rstrip("\n")
    return "".join(letter if letter.isprintable() else "?" for letter in comm)


def is_alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    state = _stat(pid)
    return bool(state) and state[0] not in "ZX"


def start_time(pid: int) -> int:
    """When it started, in clock ticks since boot: with the pid, its identity. 0: gone."""
    state = _stat(pid)
    return int(state[19]) if len(state) > 19 else 0


def session(pid: int) -> int:
    """The session that it is in (setsid(2)); 0: gone."""
    state = _stat(pid)
    return int(state[3]) if len(state) > 3 else 0


def variable(pid: int, name: str) -> str | None:
    """A variable of the environment that it was started with; None: it has none, or is gone.

    A program that has written over that memory (setproctitle) may have none any more.
    """
    for entry in _read(f"/proc/{pid}/environ").split("\0"):
        found, equals, value = entry.partition("=")
        if found == name and equals:
            return value
    return None


def command_line(pid: int) -> list[str]:
    """The words that it was started with; none: it is gone, hidden, or a zombie."""
    return _read(f"/proc/{pid}/cmdline").split("\0")[:-1]


def command_lines_since(pid: int, most: int) -> list[list[str]] | None:
    """The words of *pid*, and of every process that was started after it and lives; or None.

    Cheaper than to look for who has a socket open, or to list all processes. One that is ending
    has no words any more, and counts until it is a zombie: then it has closed what it had open
    (``kernel/exit.c``, do_exit: exit_mm, exit_files, exit_task_work, exit_notify). A thread counts
    with the words of its process.

    :param most: so many numbers are looked at, at the most.
    :returns: None where that cannot be told: there are more; numbers have begun anew at pid_max;
        the kernel does not say which it gave last (``kernel.ns_last_pid``,
        CONFIG_CHECKPOINT_RESTORE); others' processes are hidden (proc(5), hidepid), or may be in
        a PID namespace that is not ours.
    """
    last = sysctl("kernel.ns_last_pid")
    if not last or not pid <= int(last) < pid + most:
        return None
    if not os.path.isdir("/proc/1") or not is_in_first_namespace("pid"):
        return None
    found = []
    for number in range(pid, int(last) + 1):
        try:
            descriptor = os.open(f"/proc/{number}/cmdline", os.O_RDONLY | os.O_CLOEXEC)
            with open(descriptor, "rb", buffering=0) as file:
                words = file.readall()
            is_there = bool(words) or _is_ending(number)
        except (FileNotFoundError, ProcessLookupError):
            continue
        except (OSError, KernelError):
            return None
        if is_there:
            found.append(words.decode(errors="replace").split("\0")[:-1])
    return found


def _is_ending(pid: int) -> bool:
    """Whether one that has no words is a program that has not ended yet."""
    state = _stat(pid)
    return bool(state) and state[0] not in "ZX" and not int(state[6]) & _PF_KTHREAD


def is_in_first_namespace(kind: str) -> bool:
    """Whether this process is in the machine's first one. :param kind: ``pid`` or ``cgroup``."""
    try:
        return os.stat(f"/proc/self/ns/{kind}").st_ino == FIRST_NAMESPACES[kind]
    except OSError:  # a kernel without
        return True


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; a name may contain anything.

    :raises KernelError: it cannot be read now (no descriptor, no memory): that is not "gone".
    """
    path = f"/proc/{pid}/stat"
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError as error:
        if error.errno in _GONE_OR_HIDDEN:
            return []
        raise KernelError(f"read {path}", error.errno or 0) from error


def descendants(roots: Iterable[int]) -> set[int]:
    """The processes *roots*, those that live, with all their children."""
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        if pid in found or not os.path.isdir(f"/proc/{pid}"):
            continue
        found.add(pid)
        try:
            threads = os.listdir(f"/proc/{pid}/task")
        except OSError:
            continue
        for thread in threads:
            waiting += map(int, _read(f"/proc/{pid}/task/{thread}/children").split())
    return found


def started_since(pid: int) -> set[int]:
    """The processes that were started after *pid*, as far as their numbers tell.

    Numbers go up until they begin anew at pid_max (``kernel/pid.c``, idr_alloc_cyclic): from then
    on those that are smaller are missed, and those that were there before count.
    """
    return {other for other in pids() if other > pid}


def control_group_members(component: str) -> set[int]:
    """The processes of a unit of the system's own manager, such as ``nginx.service``.

    A unit of that manager is found below its root by slices alone:
    ``/system.slice/nginx.service``, with groups of the service's own below it or not. So units of
    the same name do not count that belong to another manager: a user's
    (``/user.slice/user-1000.slice/user@1000.service/app.slice/nginx.service``), or that of a
    container (``/machine.slice/machine-web.scope/system.slice/nginx.service``,
    ``/docker/ID/…``); from inside of a container, its own manager is the system's. Only the
    hierarchies that systemd keeps are read: ``name=systemd`` and the unified one
    (cgroups(7), systemd.slice(5)).

    :param component: the unit's name; a slice stands for all that is in it.
    """
    roots = _managers_roots()
    return {
        pid
        for pid in pids()
        for hierarchy, path in control_groups(pid)
        if is_unit_path(path, component, root=roots.get(hierarchy, ""))
    }


def is_unit_path(path: str, unit: str, *, root: str) -> bool:
    """Whether the control group at *path* is, or is in, that of *unit* of the manager at *root*."""
    if not path.startswith(f"{root}/"):
        return False
    names = path[len(root) + 1 :].split("/")
    if unit not in names:
        return False
    return all(name.endswith(".slice") for name in names[: names.index(unit)])


def _managers_roots() -> dict[str, str]:
    """The control group of the system's manager, by hierarchy: that of pid 1, which it leaves.

    systemd itself is in ``init.scope`` below its root; another init stays in the root.
    """
    return {
        hierarchy: path.removesuffix("/init.scope").rstrip("/")
        for hierarchy, path in control_groups(1)
    }


def control_groups(pid: int, hierarchies: Collection[str] = SYSTEMDS) -> Iterator[tuple[str, str]]:
    """Where a process is in systemd's hierarchies, or others: pairs of controllers and path."""
    for line in _read(f"/proc/{pid}/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if any(name in hierarchies for name in controllers.split(",")):
            yield controllers, path


def socket_inodes(pid: int) -> set[int]:
    """The inodes of the sockets that the process has open; empty without the right to look."""
    found: set[int] = set()
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return found
    for number in names:
        try:
            link = os.readlink(f"/proc/{pid}/fd/{number}")
        except OSError:
            continue
        if link.startswith("socket:["):
            found.add(int(link[8:-1]))
    return found


def hides_its_sockets(pid: int) -> bool:
    """Whether the process lives, and we may not look: ptrace(2), PTRACE_MODE_READ_FSCREDS.

    The same is asked for every link below /proc/PID; the names of its descriptors show anyway.
    """
    try:
        os.readlink(f"/proc/{pid}/cwd")
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def owners(
    inodes: Iterable[int], candidates: Iterable[int] | None = None
) -> dict[int, list[Process]]:
    """Who has these sockets open, by inode; looks at every process unless told at which."""
    wanted = set(inodes)
    if not wanted:
        return {}
    found: dict[int, list[Process]] = {inode: [] for inode in wanted}
    for pid in sorted(pids() if candidates is None else candidates):
        for inode in wanted & socket_inodes(pid):
            found[inode].append(Process(pid=pid, name=name(pid)))
    return found


def close_descriptors_but(keep: Collection[int]) -> None:
    """Close every descriptor of this process but the standard streams and *keep*."""
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > 2 and number not in keep:
            with suppress(OSError):  # the listing's own is closed already
                os.close(number)


def set_name(text: str) -> None:
    """What ps(1) shows of this process: 15 characters."""
    with suppress(OSError), open("/proc/self/comm", "w") as comm:
        comm.write(text)


def flock_holder(path: str) -> int:
    """Who has that file locked alone by flock(2); 0: nobody, or nobody of this PID namespace."""
    status = os.stat(path)
    device, inode = status.st_dev, status.st_ino
    file = f"{os.major(device):02x}:{os.minor(device):02x}:{inode}"
    for line in _read("/proc/locks").splitlines():
        match line.split():
            case [_, "FLOCK", _, "WRITE", pid, place, *_] if place == file:
                return int(pid)
    return 0


def network_inode(pid: int) -> int:
    """The identity of the process's network namespace; 0: gone, or hidden."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return 0


def sysctl(name: str) -> str:
    """A kernel parameter, such as ``net.core.somaxconn``; empty where it cannot be read."""
    return _read("/proc/sys/" + name.replace(".", "/")).strip()


def initial_variables() -> set[bytes] | None:
    """The names of the environment that this process was started with; None where unknown."""
    try:
        with open("/proc/self/environ", "rb") as file:
            entries = file.read().split(b"\0")
    except OSError:
        return None
    return {entry.partition(b"=")[0] for entry in entries if entry}


def require_net_admin() -> None:
    """Check first what every hold needs, so that the error names it.

    :raises PrivilegeError: CAP_NET_ADMIN is not in the effective set.
    """
    for line in _read("/proc/thread-self/status").splitlines():
        if line.startswith("CapEff:") and not int(line.split()[1], 16) >> CAP_NET_ADMIN & 1:
            raise PrivilegeError(
                "holding connections needs CAP_NET_ADMIN, which this process does not have",
                capability="CAP_NET_ADMIN",
            )
