"""``synplug hold`` and ``synplug release``: for those who cannot put the restart into one command.

    hold:    arm → hold → drain → leave it to the keeper
    release: the listeners are there → release

Between the two the restart is the caller's. The hold ends at its deadline in any case.
"""

from __future__ import annotations

from dataclasses import dataclass

from synplug.errors import DrainError, SynplugError
from synplug.handover.account import (
    exit_code,
    overflow_warnings,
    unserved_warnings,
    with_owners,
)
from synplug.handover.drain import Drain
from synplug.handover.plan import HoldPlan, ReadyPlan, Tools, WrapPlan
from synplug.handover.readiness import ListenerWatch
from synplug.handover.ready_wait import ReadyWait
from synplug.handover.timeline import Timeline
from synplug.holding.attached import AttachedHold
from synplug.holding.handle import Hold
from synplug.holding.recover import recover
from synplug.model import (
    CommandResult,
    DrainResult,
    Endpoint,
    HoldResult,
    HoldSpec,
    OnDrainTimeout,
    Outcome,
    ReleaseReason,
    Report,
)

_RELEASE_POLL_S = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Begun:
    """A hold in force that has been left to its keeper.

    :param keeper: its pid.
    """

    spec: HoldSpec
    keeper: int
    backend: str
    drain: DrainResult
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
    old = tools.sockets.listeners(plan.spec.endpoints)
    served = [
        endpoint
        for endpoint in plan.spec.endpoints
        if any(listener.serves(endpoint) for listener in old)
    ]
    kept.arm()
    kept.hold()
    drain = Drain(
        plan=plan.drain, endpoints=plan.spec.endpoints, old=old, sockets=tools.sockets
    ).wait(
        clock=tools.clock,
        pause=tools.signals.pause,
        stopped=lambda: kept.ended() is not None,
    )
    if kept.ended() is not None:
        raise DrainError(
            "the hold ended before the old listener had run empty",
            remedy="raise --max-hold, or lower --drain-timeout and --quiesce",
        )
    if not drain.empty:
        words = f"{drain.left} connections are still in the old listener's queues"
        if plan.drain.on_timeout is OnDrainTimeout.ABORT:
            raise DrainError(words, remedy="raise --drain-timeout, or see why it is stuck")
        warnings = [*warnings, words]
    return Begun(
        spec=plan.spec,
        keeper=kept.detach(served),
        backend=kept.backend,
        drain=drain,
        warnings=tuple(warnings),
    )


def attach(name: str) -> AttachedHold:
    """The hold of that name, after cleaning up after dead runs: it may be one of them.

    :raises NoSuchHoldError: there is none.
    """
    recover()
    return AttachedHold(name)


def release(kept: AttachedHold, ready: ReadyPlan, tools: Tools, *, now: bool = False) -> Report:
    """Wait until the listeners are there, and let go.

    Never raises for what goes wrong with the hold: the report tells.

    :param now: do not wait.
    """
    run = _Release(kept, ready, tools)
    try:
        if not now:
            run.wait()
        run.let_go()
    except SynplugError as error:
        run.error = error
    finally:
        kept.close()
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
        self._readiness = ""
        self._warnings: list[str] = []
        self.error: SynplugError | None = None

    @property
    def _wanted(self) -> tuple[Endpoint, ...]:
        """The endpoints that must be served: those that were, or all."""
        return self._kept.served or self._kept.spec.endpoints

    def wait(self) -> None:
        """Until somebody listens where somebody listened before, and the probes have passed."""
        watch = ListenerWatch(
            endpoints=self._wanted,
            old=(),
            settle_s=self._ready.settle_s,
            require_new=False,
        )
        waiting = ReadyWait(
            plan=WrapPlan(argv=(), spec=self._kept.spec, ready=self._ready),
            tools=self._tools,
            watch=watch,
            service_pids=(),
            interrupted=lambda: False,
            hold_ended=self._kept.ended,
            let_through=self._kept.let_through,
        )
        try:
            with self._timeline.phase("ready"):
                self._outcome = waiting.until_ready(None)
        finally:
            waiting.stop()
        self._readiness = watch.verdict.value
        if self._outcome is Outcome.DEADLINE and waiting.complaint:
            self._warnings.append(waiting.complaint)

    def let_go(self) -> None:
        """Release at the listeners' pace."""
        asked_s = self._tools.clock()
        self._kept.begin_release()
        while (result := self._kept.ended()) is None:
            self._tools.signals.pause(_RELEASE_POLL_S, self._kept)
        if result.reason is ReleaseReason.ASKED:
            self._timeline.note("release", asked_s, result.opened_at_s)
        with self._timeline.phase("clean-up"):
            lingering = self._kept.finish()
        if lingering:
            self._warnings.append(f"an empty nftables table stays for a while: {lingering}")
        if self._outcome is Outcome.ERROR:
            self._explain(result)

    def _explain(self, result: HoldResult) -> None:
        """Why the hold ended before its service was ready, other than at its deadline."""
        self._outcome = Outcome.READY
        if result.reason is ReleaseReason.ASKED:
            self._warnings.append("another 'synplug release' was faster")
        else:
            self.error = SynplugError(f"the hold was ended early ({result.reason.value})")

    def report(self) -> Report:
        """The account of it all."""
        spec, result = self._kept.spec, self._kept.result
        listeners = self._tools.sockets.listeners(spec.endpoints)
        outcome = Outcome.ERROR if self.error else self._outcome
        return Report(
            run_id=spec.run_id,
            outcome=outcome,
            exit_code=exit_code(status=None, error=self.error, outcome=outcome, undelivered=None),
            endpoints=spec.endpoints,
            command=CommandResult(argv=()),
            started_at=self._started_at,
            hold=result,
            phases=self._timeline.phases(),
            new_listeners=with_owners(listeners, self._tools.processes),
            readiness=self._readiness,
            warnings=(
                *self._warnings,
                *(result.warnings if result else ()),
                *overflow_warnings(result, spec),
                *unserved_warnings(self._wanted, listeners),
            ),
            error=self.error.message if self.error else "",
            remedy=self.error.remedy if self.error else "",
        )
