"""Processes, as /proc shows them: families, open sockets, control groups.

Source: proc(5). Processes come and go while this reads; one that is gone has no answer, which
is no error. Names are untrusted text.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from synplug.errors import PrivilegeError
from synplug.model import Process

CAP_NET_ADMIN = 12


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


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; a name may contain anything."""
    return _read(f"/proc/{pid}/stat").rpartition(")")[2].split()


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


def control_group_members(component: str) -> set[int]:
    """The processes whose control group's path has *component*, such as ``nginx.service``."""
    found = set()
    for pid in pids():
        for line in _read(f"/proc/{pid}/cgroup").splitlines():
            if component in line.split(":", 2)[-1].split("/"):
                found.add(pid)
    return found


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


def network_inode(pid: int) -> int:
    """The identity of the process's network namespace; 0: gone, or hidden."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return 0


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
