"""``synplug supervise``: the stable parent of changing generations.

    start the first → ready → … SIGHUP: swap → … the current one ends, or SIGTERM: the end

One loop owns every transition. A swap is a call within it, in which the loop's other duties
(retiring older generations, signs of life) go on, since it waits by :class:`SupervisorSignals`.
"""

from __future__ import annotations

import signal
from collections.abc import Callable

from synplug.errors import SynplugError, unforeseen
from synplug.handover.account import EXIT_DEADLINE
from synplug.handover.closing import filled
from synplug.handover.generation import VARIABLE, Generation, Lineage
from synplug.handover.launch import Launch, run_check
from synplug.handover.notify import Notifier
from synplug.handover.plan import SwapPlan
from synplug.handover.retirement import Retirement
from synplug.handover.supervisor_signals import PASSED_ON, SupervisorSignals
from synplug.handover.swap import Swap
from synplug.handover.tools import Tools
from synplug.holding.supervisors import SupervisorState
from synplug.model import Endpoint, HoldSpec, Listener, Outcome, Report
from synplug.record import Record, replace

_TURN_S = 0.25
_END_POLL_S = 0.05
_COLLECT_S = 1.0
#: A daemon has ended, and nobody could see how.
EXIT_UNKNOWN = SynplugError.exit_code


class SupervisePlan(Record):
    """What a supervisor keeps running.

    :param generation: how each one follows the one before; ``{generation}`` in its commands
        stands for the number. The specification of its hold is made for each swap.
    :param environment: of the generations, SYNPLUG_GENERATION aside.
    :param endpoints: what the first one must serve; empty: anything.
    """

    generation: SwapPlan
    environment: dict[str, str]
    endpoints: tuple[Endpoint, ...] = ()


class Surroundings(Record):
    """What a supervisor works with, besides a sequence's tools.

    :param tools: for a hold of this specification; None: for no hold.
    :param spec: a hold of what this generation serves, or of the named endpoints.
    :param publish: says how far it has come. :param tell: is given each swap's report.
    :param complain: is given a line for the operator.
    """

    tools: Callable[[HoldSpec | None], Tools]
    spec: Callable[[Generation], HoldSpec]
    notifier: Notifier
    publish: Callable[[SupervisorState], None]
    tell: Callable[[Report], None]
    complain: Callable[[str], None]


def supervise(plan: SupervisePlan, around: Surroundings, *, own_pid: int) -> int:
    """Run until the current generation ends, or a signal says so; returns the exit status."""
    return _Supervisor(plan, around, own_pid).run()


