"""Close one generation's listeners without losing who waits in their queues.

    look ahead → (hold) → drain → stop → they are gone

All but the look ahead is to be called while SYNs are held: then nothing new comes, and the rest
can only become less.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection, Iterable

from synplug.errors import DrainError, StopError, SynplugError, TargetError
from synplug.fate import Fate, OldGeneration
from synplug.handover.drain import POLL_S, Drain
from synplug.handover.generation import Generation
from synplug.handover.own_connections import OwnConnections
from synplug.handover.plan import DrainPlan, StopMethod
from synplug.handover.retirement import Retirement
from synplug.handover.tools import REFUSED, Command, Held, Observer, Tools
from synplug.model import Endpoint, Listener, OnDrainTimeout, OwnedListener
from synplug.steps import DrainResult

#: What a stop that failed may take to show that it was heard.
_GRACE_S = 0.5


class Closing:
    """One generation's way off its endpoints.

    :param leaving: its listeners there that nobody else has open.
    :param mark: of packets that pass the hold.
    :param hold: lets a connection of the stop command's pass.
    """

    def __init__(
        self,
        generation: Generation,
        leaving: Collection[Listener],
        *,
        endpoints: tuple[Endpoint, ...],
        drain: DrainPlan,
        stop: StopMethod,
        tools: Tools,
        mark: int,
        hold: Held,
    ) -> None:
        self._generation = generation
        self._mark = mark
        self._inodes: set[int] | None = None
        self._endpoints = endpoints
        self._cookies = {listener.cookie for listener in leaving}
        self._ports = sorted({endpoint.port for endpoint in endpoints})
        self._stop = stop
        self._tools = tools
        self._hold = hold
        self._drain = Drain(
            plan=drain,
            endpoints=endpoints,
            old=leaving,
            sockets=tools.sockets,
            clock=tools.clock,
            pause=tools.signals.pause,
            mine=self._sockets,
        )
        self._command: Command | None = None
        #: Whether it was told to close its listeners: there is no way back from there.
        self.is_told = False
        #: What it took, beyond the way it should have been told.
        self.forced: Fate | None = None
        self.warnings: list[str] = []

    @property
    def method(self) -> str:
        """How it is told, in words."""
        return str(self._stop)

    def look_ahead(self, hold: Observer) -> None:
        """Before the hold: see who has something to finish."""
        self._drain.look_ahead(hold)

    def drain(self, stopped: Callable[[], bool]) -> DrainResult:
        """Wait until its queues are empty, and its requests answered."""
        return self._drain.wait(stopped)

    def _sockets(self) -> set[int]:
        """Its sockets when its queues had run empty: from there on it gets no more."""
        if self._inodes is None:
            self._inodes = self._generation.inodes()
        return self._inodes

    def standing(self) -> int:
        """How many of its listeners are still there."""
        listeners = self._tools.sockets.listeners(self._endpoints)
        return sum(listener.cookie in self._cookies for listener in listeners)

    def stop(self) -> None:
        """Tell it, and wait until its listeners are gone; in the end it is killed.

        :raises StopError: it was refused. A command that failed is no refusal: it may have been
            heard all the same, or be heard later, and then nobody would serve if we went back.
        """
        if self._stop.by_signal:
            self._generation.send(self._stop.number)
        elif self._stop.post:
            self._command = self._tools.post(self._filled(self._stop.post), self._mark)
        else:
            words = [self._filled(word) for word in self._stop.command]
            self._command = self._tools.spawn_captured(words)
        self.is_told = True
        self._until_gone(self._command)

    def collect(self) -> None:
        """See the stop command end; it has as long as the listeners had, once they are gone."""
        command = self._command
        give_up_s = self._tools.clock() + self._stop.timeout_s
        while command is not None and command.poll() is None:
            if self._tools.clock() >= give_up_s:
                command.send(signal.SIGKILL)
            self._tools.signals.pause(POLL_S, command)
        if command is not None:
            command.output()  # which closes it

    def _filled(self, word: str) -> str:
        return filled(word, pid=self._generation.main_pid, generation=self._generation.number)

    def _until_gone(self, command: Command | None) -> None:
        """Wait; after the stop method's time comes SIGTERM, after as long again SIGKILL."""
        own = self._own_connections()
        forces = self._forces()
        next_s = self._tools.clock() + self._stop.timeout_s
        while left := self._left():
            if command is not None:
                if command.pid:
                    own.look([command.pid], self._hold)
                if self._has_failed(command, left):
                    command = None
                    next_s = min(next_s, self._tools.clock() + _GRACE_S)
            if self._tools.clock() >= next_s:
                if not forces:
                    self.warnings.append(f"{left} listeners of the old generation do not go away")
                    return
                self._force(forces.pop(0))
                next_s = self._tools.clock() + self._stop.timeout_s
            self._tools.signals.pause(POLL_S)

    def _left(self) -> int:
        """Those that stand; all, where they cannot be seen: it has been told, so look again."""
        try:
            return self.standing()
        except SynplugError:
            return len(self._cookies)

    def _has_failed(self, command: Command, left: int) -> bool:
        """Whether it has; then it is not asked any more.

        :raises StopError: it was refused by an answer.
        """
        status = command.poll()
        if not status:
            return False
        self._command = None
        said = command.output().splitlines()
        words = f"{self._stop} failed with status {status}" + (f": {said[-1]}" if said else "")
        if status == REFUSED and not command.pid and left == len(self._cookies):
            self.is_told = False
            raise StopError(words)
        self.warnings.append(f"{words}; the old generation is told to end by signals, if need be")
        return True

    def _forces(self) -> list[Fate]:
        asked_to_end = self._stop.by_signal and self._stop.number == signal.SIGTERM
        return [Fate.KILLED] if asked_to_end else [Fate.TERMINATED, Fate.KILLED]

    def _force(self, fate: Fate) -> None:
        self.forced = fate
        self.warnings.append(
            f"its listeners were not gone {self._stop.timeout_s:g} s after "
            f"{'SIGTERM' if fate is Fate.KILLED else self._stop}"
        )
        if fate is Fate.KILLED:
            self._generation.kill()
        else:
            self._generation.send(signal.SIGTERM)

    def _own_connections(self) -> OwnConnections:
        return OwnConnections(
            ports=self._ports,
            unit="",
            sockets=self._tools.sockets,
            processes=self._tools.processes,
            clock=self._tools.clock,
        )


