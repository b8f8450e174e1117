"""The loop between the command's start and the release."""

from __future__ import annotations

from collections.abc import Callable, Collection

from synplug.handover.configuration_test import is_configuration_test
from synplug.handover.drain import POLL_S
from synplug.handover.own_connections import OwnConnections
from synplug.handover.plan import WrapPlan
from synplug.handover.readiness import Readiness, Watch
from synplug.handover.tools import Command, Held, Tools
from synplug.holding.paced import Sighting
from synplug.model import HoldResult, Listener, Outcome, ReleaseReason

#: So often it looks, and for so long, once a new listener is there and something is still missing:
#: another address, an owner that is no configuration test.
_NEAR_POLL_S, _NEAR_S = 0.0002, 0.02
_PROCESSES_EVERY_S = 0.01
#: A process that ends loses its descriptors first, and its listeners a moment later (do_exit).
_ENDING_S = 0.01
#: To look into so many processes takes as long as to wait for an end would.
_MANY = 100
#: To read what so many were started with takes as long as to ask who has a socket open.
_FEW = 50
_LOCAL_WAITED = (
    "connections from this host may have waited: a check of the restart's own among them waited "
    "for itself; --ready-http, and what the command itself starts, need not wait"
)


class ReadyWait:
    """Polls listeners, command, probes, signals and the hold, every millisecond.

    :param service_pids: whose process tree must be still before unchanged listeners count.
    """

    def __init__(
        self,
        *,
        plan: WrapPlan,
        tools: Tools,
        watch: Watch,
        service_pids: Collection[int],
        interrupted: Callable[[], bool],
        hold: Held,
    ) -> None:
        self._plan = plan
        self._tools = tools
        self._watch = watch
        self._service_pids = service_pids
        self._interrupted = interrupted
        self._hold = hold
        self._probe = tools.probe(plan.ready, plan.spec.probe_mark)
        self._probing = False
        self._processes: frozenset[int] = frozenset()
        self._processes_at_s = float("-inf")
        self._own = OwnConnections(
            ports=sorted({endpoint.port for endpoint in plan.spec.endpoints}),
            unit=plan.unit,
            sockets=tools.sockets,
            processes=tools.processes,
            clock=tools.clock,
        )
        self._seen: set[int] | None = None
        self._new_at_s = float("-inf")
        self._lasting: set[int] = set()
        self._ownerless_s: dict[int, float] = {}
        #: The last look at the listeners.
        self.seen = Sighting()
        #: Why it was not ready in time.
        self.complaint = ""

    def until_ready(self, command: Command | None) -> Outcome:
        """Wait; returns why it needs no longer.

        :param command: None: somebody else's, which has done its work.
        """
        began_s = self._tools.clock()
        while True:
            outcome = self._look(command, began_s)
            if outcome is not None:
                return outcome
            own = () if command is None else (command.pid,)
            self._own.look([*own, *self._probe_pids()], self._hold)
            is_near = self._tools.clock() - self._new_at_s < _NEAR_S
            self._tools.signals.pause(_NEAR_POLL_S if is_near else POLL_S)

    def reviewed(self, outcome: Outcome, result: HoldResult | None) -> Outcome:
        """What it comes to once the hold is over, which may have ended during the last look.

        A check that waited behind the hold passes at that very moment.
        """
        if outcome is not Outcome.READY or result is None or result.reason is ReleaseReason.ASKED:
            return outcome
        self.complaint = "the service was found ready only when the hold had ended"
        return _ended_by_itself(result)

    @property
    def complaints(self) -> list[str]:
        """What the operator should know if it was not ready in time."""
        found = [self.complaint] if self.complaint else []
        if self._hold.may_hold_local:
            found.append(_LOCAL_WAITED)
        return found

    def stop(self) -> None:
        """End the probe."""
        if self._probe is not None and self._probing:
            self._probe.stop()

    def _look(self, command: Command | None, began_s: float) -> Outcome | None:
        if self._interrupted():
            return Outcome.INTERRUPTED
        result = self._hold.ended()
        if result is not None:
            self._complain()
            return _ended_by_itself(result)
        status = 0 if command is None else command.poll()
        if status:
            return Outcome.COMMAND_FAILED
        now_s = self._tools.clock()
        listeners = self._listeners()
        self._note_new(now_s, listeners)
        verdict = self._watch.observe(
            now_s=now_s,
            listeners=listeners,
            processes=self._service(now_s) if status == 0 else (),
            succeeded=status == 0,
        )
        is_there = verdict is not Readiness.NOT_YET
        if is_there and command is not None and status is None:
            is_there = self._lasts(listeners, command.pid, now_s)
        if is_there and self._probe_passed():
            return Outcome.READY
        limit_s = self._plan.ready.timeout_s
        if limit_s is not None and now_s - began_s >= limit_s:
            self._complain()
            return Outcome.DEADLINE
        return None

    def _listeners(self) -> Collection[Listener]:
        at_s = self._tools.clock()
        self.seen = Sighting(self._tools.sockets.listeners(self._plan.spec.endpoints), at_s)
        return self.seen.listeners

    def _note_new(self, now_s: float, listeners: Collection[Listener]) -> None:
        cookies = {listener.cookie for listener in listeners}
        if self._seen is not None and not cookies <= self._seen:
            self._new_at_s = now_s
        self._seen = cookies

    def _lasts(self, listeners: Collection[Listener], command_pid: int, now_s: float) -> bool:
        """Whether none of them is that of a configuration test, which listens for a moment.

        A command that still runs may go on with such a test. Where none can be running, whose it
        is need not be asked. A listener of nobody may be a test's that is ending just now, and is
        looked at again; any other one is looked at once.
        """
        cookies = {listener.cookie for listener in listeners}
        if cookies <= self._lasting:
            return True
        if not self._may_be_testing(command_pid):
            return self._note_lasting(cookies)
        new = {own.cookie: own.inode for own in listeners if own.cookie not in self._lasting}
        owners = self._owners(set(new.values()), command_pid)
        since_s = [
            self._ownerless_s.setdefault(cookie, now_s)
            for cookie, inode in new.items()
            if not owners[inode]
        ]
        if since_s and now_s - max(since_s) < _ENDING_S:
            return False
        for pids in filter(None, owners.values()):
            # Who is ending has no words any more; a daemon's child is there before its parent ends.
            command_lines = list(filter(None, map(self._tools.processes.command_line, pids)))
            if not command_lines or any(map(is_configuration_test, command_lines)):
                return False
        return self._note_lasting(cookies)

    def _may_be_testing(self, command_pid: int) -> bool:
        """Whether a configuration test may be running, or ending: who ends has no words."""
        found = self._tools.processes.command_lines_since(command_pid, _FEW)
        return found is None or any(not words or is_configuration_test(words) for words in found)

    def _note_lasting(self, cookies: set[int]) -> bool:
        """These are nobody's who was found to be a test: those that are there after that, last."""
        self._lasting |= cookies & {listener.cookie for listener in self._listeners()}
        return cookies <= self._lasting

    def _owners(self, inodes: Collection[int], command_pid: int) -> dict[int, list[int]]:
        """Who has each of the sockets open: among the command's children, or who has left them."""
        processes = self._tools.processes
        children = processes.descendants([command_pid])
        found = processes.owners(inodes, children)
        if not all(found.values()):
            daemons = processes.started_since(command_pid) - children
            if len(daemons) <= _MANY:
                found = {**found, **processes.owners({i for i in found if not found[i]}, daemons)}
        return {inode: [owner.pid for owner in owners] for inode, owners in found.items()}

    def _service(self, now_s: float) -> Collection[int]:
        """The service's processes; looked up less often than listeners."""
        if now_s - self._processes_at_s >= _PROCESSES_EVERY_S:
            self._processes_at_s = now_s
            self._processes = frozenset(self._tools.processes.descendants(self._service_pids))
        return self._processes

    def _probe_passed(self) -> bool:
        if self._probe is None:
            return True
        if not self._probing:
            self._probing = True
            self._probe.start()
        return self._probe.passed

    def _probe_pids(self) -> Collection[int]:
        return self._probe.pids if self._probe is not None and self._probing else ()

    def _complain(self) -> None:
        if not self._probing:
            self.complaint = self._watch.complaint(self._listeners())
        elif self._probe is not None:
            self.complaint = (
                f"the readiness check did not pass in time: {self._probe.complaint or 'no answer'}"
            )


def _ended_by_itself(result: HoldResult) -> Outcome:
    is_late = result.reason is ReleaseReason.DEADLINE
    return Outcome.DEADLINE if is_late else Outcome.ERROR
