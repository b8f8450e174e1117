"""Generations: process trees that serve, one after the other.

A generation is its main process and all that came from it. What it leaves behind (a daemon's
first process ends at once) is adopted by us, since we are the parent of orphans
(:mod:`synplug.kernel.subreaper`), and recognised by its session: whatever runs below us in
another session than ours is a generation's, the keepers aside. Which one's, its environment tells
(SYNPLUG_GENERATION); where it does not any more, it is taken for the latest one's.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection, Iterable

from synplug.errors import SynplugError
from synplug.handover.tools import Command, ProcessTable, Tools
from synplug.model import Endpoint, Listener

#: In the environment of each generation that has a number.
VARIABLE = "SYNPLUG_GENERATION"
_WALKS = 3


class Lineage:
    """Tells which processes below us nobody has claimed yet.

    :param own_pid: ours.
    """

    def __init__(self, processes: ProcessTable, own_pid: int) -> None:
        self._processes = processes
        self._own_pid = own_pid
        self._session = processes.session(own_pid)
        #: Children of ours with a session of their own that are no generation's.
        self.keepers: set[int] = set()
        self.generations: list[Generation] = []
        #: The latest one that was started.
        self.latest = 0

    def forget_dead_keepers(self) -> None:
        """Their pids may be used again."""
        self.keepers = {pid for pid in self.keepers if self._processes.is_alive(pid)}

    def orphans_of(self, number: int) -> set[int]:
        """Processes that nobody has claimed yet and that this generation has left behind.

        One without a number is the only one that is ours.
        """
        if not number:
            return self.unclaimed()
        return {
            pid
            for pid in self.unclaimed()
            if (self._processes.variable(pid, VARIABLE) or str(self.latest)) == str(number)
        }

    def collect_orphans(self, reap: Callable[[int], object]) -> None:
        """Collect what has ended below us and is no generation's: left behind by a check, say."""
        claimed = {pid for generation in self.generations for pid in generation.known}
        below = self._processes.descendants([self._own_pid]) - {self._own_pid}
        for pid in below - claimed - self.keepers:
            if not self._processes.is_alive(pid):
                reap(pid)

    def unclaimed(self) -> set[int]:
        """Processes below us, in another session, that are no keeper and no generation's yet."""
        below = self._processes.descendants([self._own_pid]) - {self._own_pid}
        claimed = {pid for generation in self.generations for pid in generation.known}
        below -= claimed | self._processes.descendants(self.keepers)
        return {pid for pid in below if self._processes.session(pid) not in (0, self._session)}


