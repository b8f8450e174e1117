"""The restart's own connections must not wait for their own release.

A health check in the restart command, or a readiness command, may connect to the very endpoint
that is held. The sockets of these processes that are in SYN_SENT to it are found, and the hold
lets their SYNs pass: they meet the new listener, or are refused while there is none, just as
without a hold.

Only ports are compared: a flow to the same port at another address never meets the hold's rule,
so letting it pass changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from synplug.handover.tools import Held, ProcessTable, SocketTable

_EVERY_S = 0.005
#: A look that costs much is repeated the more seldom, so that it takes a fifth of a processor.
_SPARE = 5
#: Looking for a control group's members reads all of /proc.
_GROUP_EVERY_S = 0.1


class OwnConnections:
    """Finds them, in bounded time, every few milliseconds.

    :param unit: the systemd unit of the service, whose ExecStartPost= may do the check.
    """

    def __init__(
        self,
        *,
        ports: Iterable[int],
        unit: str,
        sockets: SocketTable,
        processes: ProcessTable,
        clock: Callable[[], float],
    ) -> None:
        self._ports = tuple(ports)
        self._unit = unit
        self._sockets = sockets
        self._processes = processes
        self._roots: set[int] = set()
        self._passed: set[int] = set()
        self._clock = clock
        self._next_s = self._group_at_s = float("-inf")

    def look(self, roots: Collection[int], hold: Held) -> None:
        """Let the connections of *roots* and of their children pass.

        A child stays one of them when its parent ends before it does. Connections are looked
        for only where some from this host wait: that reads what each of them has open, and the
        kernel's whole table.
        """
        now_s = self._clock()
        if now_s < self._next_s:
            return
        if self._unit and now_s - self._group_at_s >= _GROUP_EVERY_S:
            self._group_at_s = now_s
            self._roots |= self._processes.control_group_members(self._unit)
        self._roots = self._processes.descendants(self._roots | set(roots))
        if hold.may_hold_local:
            self._let_through(hold)
        cost_s = self._clock() - now_s
        self._next_s = now_s + max(_EVERY_S, _SPARE * cost_s)

    def _let_through(self, hold: Held) -> None:
        inodes = {inode for pid in self._roots for inode in self._processes.socket_inodes(pid)}
        self._passed &= inodes
        if not inodes - self._passed:
            return
        for inode, flow in self._sockets.connecting(self._ports):
            if inode in inodes - self._passed:
                self._passed.add(inode)
                hold.let_through(flow)
