"""``synplug swap``: a new generation beside the old one, on the same port by SO_REUSEPORT.

    check → arm → start the new one → it stands, and is ready
          → hold → drain the old one → stop it → its listeners are gone → release → it finishes

SYNs wait only while the old listeners close. Whatever goes wrong before the old one is told to
stop, the new one is ended (its queues drained under a hold, if it stood there already) and the
old one serves on. From there on there is only the way forward.
"""

from __future__ import annotations

from contextlib import ExitStack

from synplug.errors import SynplugError, TargetError, unforeseen
from synplug.handover.account import exit_code, overflow_warnings, with_owners
from synplug.handover.closing import Closing, left_over, refuse_shared, what_became_of
from synplug.handover.drain import ended_too_early
from synplug.handover.generation import Generation, Lineage
from synplug.handover.launch import Launch, has_ended_early, run_check, started_by
from synplug.handover.migrate import OptionalMigration
from synplug.handover.pidfile import Pidfile
from synplug.handover.plan import SwapPlan
from synplug.handover.process import NotedSignals
from synplug.handover.readiness import ListenerWatch, Readiness
from synplug.handover.retirement import Retirement
from synplug.handover.rollback import roll_back
from synplug.handover.run_hold import RunHold
from synplug.handover.timeline import Step, SwapStep, Timeline
from synplug.handover.tools import Signals, Tools
from synplug.model import Listener, Outcome, OwnedListener, Report
from synplug.record import replace
from synplug.steps import DrainResult


def swap(plan: SwapPlan, tools: Tools, *, old: Generation, lineage: Lineage) -> Report:
    """Replace one generation by the next without losing a connection, and see the old one end.

    Never raises for what goes wrong with the swap: the report tells.
    """
    run = Swap(plan, tools, old=old, lineage=lineage)
    run.carry_out()
    run.see_out(tools.signals)
    return run.report()