class Generation:
    """One of them, ours or one that was there before us.

    :param command: its main process, if we have started it.
    :param orphans: finds what it may have left behind; None: it cannot be told.
    """

    def __init__(
        self,
        pid: int,
        *,
        tools: Tools,
        command: Command | None = None,
        number: int = 0,
        orphans: Callable[[], set[int]] | None = None,
    ) -> None:
        self.pid = pid
        self.number = number
        self._tools = tools
        self._processes = tools.processes
        self._command = command
        self.orphans = orphans
        self._known = {pid: self._processes.start_time(pid)}
        self._main_pid = pid
        self._main_status: int | None = None
        self._lost_status: int | None = None
        self._serving_pid = pid
        self._served: tuple[Endpoint, ...] = ()
        #: Whether its first process had ended when it was ready.
        self.is_daemon = False

    @property
    def known(self) -> set[int]:
        """Its processes, as of the last look."""
        return set(self._known)

    @property
    def status(self) -> int | None:
        """The status of its main process as a shell has it; None: it runs, or is not ours."""
        return None if self._command is None else self._command.poll()

    @property
    def last_status(self) -> int | None:
        """As :attr:`status`; of a daemon, whose first process has succeeded, its main process's.

        While something of it lives, that of the one that was the main process before. None: it
        runs, or nobody can tell.
        """
        first = not self.is_daemon or self._main_pid == self.pid
        if first:
            return self.status
        return self._lost_status if self._known else self._main_status

    @property
    def main_pid(self) -> int:
        """Its main process: the first one, or where that has ended the oldest of the others."""
        self.look()
        return self._main_pid

    def look(self) -> set[int]:
        """Its living processes; those that have ended are collected, where that is ours to do."""
        start_time, known = self._processes.start_time, self._known
        kept = {pid for pid, start in known.items() if start and start_time(pid) == start}
        found, living = self._walk(kept)
        for pid in found - living - {self.pid}:
            status = self._tools.reap(pid)
            if pid == self._main_pid:
                self._main_status = status
        if self._command is not None:
            self._command.poll()
        self._known = {pid: known.get(pid) or start_time(pid) for pid in living}
        if living and self._main_pid not in living:
            self._main_pid = min(living, key=lambda pid: (self._known[pid], pid))
            self._main_status, self._lost_status = None, self._main_status
        return living

    def _walk(self, kept: Collection[int]) -> tuple[set[int], set[int]]:
        """What comes from those, and what of it lives.

        Who ends during a walk may hide its children from it: they were not ours yet when ours were
        listed, and its own no more when its own were. They are ours once it is seen to have ended
        (``kernel/exit.c``, exit_notify), so then it is done again; not for ever, where some end
        all the time.
        """
        ended: set[int] = set()
        for _ in range(_WALKS):
            found = self._processes.descendants(kept)
            if self.orphans is not None:
                found |= self.orphans()
            living = {pid for pid in found if self._processes.is_alive(pid)}
            if self.orphans is None or found - living <= ended:
                break
            ended |= found - living
        return found, living

    def has_come_up(self, served: Iterable[Listener]) -> None:
        """It serves these now; from here on it shows whether it is a daemon."""
        self.is_daemon = self.status is not None
        self._serving_pid = self.main_pid
        self._served = tuple(listener.endpoint() for listener in served)

    def may_serve(self, endpoints: Collection[Endpoint]) -> bool:
        """Whether it serves; yes, where that cannot be seen now.

        It does no more when its first process has ended. That of a daemon has ended before: it
        serves while its main process lives, or one of its listeners does.

        :param endpoints: what matters; empty: what it served when it had come up.
        """
        if not self.may_live():
            return False
        if not self.is_daemon:
            return self.status is None
        try:
            return self.main_pid == self._serving_pid or bool(
                self.listeners(endpoints or self._served)
            )
        except SynplugError:
            return True

    def may_live(self) -> bool:
        """Whether anything of it lives; yes, where that cannot be seen now."""
        try:
            return bool(self.look())
        except SynplugError:
            return True

    def inodes(self) -> set[int]:
        """The sockets that its processes have open."""
        return {inode for pid in self.look() for inode in self._processes.socket_inodes(pid)}

    def listeners(self, endpoints: Iterable[Endpoint] | None) -> list[Listener]:
        """Its own listening sockets; those that serve *endpoints*, or all for None."""
        found = self._tools.sockets.listeners(endpoints)
        inodes = self.inodes() if found else set()
        return [listener for listener in found if listener.inode in inodes]

    def standing(self) -> tuple[list[Listener], set[int]]:
        """Its own listening sockets, and those of its processes that have one of them open."""
        found = self._tools.sockets.listeners(None)
        living = self.look() if found else ()
        sockets = {pid: self._processes.socket_inodes(pid) for pid in living}
        inodes = {inode for own in sockets.values() for inode in own}
        listeners = [listener for listener in found if listener.inode in inodes]
        theirs = {listener.inode for listener in listeners}
        return listeners, {pid for pid, own in sockets.items() if own & theirs}

    def connections(self, endpoints: Iterable[Endpoint]) -> int:
        """How many established connections to these endpoints are its own."""
        inodes = self.inodes()
        return sum(own.inode in inodes for own in self._tools.sockets.connections(endpoints))

    def send(self, number: int) -> None:
        """Send a signal to its main process; where that has ended, to all that are left."""
        living = self.look()
        for pid in {self.pid} & living or living:
            self._tools.send_to(pid, self._known[pid], number)

    def kill(self) -> None:
        """SIGKILL to all of it."""
        for pid in self.look():
            self._tools.send_to(pid, self._known[pid], signal.SIGKILL)