class _Supervisor:
    def __init__(self, plan: SupervisePlan, around: Surroundings, own_pid: int) -> None:
        self._plan = plan
        self._around = around
        tools = around.tools(None)
        self._signals = SupervisorSignals(tools.signals, self._meanwhile, self._pass_on)
        self._tools = replace(tools, signals=self._signals)
        self._lineage = Lineage(tools.processes, own_pid)
        self._retirements: list[Retirement] = []
        self._number = 0
        self._served = 0
        self._state = SupervisorState(pid=own_pid, start=tools.processes.start_time(own_pid))
        self._current: Generation | None = None
        self._collected_s = float("-inf")
        #: Those that have been sent a signal that ends them.
        self._told: list[Generation] = []
        self._complaint = ""

    def run(self) -> int:
        """The whole life; whatever is raised in it, no generation is left behind."""
        try:
            return self._live()
        except BaseException:
            self._end(signal.SIGTERM, 0)
            raise

    def _live(self) -> int:
        self._publish()
        status = self._start_first()
        if status is not None:
            return self._end(signal.SIGTERM, status)
        if self._signals.ending is None:
            self._around.notifier.ready(f"generation {self._number} serves")
        while True:
            self._signals.take()
            if self._signals.ending is not None:
                return self._stop(self._signals.ending)
            assert self._current is not None
            if not self._serves(self._current):
                status = self._current_status()
                return self._end(signal.SIGTERM, EXIT_UNKNOWN if status is None else status)
            if self._signals.reloads_heard > self._served:
                self._reload()
                continue
            self._signals.pause(min(_TURN_S, self._around.notifier.interval_s or _TURN_S))

    def _serves(self, current: Generation) -> bool:
        """Whether it may; if that cannot be seen now, it does."""
        seen = []
        self._see_to(lambda: seen.append(current.may_serve(self._plan.endpoints)))
        return seen != [False]

    # --- the first one

    def _recover(self) -> None:
        """Undo what dead runs left, which may keep its clients waiting."""
        for line in self._tools.recover():
            self._around.complain(f"synplug: {line}")

    def _start_first(self) -> int | None:
        """Start it; returns the exit status if it does not come up."""
        self._number += 1
        plan = self._plan_of(self._number, None)
        self._see_to(self._recover)
        if plan.check:
            run_check(plan.check, self._tools, lambda: bool(self._ending()))
        launch = Launch(
            plan.argv,
            plan.environment,
            ready=plan.ready,
            mark=plan.spec.probe_mark,
            tools=self._tools,
            lineage=self._lineage,
            number=self._number,
        )
        try:
            self._current = launch.start()
            outcome = launch.until_ready(self._lacks, lambda: bool(self._ending()))
        finally:
            launch.stop_probe()
        if outcome is Outcome.COMMAND_FAILED:
            status = self._current.status
            ended = f"generation 1 has ended by itself, with status {status or 0}, before it served"
            self._around.complain(f"synplug: {ended}")
            return status or SynplugError.exit_code
        if outcome is Outcome.DEADLINE:
            words = launch.complaint.replace("the new generation", "generation 1")
            self._around.complain(f"synplug: {words}; it is ended (--ready-timeout)")
            return EXIT_DEADLINE
        self._state = replace(self._state, generation=self._number)
        self._publish()
        return None

    def _lacks(self, own: list[Listener]) -> str:
        wanted = self._plan.endpoints
        if not wanted:  # it is what has come, once no more comes
            return "" if own else "anything"
        missing = [end for end in wanted if not any(listener.serves(end) for listener in own)]
        return ", ".join(map(str, missing))

    def _ending(self) -> int | None:
        self._signals.take()
        return self._signals.ending

    # --- reloads

    def _reload(self) -> None:
        """Swap to a new generation; those who asked meanwhile get another one after it."""
        assert self._current is not None
        heard = self._signals.reloads_heard
        self._state = replace(self._state, heard=heard)
        self._see_to(self._publish)
        self._number += 1
        notifier = self._around.notifier
        self._see_to(lambda: notifier.reloading(f"generation {self._number} starts"))
        failure = self._swap(self._current)
        self._served = heard
        self._state = replace(
            self._state, heard=self._signals.reloads_heard, served=heard, failure=failure
        )
        if not failure:
            self._state = replace(self._state, generation=self._number)
        self._see_to(self._publish)
        words = f"generation {self._state.generation} serves"
        words += f"; the last reload failed: {failure}" if failure else ""
        self._see_to(lambda: notifier.ready(words))

    def _swap(self, current: Generation) -> str:
        """Try; returns why the current one serves on, or ``""``."""
        try:
            spec = self._around.spec(current)
            tools = replace(self._around.tools(spec), signals=self._signals)
            plan = self._plan_of(self._number, spec)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the current one serves on
            return str(unforeseen(error))
        swap = Swap(plan, tools, old=current, lineage=self._lineage, number=self._number)
        self._see_to(swap.carry_out)  # even if its end was refused, what it has done is known
        if swap.is_done and swap.new is not None:
            self._current = swap.new
            if swap.retirement is not None:
                self._retirements.append(swap.retirement)
        else:
            self._see_to(lambda: self._go_back_to(current))
        self._see_to(self._forget)
        failure = "its report could not be made"
        try:
            report = swap.report()
            failure = report.error or "; ".join(report.warnings) or report.outcome.value
            self._around.tell(report)
        except Exception as error:  # noqa: BLE001 -- what was done is done
            self._complain(error)
        return "" if swap.is_done else failure

    def _go_back_to(self, current: Generation) -> None:
        """After a failed swap: what starts from now on is its, if it lives."""
        if current.may_live():
            self._lineage.latest = current.number

    def _plan_of(self, number: int, spec: HoldSpec | None) -> SwapPlan:
        plan = self._plan.generation
        ready = plan.ready
        return replace(
            plan,
            spec=spec or plan.spec,
            argv=tuple(filled(word, generation=number) for word in plan.argv),
            check=tuple(filled(word, generation=number) for word in plan.check),
            environment={**self._plan.environment, VARIABLE: str(number)},
            ready=replace(
                ready,
                http=filled(ready.http, generation=number),
                command=tuple(filled(word, generation=number) for word in ready.command),
            ),
        )

    # --- duties

    def _see_to(self, duty: Callable[[], None]) -> None:
        """Do it; that it was refused, or is wrong, is told, and no reason to stop serving."""
        try:
            duty()
        except Exception as error:  # noqa: BLE001 -- whatever it is
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        """Once of what comes again and again."""
        words = f"synplug: {unforeseen(error)}"
        if words != self._complaint:
            self._complaint = words
            self._around.complain(words)

    def _meanwhile(self, has_time: bool) -> None:
        self._see_to(self._around.notifier.alive)
        if has_time:
            for duty in (self._retire, self._publish_what_was_heard, self._forget, self._collect):
                self._see_to(duty)

    def _retire(self) -> None:
        for one in list(self._retirements):
            if one.step():
                self._retirements.remove(one)

    def _publish_what_was_heard(self) -> None:
        if self._signals.reloads_heard != self._state.heard:
            self._state = replace(self._state, heard=self._signals.reloads_heard)
            self._publish()

    def _collect(self) -> None:
        """Orphans that have ended: as their parent we would keep them as zombies."""
        now_s = self._tools.clock()
        if now_s - self._collected_s >= _COLLECT_S:
            self._collected_s = now_s
            self._lineage.collect_orphans(self._tools.reap)

    def _pass_on(self, number: int) -> None:
        for generation in self._lineage.generations:
            generation.send(number)
            if number not in PASSED_ON:
                self._told.append(generation)

    def _forget(self) -> None:
        """Generations that are gone."""
        current = self._current
        retiring = [one.generation for one in self._retirements]
        self._lineage.generations = [
            generation
            for generation in self._lineage.generations
            if generation is current or generation in retiring or generation.may_live()
        ]

    def _publish(self) -> None:
        self._around.publish(self._state)

    # --- the end

    def _current_status(self) -> int | None:
        return self._current.last_status if self._current is not None else None

    def _stop(self, number: int) -> int:
        """As we were told to: so is every generation. That they end by it is no failure."""
        self._end(number, 0)
        status = self._current_status() or 0
        return 0 if status == 128 + number else status

    def _end(self, number: int, status: int) -> int:
        """End all generations, and wait for that; returns *status*."""
        self._around.notifier.stopping("the generations end")
        plan = self._plan.generation.retire
        self._retirements.clear()
        left = []
        for generation in list(self._lineage.generations):
            if generation not in self._told:
                generation.send(number)
            left.append(
                Retirement(generation, endpoints=(), plan=plan, tools=self._tools, finishes=True)
            )
        while left := [one for one in left if not one.step()]:
            self._signals.take()
            self._around.notifier.alive()
            self._tools.signals.pause(_END_POLL_S)
        return status
