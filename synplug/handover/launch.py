"""Start a generation, and wait until it stands and is ready."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from synplug.errors import CheckError
from synplug.handover.generation import Generation, Lineage
from synplug.handover.plan import ReadyPlan
from synplug.handover.tools import Tools
from synplug.model import Listener, Outcome
from synplug.steps import CommandResult

_POLL_S = 0.005
_CHECK_POLL_S = 0.05
#: A look that costs much is repeated the more seldom, so that it takes a fifth of a processor.
_SPARE = 5


def run_check(argv: Sequence[str], tools: Tools, interrupted: Callable[[], bool]) -> None:
    """Run a test of the configuration.

    :raises CheckError: it did not succeed, or was interrupted.
    """
    command = tools.spawn_captured(argv)
    while (status := command.poll()) is None:
        if interrupted():
            command.send(signal.SIGTERM)
        tools.signals.pause(_CHECK_POLL_S, command)
    said = command.output().splitlines()  # which closes it, too
    if status:
        words = f"--check ended with status {status}" + (f": {said[-1]}" if said else "")
        raise CheckError(words)


class Launch:
    """The beginning of one generation.

    :param mark: of the readiness probe's sockets.
    :param number: of the generation.
    """

    def __init__(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str] | None,
        *,
        ready: ReadyPlan,
        mark: int,
        tools: Tools,
        lineage: Lineage,
        number: int,
    ) -> None:
        self._argv = argv
        self._environment = environment
        self._ready = ready
        self._tools = tools
        self._lineage = lineage
        self._number = number
        self._probe = tools.probe(ready, mark)
        self._probing = False
        self._seen: object = None
        self._seen_s = 0.0
        #: It, once it was started.
        self.generation: Generation | None = None
        #: What the operator should know if it was never ready.
        self.complaint = ""

    def start(self) -> Generation:
        """Start it, in a session of its own; orphans are its from now on.

        :raises CommandError: it cannot be executed.
        """
        self._lineage.latest = self._number
        command = self._tools.spawn_apart(self._argv, self._environment)
        self.generation = Generation(
            command.pid,
            tools=self._tools,
            command=command,
            number=self._number,
            orphans=partial(self._lineage.orphans_of, self._number),
        )
        self._lineage.generations.append(self.generation)
        return self.generation

    def until_ready(
        self, lacks: Callable[[list[Listener]], str], interrupted: Callable[[], bool]
    ) -> Outcome:
        """Wait; READY, COMMAND_FAILED (it has ended), DEADLINE (``--ready-timeout``), INTERRUPTED.

        :param lacks: what is still missing, given its listeners.
        """
        clock, limit_s = self._tools.clock, self._ready.timeout_s
        began_s = clock()
        while True:
            if interrupted():
                return Outcome.INTERRUPTED
            looked_s = clock()
            outcome = self._look(lacks)
            if outcome is not None:
                return outcome
            now_s = clock()
            if limit_s is not None and now_s - began_s >= limit_s:
                return Outcome.DEADLINE
            self._tools.signals.pause(max(_POLL_S, _SPARE * (now_s - looked_s)))

    def _look(self, lacks: Callable[[list[Listener]], str]) -> Outcome | None:
        generation = self.generation
        assert generation is not None, "start() comes first"
        if not generation.look() or generation.status:
            return Outcome.COMMAND_FAILED
        listeners, pids = generation.standing()
        lasts = self._lasts(listeners, pids)
        missing = lacks(listeners)
        if missing:
            self.complaint = f"the new generation does not listen on {missing}"
        elif self._probe_passed() and lasts:
            generation.has_come_up(listeners)
            return Outcome.READY
        elif not lasts:
            self.complaint = (
                "the new generation's listeners, or the processes that have them, did not last "
                f"for {self._ready.settle_s:g} s (--settle)"
            )
        elif self._probe is not None:
            said = self._probe.complaint or "no answer"
            self.complaint = f"the readiness check did not pass in time: {said}"
        return None

    def _lasts(self, listeners: list[Listener], pids: set[int]) -> bool:
        """Whether they have been the same for the settle time.

        Who listens has not come up by that: a worker may fail to load the application, and take
        its master with it.
        """
        seen = frozenset(own.cookie for own in listeners), frozenset(pids)
        now_s = self._tools.clock()
        if seen != self._seen:
            self._seen, self._seen_s = seen, now_s
        return now_s - self._seen_s >= self._ready.settle_s

    def _probe_passed(self) -> bool:
        if self._probe is None:
            return True
        if not self._probing:
            self._probing = True
            self._probe.start()
        return self._probe.passed

    def stop_probe(self) -> None:
        """End the probe."""
        if self._probe is not None and self._probing:
            self._probe.stop()


def started_by(argv: tuple[str, ...], launch: Launch | None) -> CommandResult:
    """What was started, for the report. :param launch: None: it did not come to that."""
    started = launch.generation if launch is not None else None
    return CommandResult(
        argv=argv,
        ran=started is not None,
        pid=started.pid if started else None,
        status=started.status if started else None,
    )


def has_ended_early(status: int | None) -> str:
    """In words, that a generation has ended by itself."""
    with_status = "" if status is None else f" with status {status}"
    return (
        f"the new generation ended by itself{with_status}; to stand beside the old one both must "
        "listen with SO_REUSEPORT"
    )
