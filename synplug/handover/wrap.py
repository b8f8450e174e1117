"""``synplug wrap``: a restart by a command of the operator's.

    check → arm → look ahead → hold → drain → command → ready → release → the command's end

Everything that can fail comes before *hold*; the command runs only when connections are held
(or ``best_effort`` was asked for); the hold ends on every way out.
"""

from __future__ import annotations

from synplug.errors import (
    CheckError,
    DrainError,
    KeeperError,
    LockError,
    SynplugError,
    unforeseen,
)
from synplug.handover.account import exit_code, overflow_warnings
from synplug.handover.plan import WrapPlan
from synplug.handover.priority import ahead_of_others
from synplug.handover.process import reached_the_command_too
from synplug.handover.ready_wait import ReadyWait
from synplug.handover.run_hold import RunHold
from synplug.handover.sight import sight_of
from synplug.handover.timeline import Step, Timeline
from synplug.handover.tools import Command, Tools
from synplug.holding.paced import Sighting
from synplug.model import OnDrainTimeout, Outcome, Report
from synplug.steps import CommandResult, DrainResult

_LONG_S = 3600.0


def wrap(plan: WrapPlan, tools: Tools) -> Report:
    """Restart a service without losing a connection.

    Never raises for what goes wrong with the restart: the report tells, and its exit code is
    the one to end with.
    """
    run = _Run(plan, tools)
    try:
        run.check()
        run.arm()
        run.restart()
    except Exception as error:  # noqa: BLE001 -- whatever it is: it is told, and nothing stays
        run.fail(unforeseen(error))
    finally:
        run.close()
    return run.report()


