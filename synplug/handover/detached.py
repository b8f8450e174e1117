"""``synplug hold`` and ``synplug release``: for those who cannot put the restart into one command.

    hold:    arm → hold → drain → leave it to the keeper
    release: the listeners are there → release

Between the two the restart is the caller's. The hold ends at its deadline in any case.
"""

from __future__ import annotations

from functools import partial

from synplug.errors import DrainError, SynplugError, unforeseen
from synplug.handover.account import exit_code, overflow_warnings, with_owners
from synplug.handover.plan import DrainPlan, HoldPlan, ReadyPlan, WrapPlan
from synplug.handover.priority import ahead_of_others
from synplug.handover.ready_wait import ReadyWait
from synplug.handover.sight import sight_of
from synplug.handover.timeline import Step, Timeline
from synplug.handover.tools import Tools
from synplug.holding.attached import AttachedHold
from synplug.holding.handle import Hold
from synplug.holding.names import check_name
from synplug.holding.recover import recover
from synplug.model import (
    HoldResult,
    HoldSpec,
    OnDrainTimeout,
    Outcome,
    OwnedListener,
    ReleaseReason,
    Report,
)
from synplug.record import Record
from synplug.steps import CommandResult, DrainResult

_RELEASE_POLL_S = 0.05


class Begun(Record):
    """A hold in force that has been left to its keeper.

    :param keeper: its pid. :param drain: None: the old listener could not be looked at.
    """

    spec: HoldSpec
    keeper: int
    backend: str
    drain: DrainResult | None
    warnings: tuple[str, ...] = ()


def hold(plan: HoldPlan, tools: Tools) -> Begun:
    """Hold, let the old listener run empty, and leave the rest to the keeper.

    :raises SynplugError: nothing is held.
    """
    try:
        tools.locks.take(timeout_s=plan.lock_timeout_s, interrupted=lambda: False)
        warnings = tools.recover()
        kept = tools.hold(plan.spec)
        try:
            return _begin(kept, plan, tools, warnings)
        finally:
            kept.close()  # does nothing to one that was left to its keeper
    finally:
        tools.locks.drop()


def _begin(kept: Hold, plan: HoldPlan, tools: Tools, warnings: list[str]) -> Begun:
    sight = sight_of(plan.spec, tools=tools, drain=plan.drain, warn=warnings.append)
    try:
        sight.look_at_the_old()
        kept.arm()
        sight.look_ahead(kept)
        kept.hold()
        drain = sight.drain(lambda: kept.ended() is not None)
    finally:
        sight.close()
    if kept.ended() is not None:
        raise DrainError(
            "the hold ended before the old listener had run empty",
            remedy="raise --max-hold, or lower --drain-timeout and --quiesce",
        )
    if drain is not None and not drain.empty:
        words = f"{drain.left} connections are still in the old listener's queues"
        if plan.drain.on_timeout is OnDrainTimeout.ABORT:
            raise DrainError(words, remedy="raise --drain-timeout, or see why it is stuck")
        warnings = [*warnings, words]
    return Begun(
        spec=plan.spec,
        keeper=kept.detach(sight.old),
        backend=kept.backend,
        drain=drain,
        warnings=(*warnings, *kept.warnings),
    )


def attach(name: str) -> AttachedHold:
    """The hold of that name, after cleaning up after dead runs: it may be one of them.

    :raises NoSuchHoldError: there is none. :raises UsageError: it is no name.
    """
    check_name(name)
    recover()
    return AttachedHold(name)


def release(kept: AttachedHold, ready: ReadyPlan, tools: Tools, *, now: bool = False) -> Report:
    """Wait until the listeners are there, and let go.

    Never raises for what goes wrong with the hold: the report tells.

    :param now: do not wait; where somebody's release paces already, let all go at once.
    """
    run = _Release(kept, ready, tools)
    let_go = partial(run.let_go, at_once=now and kept.is_releasing)
    try:
        for step in (let_go,) if now else (run.wait, let_go):
            try:
                step()
            except Exception as error:  # noqa: BLE001 -- whatever it is: it is told
                run.fail(unforeseen(error))
    finally:
        run.close()
    return run.report()