class Swap:
    """One swap: its state, and a method a step.

    :param number: of the new generation.
    """

    def __init__(
        self, plan: SwapPlan, tools: Tools, *, old: Generation, lineage: Lineage, number: int = 0
    ) -> None:
        self._plan = plan
        self.signals = NotedSignals(tools.signals)
        self._tools = replace(tools, signals=self.signals)
        self._old = old
        self._lineage = lineage
        self._number = number
        self.timeline = Timeline(tools.clock, tools.observe)
        self._started_at = tools.wall()
        self._hold = RunHold(
            plan.spec, tools=self._tools, timeline=self.timeline, interrupted=self._interrupted
        )
        self._outcome = Outcome.READY
        self._error: SynplugError | None = None
        self._warnings: list[str] = []
        self._old_listeners: list[Listener] = []
        self._old_owned: tuple[OwnedListener, ...] = ()
        self._watch: ListenerWatch | None = None
        self._launch: Launch | None = None
        self._closing: Closing | None = None
        self._drained: DrainResult | None = None
        self._migration = OptionalMigration(plan, self._tools)
        self._pidfile: Pidfile | None = None
        #: The new generation, if it lives.
        self.new: Generation | None = None
        #: The old one's, once its listeners are gone.
        self.retirement: Retirement | None = None

    def carry_out(self) -> None:
        """All steps but the last one; whatever happens, nothing is held any more after it."""
        try:
            self._check()
            with self.timeline.phase(Step.ARM):
                self._arm()
            if self._start():
                self._close_old()
        except Exception as error:  # noqa: BLE001 -- whatever it is: it is told, nothing stays
            self._fail(unforeseen(error))
        finally:
            self._close()

    def see_out(self, signals: Signals) -> None:
        """The last step: see the old one end. The new one serves, whatever goes wrong with that."""
        began_s = self._tools.clock()
        if self.retirement is not None:
            try:
                self.retirement.see_out(signals, is_hurried=self.signals.last is not None)
            except Exception as error:  # noqa: BLE001 -- it is told as all else is
                self._error = self._error or unforeseen(error)
            self.timeline.note(SwapStep.LINGER, began_s, self._tools.clock())

    # --- before anything is held

    def _check(self) -> None:
        """The commands must be there, and ``--check`` must succeed."""
        plan, tools = self._plan, self._tools
        for argv in (plan.argv, plan.check, plan.ready.command, plan.stop.command):
            if argv:
                tools.resolve(argv[0])
        if plan.new_pidfile:
            self._pidfile = Pidfile(plan.new_pidfile)
        if not plan.check:
            return
        with self.timeline.phase(Step.CHECK):
            run_check(plan.check, tools, self._interrupted)

    def _arm(self) -> None:
        """Do everything that can fail without the new generation."""
        pause, timeout_s = self._tools.signals.pause, self._plan.lock_timeout_s
        self._tools.locks.take(timeout_s=timeout_s, interrupted=self._interrupted, pause=pause)
        self._warnings += self._tools.recover()
        self._look_at_the_old()
        self._hold.arm()
        self._lineage.keepers.add(self._hold.keeper_pid)

    def _look_at_the_old(self) -> None:
        endpoints = self._plan.spec.endpoints
        self._old_listeners = self._old.listeners(endpoints)
        for endpoint in endpoints:
            if not any(listener.serves(endpoint) for listener in self._old_listeners):
                raise TargetError(f"the old generation does not listen on {endpoint}")
        self._old_owned = with_owners(self._old_listeners, self._tools.processes)
        refuse_shared(self._old_owned, self._old.known)

    def _start(self) -> bool:
        """Start the new generation; whether it stands beside the old one, and is ready."""
        plan = self._plan
        self._watch = ListenerWatch(
            endpoints=plan.spec.endpoints,
            old=self._old_listeners,
            settle_s=plan.ready.settle_s,
            require_new=True,
        )
        self._launch = Launch(
            plan.argv,
            plan.environment,
            ready=plan.ready,
            mark=plan.spec.probe_mark,
            tools=self._tools,
            lineage=self._lineage,
            number=self._number,
        )
        with self.timeline.phase(Step.READY):
            if self._interrupted():
                self._outcome = Outcome.INTERRUPTED
                return False
            self.new = self._launch.start()
            self._outcome = self._launch.until_ready(self._stands, self._interrupted)
        if self._outcome is Outcome.COMMAND_FAILED:
            self._warnings.append(has_ended_early(self.new.status))
        elif self._outcome is Outcome.DEADLINE:
            self._warnings.append(self._launch.complaint)
        return self._outcome is Outcome.READY

    def _stands(self, own: list[Listener]) -> str:
        """What the new generation does not serve yet of what the old one does; ``""``: nothing."""
        assert self._watch is not None
        return ", ".join(map(str, self._watch.missing(own)))

    # --- held

    def _close_old(self) -> None:
        """SYNs wait from here on; close the old listeners."""
        assert self.new is not None
        self._warnings += self._migration.begin()
        shared = {listener.cookie for listener in self.new.listeners(self._plan.spec.endpoints)}
        leaving = [own for own in self._old_listeners if own.cookie not in shared]
        if len(leaving) < len(self._old_listeners):
            self._warnings.append("both generations have the same listeners open; these stay")
        self._closing = Closing(
            self._old,
            leaving,
            endpoints=self._plan.spec.endpoints,
            drain=self._plan.drain,
            stop=self._plan.stop,
            tools=self._tools,
            mark=self._plan.spec.probe_mark,
            hold=self._hold,
        )
        with self.timeline.phase(Step.LOOK_AHEAD):
            self._closing.look_ahead(self._hold)
        self._hold.begin()
        with self.timeline.phase(Step.DRAIN):
            self._drained = self._closing.drain(
                lambda: self._interrupted() or self._hold.ended() is not None
            )
        if self._interrupted():
            self._outcome = Outcome.INTERRUPTED
            return
        if self._hold.ended() is not None:
            raise ended_too_early()
        self._warnings += left_over(self._drained, self._plan.drain)
        if self._has_fallen(shared):
            return
        with self.timeline.phase(SwapStep.STOP):
            self._closing.stop()
        if self._hold.ended() is not None:
            self._outcome = Outcome.DEADLINE
            self._warnings.append("the hold ended before the old listeners were gone")
        lingering = self._hold.release()
        if lingering:
            self._warnings.append(f"the empty rest of the hold stays for a while: {lingering}")

    def _has_fallen(self, cookies: set[int]) -> bool:
        """Whether the new one has lost these listeners of its own since: the last moment to see."""
        found = self._tools.sockets.listeners(self._plan.spec.endpoints)
        lost = self._stands([own for own in found if own.cookie in cookies])
        if lost:
            self._outcome = Outcome.COMMAND_FAILED
            self._warnings.append(f"the new generation does not listen on {lost} any more")
        return bool(lost)

    # --- the end

    @property
    def is_done(self) -> bool:
        """Whether the old generation was told to stop: the new one serves now."""
        return self._closing is not None and self._closing.is_told

    def _interrupted(self) -> bool:
        self.signals.take()
        return self.signals.last is not None

    def _fail(self, error: SynplugError) -> None:
        if self.signals.last is not None and not self.is_done:  # given up, as we were told to
            self._outcome = Outcome.INTERRUPTED
        else:
            self._error, self._outcome = error, Outcome.ERROR

    def _close(self) -> None:
        """Whatever happened: one generation serves, and nothing is held."""
        try:
            with ExitStack() as ending:  # whichever of it fails, the rest is done; the last first
                ending.callback(self._lineage.forget_dead_keepers)
                ending.callback(self._tools.locks.drop)
                if self._pidfile is not None:
                    ending.callback(self._pidfile.close)
                ending.callback(self._let_go)
                if self._launch is not None:
                    self._launch.stop_probe()
                if self.is_done:
                    self._hand_on()
                elif self.new is not None:
                    self._warnings += roll_back(
                        self.new,
                        self._old_listeners,
                        plan=self._plan,
                        tools=self._tools,
                        hold=self._hold,
                        interrupted=self._interrupted,
                    )
                    self.new = None
        except Exception as error:  # noqa: BLE001 -- it is told as all else is
            self._error = self._error or unforeseen(error)

    def _let_go(self) -> None:
        self._error = self._hold.close(self._error) or self._error
        ended = self._migration.end()
        self._error = self._error or ended

    def _hand_on(self) -> None:
        """The new one is the service now, and the old one may finish."""
        self._error = self._hold.close(self._error) or self._error
        self.retirement = Retirement(
            self._old,
            endpoints=self._plan.spec.endpoints,
            plan=self._plan.retire,
            tools=self._tools,
            finishes=self._plan.stop.by_signal,
        )
        if self._closing is not None:
            self._closing.collect()
        if self._pidfile is not None and self.new is not None:
            self._pidfile.publish(self.new.main_pid)

    def report(self) -> Report:
        """The account of it all."""
        plan, result = self._plan, self._hold.result
        command = started_by(self._plan.argv, self._launch)
        if self.is_done and self.new is not None and not self.new.may_live():
            self._outcome = Outcome.COMMAND_FAILED
            self._warnings.append(has_ended_early(command.status))
        has_failed = self._outcome is Outcome.COMMAND_FAILED
        outcome = Outcome.ERROR if self._error else self._outcome
        return Report(
            run_id=plan.spec.run_id,
            outcome=outcome,
            exit_code=exit_code(
                status=(command.status or SynplugError.exit_code) if has_failed else None,
                error=self._error,
                outcome=outcome,
                undelivered=self.signals.last,
            ),
            endpoints=plan.spec.endpoints,
            command=command,
            started_at=self._started_at,
            hold=result,
            drain=self._drained,
            phases=self.timeline.phases(),
            old_listeners=self._old_owned,
            new_listeners=self._listeners_now(),
            readiness=Readiness.REPLACED.value if self.is_done else "",
            old_generation=what_became_of(self._old, self._closing, self.retirement),
            migrated=self._migration.was_used,
            warnings=(
                *self._warnings,
                *(self._closing.warnings if self._closing else ()),
                *(result.warnings if result else ()),
                *overflow_warnings(result, plan.spec),
            ),
            error=self._error.message if self._error else "",
            remedy=self._error.remedy if self._error else "",
        )

    def _listeners_now(self) -> tuple[OwnedListener, ...]:
        """Those that the report calls new; a failure to look is no reason to say nothing."""
        try:
            found = self._tools.sockets.listeners(self._plan.spec.endpoints)
            return with_owners(found, self._tools.processes)
        except Exception as error:  # noqa: BLE001 -- whatever it is: all the rest is told
            self._warnings.append(f"the new listeners could not be read: {unforeseen(error)}")
            return ()