class _Run:
    """One run: its state, and a method a step."""

    def __init__(self, plan: WrapPlan, tools: Tools) -> None:
        self._plan = plan
        self._tools = tools
        self._timeline = Timeline(tools.clock, tools.observe)
        self._started_at = tools.wall()
        self._hold = RunHold(
            plan.spec,
            tools=tools,
            timeline=self._timeline,
            interrupted=lambda: self._take_signals() is not None,
        )
        self._drain: DrainResult | None = None
        self._command: Command | None = None
        self._signal: int | None = None
        self._undelivered: int | None = None  # one that came when there was no command
        self._outcome = Outcome.READY
        self._error: SynplugError | None = None
        self._warnings: list[str] = []
        self._sight = sight_of(plan.spec, tools=tools, drain=plan.drain, warn=self._warnings.append)

    # --- before anything is held

    def check(self) -> None:
        """The commands must be there, and ``--check`` must succeed."""
        plan, tools = self._plan, self._tools
        for argv in (plan.argv, plan.check, plan.ready.command):
            if argv:
                tools.resolve(argv[0])
        if not plan.check:
            return
        with self._timeline.phase(Step.CHECK):
            command = tools.spawn_captured(plan.check)
            status = self._end_of(command)
        said = command.output().splitlines()
        self._undelivered = self._signal  # the restart command is never to have it
        if status:
            raise CheckError(
                f"--check ended with status {status}" + (f": {said[-1]}" if said else "")
            )

    def arm(self) -> None:
        """Do everything that can fail. Without a hold only ``best_effort`` goes on."""
        if self._plan.unheld:
            self._warnings.append(f"nothing is held (--best-effort): {self._plan.unheld}")
            return
        with self._timeline.phase(Step.ARM):
            try:
                self._tools.locks.take(
                    timeout_s=self._plan.lock_timeout_s,
                    interrupted=lambda: self._take_signals() is not None,
                )
                self._warnings += self._tools.recover()
                self._sight.look_at_the_old()  # not before: another run may just have replaced them
                self._sight.warn_of_the_start()
                self._hold.arm()
            except SynplugError as error:
                self._do_without(error)

    def _do_without(self, error: SynplugError) -> None:
        """Go on without a hold, if that was allowed.

        :raises SynplugError: *error*, if it was not.
        """
        if not self._plan.best_effort:
            raise error
        self._warnings.append(f"nothing is held (--best-effort): {error}")
        self._hold.close(error)

    # --- held

    def restart(self) -> None:
        """Hold, drain, run the command, wait until it is ready, release, see the command end."""
        waiting = self._ready_wait()
        if self._hold.is_armed and self._take_signals() is None:
            self._begin()
        if self._take_signals() is not None:
            self._outcome = Outcome.INTERRUPTED
            self._release()
            return
        try:
            self._command = self._tools.spawn(self._plan.argv)
            spawned_s = self._tools.clock()
            if self._hold.is_armed:
                with ahead_of_others():
                    with self._timeline.phase(Step.READY):
                        self._outcome = waiting.until_ready(self._command)
                    self._release(waiting.seen if self._outcome is Outcome.READY else None)
                self._outcome = waiting.reviewed(self._outcome, self._hold.result)
                self._note_early_end()
        finally:
            waiting.stop()
        status = self._end_of(self._command)
        self._timeline.note(Step.COMMAND, spawned_s, self._tools.clock())
        if status and self._outcome is Outcome.READY:
            self._outcome = Outcome.COMMAND_FAILED
        if self._outcome is Outcome.READY:
            self._sight.look_at_the_end()
        if self._outcome is Outcome.DEADLINE:
            self._warnings += waiting.complaints

    def _begin(self) -> None:
        """SYNs wait from here on; let the old listener's queues run empty."""
        try:
            with self._timeline.phase(Step.LOOK_AHEAD):
                self._sight.look_ahead(self._hold)
            self._hold.begin()
        except SynplugError as error:
            self._do_without(error)
            return
        with self._timeline.phase(Step.DRAIN):
            self._drain = self._sight.drain(
                lambda: self._take_signals() is not None or self._hold.ended() is not None
            )
        if self._hold.ended() is not None:
            raise DrainError(
                "the hold ended before the old listener had run empty",
                remedy="raise --max-hold, or lower --drain-timeout and --quiesce",
            )
        if self._drain is not None and not self._drain.empty:
            words = f"{self._drain.left} connections were still in the old listener's queues"
            if self._plan.drain.on_timeout is OnDrainTimeout.ABORT:
                raise DrainError(words, remedy="raise --drain-timeout, or see why it is stuck")
            self._warnings.append(words)

    def _ready_wait(self) -> ReadyWait:
        plan = self._plan
        owners = {owner.pid for owned in self._sight.old_owned for owner in owned.owners}
        return ReadyWait(
            plan=plan,
            tools=self._tools,
            watch=self._sight.watch_for_the_new(plan.ready),
            service_pids=owners | set(plan.service_pids),
            interrupted=lambda: self._take_signals() is not None,
            hold=self._hold,
        )

    def _take_signals(self) -> int | None:
        """Pass signals on to the command; the last one that ever came."""
        for number in self._tools.signals.take():
            self._signal = number
            if self._command is None or self._command.poll() is not None:
                self._undelivered = number
            elif not reached_the_command_too(number, self._command.pid):
                self._command.send(number)
        return self._signal

    def _release(self, seen: Sighting | None = None) -> None:
        lingering = self._hold.release(seen)
        if lingering:
            self._warnings.append(f"the empty rest of the hold stays for a while: {lingering}")

    def _note_early_end(self) -> None:
        """A hold that somebody else ended before the service was ready is no success."""
        result = self._hold.result
        if self._outcome is Outcome.ERROR and result is not None:
            self._error = KeeperError(
                f"the hold was ended early ({result.reason.value}): what came after that "
                "was not held"
            )

    def _end_of(self, command: Command) -> int:
        """Wait for a command's end, however long that takes, passing signals on."""
        while (status := command.poll()) is None:
            self._tools.signals.pause(_LONG_S, command)
            for number in self._tools.signals.take():
                self._signal = number
                if not reached_the_command_too(number, command.pid):
                    command.send(number)
        return status

    # --- the end

    def fail(self, error: SynplugError) -> None:
        """Note what went wrong; a command that runs is still seen to its end."""
        gave_up = isinstance(error, (CheckError, LockError, DrainError))
        if gave_up and self._signal is not None and self._command is None:  # as we were told to
            self._undelivered = self._signal
            self._outcome = Outcome.INTERRUPTED
        else:
            self._error, self._outcome = error, Outcome.ERROR
        self._close_hold()
        if self._command is not None:
            self._end_of(self._command)

    def close(self) -> None:
        """Whatever happened: nothing is held any more."""
        try:
            self._sight.close()
            self._close_hold()
        finally:
            self._tools.locks.drop()

    def _close_hold(self) -> None:
        self._error = self._hold.close(self._error) or self._error

    def report(self) -> Report:
        """The account of it all."""
        status = None if self._command is None else self._command.poll()
        result = self._hold.result
        return Report(
            run_id=self._plan.spec.run_id,
            outcome=self._outcome,
            exit_code=exit_code(
                status=status,
                error=self._error,
                outcome=self._outcome,
                undelivered=self._undelivered,
            ),
            endpoints=self._plan.spec.endpoints,
            command=CommandResult(
                argv=self._plan.argv,
                ran=self._command is not None,
                pid=self._command.pid if self._command else None,
                status=status,
            ),
            started_at=self._started_at,
            hold=result,
            drain=self._drain,
            phases=self._timeline.phases(),
            old_listeners=self._sight.old_owned,
            new_listeners=self._sight.new_owned(),
            readiness=self._sight.readiness,
            gap_s=self._sight.gap_s,
            warnings=(
                *self._warnings,
                *(result.warnings if result else ()),
                *overflow_warnings(result, self._plan.spec),
            ),
            error=self._error.message if self._error else "",
            remedy=self._error.remedy if self._error else "",
        )
