"""Find the endpoints that a command restarts.

What the operator names comes first: ports, a unit, a pid, a pidfile. With none of them the
command itself is read (:mod:`synplug.handover.clues`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol

from synplug.errors import PrivilegeError, TargetError, UsageError
from synplug.handover.clues import Clue, beginning_of, clue_of, output_of, remedy_of_quotes
from synplug.handover.tools import ProcessTable, SocketTable
from synplug.kernel.procfs import is_alive
from synplug.model import Endpoint, Listener
from synplug.record import Record, replace

_PIDFILE_BYTES = 64
_UNIT = re.compile(r"\S+\.(service|scope|slice)")


class TargetRequest(Record):
    """What the operator has named."""

    endpoints: tuple[Endpoint, ...] = ()
    units: tuple[str, ...] = ()
    pids: tuple[int, ...] = ()
    pidfiles: tuple[str, ...] = ()
    argv: tuple[str, ...] = ()


class Target(Record):
    """What that stands for.

    :param how: where the endpoints come from, for the plan that people read.
    :param returns_early: the command ends before the old listener does.
    :param unserved: those on which nobody listens now: a first start, or a slip.
    """

    endpoints: tuple[Endpoint, ...]
    pids: tuple[int, ...] = ()
    unit: str = ""
    how: str = "named"
    unserved: tuple[Endpoint, ...] = ()
    returns_early: bool = False


class Namespaces(Protocol):
    """Network namespaces of processes; part of :mod:`synplug.kernel.procfs`."""

    def network_inode(self, pid: int, /) -> int:
        """The identity of a process's network namespace."""

    def hides_its_sockets(self, pid: int, /) -> bool:
        """Whether we may not see what a process has open."""


class Processes(ProcessTable, Namespaces, Protocol):
    """What finding a target asks of /proc."""


def is_named(request: TargetRequest) -> bool:
    """Whether it is clear which service is meant, be it there or not."""
    clue = clue_of(request.argv)
    named = request.endpoints or request.units or request.pids or request.pidfiles
    return bool(named or clue.units or clue.pids or clue.pidfiles)


def find_target(
    request: TargetRequest, *, sockets: SocketTable, processes: Processes, here: int
) -> Target:
    """The endpoints to hold.

    :param here: the inode of the network namespace in which connections will be held.
    :raises TargetError: nothing was named and nothing can be told from the command, or the
        processes that were meant do not listen. The message lists who listens.
    :raises UsageError: a pidfile cannot be read, a pid is not there.
    """
    named = Clue(units=request.units, pids=request.pids, pidfiles=request.pidfiles)
    read = clue_of(request.argv)
    if request.endpoints:
        target = _of_endpoints(request.endpoints, sockets)
        pids, unit = _processes_of(named, processes, may_be_down=bool(target.unserved))
        unit = unit or _unit_of(read, processes)
        return replace(target, pids=pids, unit=unit, returns_early=read.returns_early)
    clue, how = (named, _words(named)) if _tells(named) else (read, _words(read))
    if not _tells(clue):
        quotes = remedy_of_quotes(request.argv[0]) if request.argv else ""
        raise TargetError(
            f"cannot tell which ports the command restarts; {quotes or 'name them with -p'}"
            if request.argv
            else "nothing names an endpoint; name it with -p, --unit, --pid or --pidfile",
            remedy=_who_listens(sockets, processes),
        )
    pids, unit = _processes_of(clue, processes)
    tree = processes.descendants(pids)
    return Target(
        endpoints=_served_by(tree, how, sockets=sockets, processes=processes, here=here),
        pids=tuple(sorted(tree)),
        unit=unit,
        returns_early=read.returns_early,
        how=how if clue is named else f"inferred from the command: {how}",
    )


def _tells(clue: Clue) -> bool:
    """Whether it names any process."""
    return bool(clue.units or clue.pids or clue.pidfiles)


def _of_endpoints(endpoints: Sequence[Endpoint], sockets: SocketTable) -> Target:
    """The target that named endpoints are."""
    listeners = sockets.listeners(endpoints)
    return Target(
        endpoints=_as_served(endpoints, listeners),
        unserved=tuple(
            endpoint
            for endpoint in endpoints
            if not any(listener.serves(endpoint) for listener in listeners)
        ),
    )


def _served_by(
    pids: Collection[int],
    how: str,
    *,
    sockets: SocketTable,
    processes: Processes,
    here: int,
) -> tuple[Endpoint, ...]:
    """What processes listen on.

    :param how: what they are, in words.
    :raises TargetError: nothing; if they live in another network namespace, that is said.
    :raises PrivilegeError: that cannot be seen.
    """
    inodes = {inode for pid in pids for inode in processes.socket_inodes(pid)}
    found = sorted(
        {listener.endpoint() for listener in sockets.listeners() if listener.inode in inodes},
        key=lambda endpoint: (endpoint.port, str(endpoint)),
    )
    if found:
        return without_covered(found)
    hidden = [pid for pid in pids if processes.hides_its_sockets(pid)]
    if hidden:
        raise PrivilegeError(
            f"{how}: the sockets of pid {hidden[0]} are not visible to this user",
            capability="CAP_SYS_PTRACE",
            remedy="run it as root, or with CAP_SYS_PTRACE; or name the ports with -p",
        )
    elsewhere = [pid for pid in pids if processes.network_inode(pid) not in (0, here)]
    raise TargetError(
        f"{how}: no process of it listens on TCP in this network namespace",
        remedy=(
            f"its processes live in another one: add --netns {elsewhere[0]}"
            if elsewhere
            else f"name the ports with -p; {_who_listens(sockets, processes)}"
        ),
    )