def what_became_of(
    old: Generation, closing: Closing | None, retirement: Retirement | None
) -> OldGeneration:
    """The old generation, for the report."""
    if closing is None or retirement is None:
        fate = Fate.SERVING if old.may_live() else Fate.ENDED
        return OldGeneration(pid=old.pid, fate=fate)
    fate = closing.forced or retirement.fate
    return OldGeneration(pid=old.pid, fate=fate, stop=closing.method, took_s=retirement.took_s)


def left_over(drained: DrainResult, plan: DrainPlan) -> list[str]:
    """What was left in the queues, in words.

    :raises DrainError: that is not to be lost.
    """
    if drained.empty:
        return []
    words = f"{drained.left} connections were still in the old listener's queues"
    if plan.on_timeout is OnDrainTimeout.ABORT:
        raise DrainError(words, remedy="raise --drain-timeout, or see why it is stuck")
    return [words]


def refuse_shared(listeners: Iterable[OwnedListener], family: Collection[int]) -> None:
    """Look whether listeners would close with their generation.

    :param family: its processes.
    :raises TargetError: somebody else has one of them open.
    """
    for owned in listeners:
        for owner in owned.owners:
            if owner.pid not in family:
                raise TargetError(
                    f"{owned.listener} is open in {owner.name} (pid {owner.pid}), too: it would "
                    "not close with the old generation",
                    remedy="a listener that somebody keeps needs no swap: see 'synplug wrap'",
                )


def filled(word: str, **values: int) -> str:
    """A word with ``{name}`` replaced by its value; any other brace stays."""
    for name, value in values.items():
        word = word.replace(f"{{{name}}}", str(value))
    return word