class _Release:
    """One release: its state, and a method a step."""

    def __init__(self, kept: AttachedHold, ready: ReadyPlan, tools: Tools) -> None:
        self._kept = kept
        self._ready = ready
        self._tools = tools
        self._timeline = Timeline(tools.clock)
        self._started_at = tools.wall()
        self._outcome = Outcome.READY
        self._warnings: list[str] = []
        self._error: SynplugError | None = None
        self._sight = sight_of(
            kept.spec, tools=tools, drain=DrainPlan(), warn=self._warnings.append
        )
        self._sight.old = list(kept.old)
        self._waiting: ReadyWait | None = None

    def wait(self) -> None:
        """Until somebody listens where somebody listened before, and the probes have passed."""
        self._waiting = ReadyWait(
            plan=WrapPlan(argv=(), spec=self._kept.spec, ready=self._ready),
            tools=self._tools,
            watch=self._sight.watch_for_the_new(self._ready),
            service_pids=(),
            interrupted=lambda: False,
            hold=self._kept,
        )
        with ahead_of_others(), self._timeline.phase(Step.READY):
            self._outcome = self._waiting.until_ready(None)

    def let_go(self, *, at_once: bool) -> None:
        """Release at the listeners' pace, or at once."""
        asked_s = self._tools.clock()
        self._kept.begin_release()
        if at_once:
            self._kept.open_now()
        while (result := self._kept.ended()) is None:
            self._tools.signals.pause(_RELEASE_POLL_S, self._kept)
        if result.reason is ReleaseReason.ASKED:
            self._timeline.note(Step.RELEASE, asked_s, result.opened_at_s)
        with self._timeline.phase(Step.CLEAN_UP):
            lingering = self._kept.finish()
        if lingering:
            self._warnings.append(f"the empty rest of the hold stays for a while: {lingering}")
        if self._waiting is not None:
            self._outcome = self._waiting.reviewed(self._outcome, result)
            if self._outcome is Outcome.DEADLINE:
                self._warnings += self._waiting.complaints
        if self._outcome is Outcome.ERROR:
            self._explain(result)

    def _explain(self, result: HoldResult) -> None:
        """Why the hold ended before its service was ready, other than at its deadline."""
        self._outcome = Outcome.READY
        if result.reason is ReleaseReason.ASKED:
            self._warnings.append("another 'synplug release' was faster")
        else:
            self._error = SynplugError(f"the hold was ended early ({result.reason.value})")

    def fail(self, error: SynplugError) -> None:
        """Note what went wrong; the first counts."""
        self._error = self._error or error

    def close(self) -> None:
        """Nothing of this run is left: no probe, no channel."""
        if self._waiting is not None:
            self._waiting.stop()
        self._kept.close()

    def report(self) -> Report:
        """The account of it all."""
        spec, result = self._kept.spec, self._kept.result
        listeners = self._sight.listeners_now()
        outcome = Outcome.ERROR if self._error else self._outcome
        return Report(
            run_id=spec.run_id,
            outcome=outcome,
            exit_code=exit_code(status=None, error=self._error, outcome=outcome, undelivered=None),
            endpoints=spec.endpoints,
            command=CommandResult(argv=()),
            started_at=self._started_at,
            hold=result,
            phases=self._timeline.phases(),
            old_listeners=tuple(OwnedListener(listener=listener) for listener in self._kept.old),
            new_listeners=with_owners(listeners, self._tools.processes),
            readiness=self._sight.readiness,
            warnings=(
                *self._warnings,
                *(result.warnings if result else ()),
                *overflow_warnings(result, spec),
                *self._sight.unserved(listeners),
            ),
            error=self._error.message if self._error else "",
            remedy=self._error.remedy if self._error else "",
        )