def _words(clue: Clue) -> str:
    parts = [f"unit {unit}" for unit in clue.units]
    parts += [f"pid {pid}" for pid in clue.pids]
    parts += [f"pidfile {path}" for path in clue.pidfiles]
    return ", ".join(parts)


def _processes_of(
    clue: Clue, processes: ProcessTable, *, may_be_down: bool = False
) -> tuple[tuple[int, ...], str]:
    """The pids that a clue stands for, and its unit as systemd spells it.

    :param may_be_down: what does not run is no slip: it is about to be started again.
    """
    pids, unit = set(clue.pids), ""
    passed_over = (UsageError,) if may_be_down else ()
    for path in clue.pidfiles:
        with suppress(*passed_over):
            pids.add(read_pidfile(path))
    for name in clue.units:
        with suppress(*passed_over):
            members, unit = _unit_members(name, processes)
            pids |= members
    return tuple(sorted(pids)), unit or (_unit_of(clue, processes) if may_be_down else "")


def _unit_of(clue: Clue, processes: ProcessTable) -> str:
    """The unit that a command names, one that runs if any does.

    Its ExecReload=, or ExecStartPost= when it is up again, may check the held endpoint.
    """
    for name in clue.units:
        with suppress(UsageError):
            _, unit = _unit_members(name, processes)
            return unit
    return next((list(_spellings(name))[-1] for name in clue.units), "")


def _unit_members(name: str, processes: ProcessTable) -> tuple[set[int], str]:
    """The processes of a unit's control group, and the name by which that is known.

    Without systemd (a service started by its init script) the usual pidfiles are looked at.
    """
    for unit in _spellings(name):
        members = processes.control_group_members(unit)
        if members:
            return members, unit
    stem = name.removesuffix(".service")
    for path in (f"/run/{stem}.pid", f"/run/{stem}/{stem}.pid"):
        if os.path.exists(path):
            return {read_pidfile(path)}, ""
    raise TargetError(
        f"unit {name} has no running process",
        remedy="start it first, or name its ports with -p, too",
    )


def _spellings(name: str) -> Iterator[str]:
    """A unit's full name; then, where that is an alias, which has no control group, whose it is."""
    spelled = name if _UNIT.fullmatch(name) else f"{name}.service"
    yield spelled
    canonical = output_of(["systemctl", "show", "--property=Id", "--value", "--", spelled])
    if canonical != spelled and _UNIT.fullmatch(canonical):
        yield canonical


def read_pidfile(path: str) -> int:
    """The pid in a pidfile.

    :raises UsageError: it cannot be read, holds no pid, or that process is gone.
    """
    try:
        words = beginning_of(path, _PIDFILE_BYTES).split()
    except OSError as error:
        raise UsageError(
            f"pidfile {path}: {error.strerror}",
            remedy="where the service does not run, name its ports with -p",
        ) from error
    if not words or not words[0].isdigit() or not 0 < int(words[0]) < 1 << 22:
        raise UsageError(f"pidfile {path} holds no pid")
    pid = int(words[0])
    if not is_alive(pid):
        raise UsageError(
            f"pidfile {path}: there is no process {pid}",
            remedy="it is stale, or the service does not run; name the ports with -p",
        )
    return pid


# --- endpoints


def _as_served(
    endpoints: Sequence[Endpoint], listeners: Sequence[Listener]
) -> tuple[Endpoint, ...]:
    """Endpoints as their listeners serve them: ``[::]`` stands for IPv4, too, on a dual socket."""

    def widened(endpoint: Endpoint) -> Endpoint:
        if endpoint.address != IPv6Address(0):
            return endpoint
        served = (own.endpoint() for own in listeners if own.port == endpoint.port)
        return next((own for own in served if own.address is None), endpoint)

    return without_covered([widened(endpoint) for endpoint in endpoints])


def without_covered(endpoints: Sequence[Endpoint]) -> tuple[Endpoint, ...]:
    """Each once, and none that another one contains: its SYNs would meet two rules."""
    unique = list(dict.fromkeys(endpoints))
    return tuple(
        endpoint
        for endpoint in unique
        if not any(other != endpoint and _contains(other, endpoint) for other in unique)
    )


def _contains(wide: Endpoint, narrow: Endpoint) -> bool:
    if wide.port != narrow.port or narrow.address is None:
        return False
    if wide.address is None:
        return True
    return wide.address.is_unspecified and wide.address.version == narrow.address.version


def _who_listens(sockets: SocketTable, processes: ProcessTable) -> str:
    """The machine's listeners with their processes, one a line; as they can be named with -p."""
    listeners = sorted(sockets.listeners(), key=lambda listener: (listener.port, str(listener)))
    owners = processes.owners({listener.inode for listener in listeners})
    found: dict[Endpoint, set[str]] = {}
    for listener in listeners:
        names = ", ".join(f"{owner.name} (pid {owner.pid})" for owner in owners[listener.inode])
        found.setdefault(listener.endpoint(), set()).add(names or "owner not visible")
    lines = {
        (endpoint.port, f"  -p {_named(endpoint, found)}  {names}")
        for endpoint, all_names in found.items()
        for names in all_names
    }
    if not lines:
        return "nobody listens on TCP here"
    return "\n".join(["who listens here:", *(line for _, line in sorted(lines))])


def _named(endpoint: Endpoint, found: Mapping[Endpoint, set[str]]) -> str:
    """How to name it: a port whose IPv4 and IPv6 are the same service's needs no address."""
    addresses = (IPv4Address(0), IPv6Address(0))
    wildcards = [Endpoint(port=endpoint.port, address=own) for own in addresses]
    both = all(found.get(own) == found[endpoint] for own in wildcards)
    if endpoint.address is None or (endpoint in wildcards and both):
        return str(endpoint.port)
    return str(endpoint)
