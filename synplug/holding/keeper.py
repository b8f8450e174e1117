"""The keeper: the process that owns a hold's kernel state.

A forked child with one loop over the channels, the backend and the deadline. It ends the hold when
it is told to, at the deadline, on SIGTERM, or its run gone: always by :meth:`Keeper._dismantle`.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from synplug.errors import KeeperError, SynplugError, unforeseen
from synplug.holding.arming import arm_first, entry_of
from synplug.holding.audience import Audience
from synplug.holding.base import Backend
from synplug.holding.channel import Channel, error_to_wire, result_to_wire, spec_to_wire
from synplug.holding.keeper_process import has_ended, limit, told_of_sigterm
from synplug.holding.ledger import Ledger
from synplug.holding.lingering import wait_until_harmless
from synplug.holding.locks import FlushGuard, RunLocks
from synplug.holding.paced import Fitting, let_go_in_steps, why_hurry
from synplug.holding.remarks import burst_remark, loss_remark
from synplug.kernel.deadman import Deadman
from synplug.model import Flow, HoldResult, HoldSpec, ReleaseReason

_LOSS_CHECK_S = 0.05
_GATHER_MS = 1
#: A keeper that has not opened so long after its deadline is ended by the kernel, and new
#: connections pass; letting go of tens of thousands may take longer.
_DEADMAN_S = 0.6
_SLOWEST_RELEASE_PER_S = 10_000
_CONFIRM_S = 5.0


class Keeper:
    """One hold, from armed to gone.

    :param backends: makes the backends to try, in this order.
    :param locks: of the run; dropped here when the run is not there to do it.
    """

    def __init__(
        self,
        *,
        channel: Channel,
        spec: HoldSpec,
        backends: tuple[Callable[[HoldSpec], Backend], ...],
        locks: RunLocks,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._poll = select.poll()
        self._audience = Audience(channel, self._poll)
        self._audience.greeting = self._greeting
        self._is_releasing = False
        self._result: HoldResult | None = None
        self._spec = spec
        self._backends = backends
        self._locks = locks
        self._clock = clock
        self._ledger = Ledger(spec.run_id)
        self._guard = FlushGuard()
        self._reason: ReleaseReason | None = None
        self._orphaned = False
        self._is_in_force = False  # the rule; SYNs may pass all the same, while they are observed
        self._held_at_s = 0.0
        self._loss_checked_at_s = 0.0
        self._lost = 0
        self._is_open_asked = False
        self._fitting = Fitting()
        self._is_hurried = False  # by SIGTERM, when the hold is ending already
        self._told_of_local = False
        self._warnings: list[str] = []

    def run(self) -> None:
        """Arm, and serve the channel until all is gone."""
        # The channel alone does not tell: a child of the run may have its other end, too.
        self._run = os.pidfd_open(os.getppid())
        self._signals = told_of_sigterm()
        try:
            self._deadman = Deadman()
            self._backend, self._warnings = arm_first(
                self._backends, self._spec, self._ledger, self._guard, self._audience
            )
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is said, and undone by now
            self._say_failed(error)
            self._drop_locks()
            return
        try:
            self._serve()
        except Exception as error:  # noqa: BLE001 -- whatever it is: nothing of ours may stay
            self._say_failed(error)
            self._give_up()
        finally:
            self._audience.close_door()
            self._close()

    def _close(self) -> None:
        with suppress(SynplugError):  # if something is left, the ledger keeps it for recover
            self._backend.close()

    def _say_failed(self, error: Exception) -> None:
        with suppress(OSError):  # it is more important that we go on
            self._audience.say("failed", error=error_to_wire(unforeseen(error)))

    def _give_up(self) -> None:
        """After an error: let go of what waits, and remove the rest when nobody is hurt by it.

        If that fails, too, the ledger keeps what is left for recover.
        """
        if self._is_in_force:
            with suppress(Exception):
                self._backend.open()
        self._is_in_force, self._held_at_s = False, 0.0
        try:
            self._dismantle()
        except Exception:  # noqa: BLE001 -- then at once, and by closing alone
            self._close()
            self._guard.leave()
            if not self._backend.outlives_its_keeper:  # if it does, its watcher looks
                self._ledger.remove()
            self._drop_locks()

    def _serve(self) -> None:
        """Armed, then holding: until there is a reason to end it."""
        limit(self._backend.capabilities)
        self._ledger.write(entry_of(self._spec, self._backend, "armed"))
        for descriptor in (self._signals, self._run, self._backend.fileno()):
            self._poll.register(descriptor, select.POLLIN)
        self._audience.say("armed", backend=self._backend.name, warnings=self._warnings)
        while self._reason is None:
            self._turn(self._timeout_ms())
            if self._held_at_s and self._backend.uses_queues:
                self._gather()
        if self._held_at_s:
            self._release()
        elif self._is_in_force:
            self._open()
        self._dismantle()

    def _timeout_ms(self) -> int | None:
        if not self._is_in_force:
            return None
        left_s = min(self._deadline_s - self._clock(), _LOSS_CHECK_S)
        return max(0, int(left_s * 1000) + 1)

    def _turn(self, timeout_ms: int | None) -> None:
        """Wait for something to happen, and see to it."""
        for descriptor, _ in self._poll.poll(timeout_ms):
            if descriptor == self._signals:
                os.read(self._signals, 64)
                self._is_hurried = self._reason is not None
                self._end(ReleaseReason.SIGNAL)
            elif descriptor == self._run:
                self._poll.unregister(self._run)
                if not self._audience.is_detached:
                    self._end(ReleaseReason.ORPHANED)
            elif descriptor != self._backend.fileno():
                self._listen(descriptor)
            else:
                self._backend.absorb()
                self._tell_of_local()
        now = self._clock()
        if self._is_in_force:
            if now >= self._deadline_s:
                self._end(ReleaseReason.DEADLINE)
            if now - self._loss_checked_at_s > _LOSS_CHECK_S:
                self._loss_checked_at_s = now
                self._check_for_loss()

    def _gather(self) -> None:
        """What only waits has time: a wake-up for each SYN would cost more than the SYN itself."""
        self._poll.modify(self._backend.fileno(), 0)
        self._turn(_GATHER_MS)
        self._poll.modify(self._backend.fileno(), select.POLLIN)

    def _end(self, reason: ReleaseReason) -> None:
        """The first reason counts; a lost parent is noted in any case."""
        # One that goes after it was told of the release gives its locks back itself.
        self._orphaned |= reason is ReleaseReason.ORPHANED and self._result is None
        self._reason = self._reason or reason

    def _listen(self, descriptor: int) -> None:
        message = self._audience.hear(descriptor) or {}
        event = message.get("event")
        if event == "orphaned":
            self._end(ReleaseReason.ORPHANED)
        elif event == "observe" and self._reason is None:
            self._observe()
        elif event == "observed" and self._reason is None:
            self._audience.say("observed", observed=self._backend.observed())
        elif event == "hold" and self._reason is None:
            self._hold()
        elif event == "detach":
            self._detach(message["old"])
        elif event in ("release", "open"):
            self._is_open_asked |= event == "open"
            self._fitting.hear(message)
            self._end(ReleaseReason.ASKED)
            if self._is_releasing:  # whoever asks now has not heard it
                self._audience.say("releasing")
        elif event == "let through":
            self._backend.let_through(Flow(bytes.fromhex(message["flow"])))

    def _detach(self, old: list[Any]) -> None:
        if self._reason is not None:
            self._say_failed(KeeperError("the hold is ending already", remedy="raise --max-hold"))
        else:
            self._audience.detach(old)

    def _observe(self) -> None:
        """Let SYNs pass, and note whose, until it is said that they wait."""
        if self._backend.can_observe:
            self._put_in_force(self._backend.observe)
        self._audience.say("observing", able=self._is_in_force)

    def _put_in_force(self, put: Callable[[Callable[[], None]], None]) -> None:
        """Put the rule in; whatever becomes of us from here on: it will be found, and will end."""
        if self._backend.uses_queues:
            self._guard.share()
        self._deadline_s = self._clock() + self._spec.max_hold_s
        self._ledger.write(
            entry_of(self._spec, self._backend, "holding", deadline_s=self._deadline_s)
        )
        self._deadman.set(self._spec.max_hold_s + _DEADMAN_S + self._backend.patience_s)
        self._poll.register(self._backend.fileno(), select.POLLIN)
        put(self._allow_a_hold)  # once no lock is waited for any more
        self._is_in_force = True

    def _allow_a_hold(self) -> None:
        self._deadman.set(self._spec.max_hold_s + _DEADMAN_S)

    def _hold(self) -> None:
        if self._is_in_force:
            self._backend.hold()
        else:
            self._put_in_force(self._backend.hold)
        self._held_at_s = self._clock()
        self._deadline_s = self._held_at_s + self._spec.max_hold_s
        self._allow_a_hold()
        self._audience.say("holding", at_s=self._held_at_s, observed=self._backend.observed())
        self._tell_of_local()
        self._audience.admit()

    def _tell_of_local(self) -> None:
        """Say once that connections from this host may wait: some may be the restart's own."""
        if self._held_at_s and not self._told_of_local and self._backend.may_hold_local():
            self._told_of_local = True
            self._audience.say("holds local")

    def _greeting(self) -> dict[str, Any]:
        """What somebody needs to know who asks for the hold by its name."""
        told = {"backend": self._backend.name, "at_s": self._held_at_s}
        told |= {"releasing": self._is_releasing, "local": self._told_of_local}
        return spec_to_wire(self._spec) | told

    def _check_for_loss(self) -> None:
        try:
            self._lost += self._backend.check_for_loss()
        except SynplugError as error:  # what is held stays held, whatever cannot be counted
            words = f"lost SYNs could not be counted: {error}"
            if words not in self._warnings:
                self._warnings.append(words)

    # --- releasing

    def _release(self) -> None:
        """Let go at the listeners' pace, then open."""
        self._is_releasing = True
        self._audience.say("releasing")
        paced = let_go_in_steps(
            self._backend,
            self._spec,
            fitting=self._fitting,
            clock=self._clock,
            why_over=lambda: why_hurry(self._deadline_s - self._clock(), self._is_open_asked),
            turn=self._turn,
        )
        self._warnings += paced.remarks
        released, opened_at_s = self._open()
        burst = () if self._backend.can_pace else burst_remark(released, paced.listeners)
        self._result = HoldResult(
            backend=self._backend.name,
            reason=self._reason or ReleaseReason.ASKED,
            held_at_s=self._held_at_s,
            opened_at_s=opened_at_s,
            counts=self._backend.counts(),
            release_steps=paced.steps,
            release_limit=paced.limit,
            warnings=(*self._warnings, *loss_remark(self._lost), *self._backend.remarks, *burst),
        )
        self._audience.close_door()
        self._audience.say("released", result=result_to_wire(self._result))
        self._drop_locks()

    def _open(self) -> tuple[int, float]:
        """Let new connections pass, and whoever waits; how many these were, and since when."""
        left_s = max(0.0, self._deadline_s - self._clock())
        self._deadman.set(left_s + _DEADMAN_S + self._backend.waiting() / _SLOWEST_RELEASE_PER_S)
        released = self._backend.open(lambda: self._deadman.set(_DEADMAN_S))
        self._is_in_force = False
        opened_at_s = self._clock()
        self._deadman.set(_CONFIRM_S)  # new connections pass already
        self._backend.confirm_empty(lambda: self._deadman.set(_CONFIRM_S))
        self._guard.leave()
        self._deadman.stop()  # nothing is held any more, and what is left may linger
        return released, opened_at_s

    def _dismantle(self) -> None:
        """Remove the rest as soon as nobody is hurt by it; then nothing is left of the hold."""
        wait_until_harmless(
            self._backend,
            self._guard,
            self._deadman,
            clock=self._clock,
            is_hurried=lambda: self._is_hurried,
            tell=self._say_lingering,
            turn=self._turn,
        )
        try:
            self._backend.remove()
        finally:
            self._guard.leave()
        self._ledger.remove()
        self._audience.say("gone")
        self._drop_locks()

    def _say_lingering(self, obstacle: str) -> None:
        with suppress(SynplugError):
            self._ledger.write(entry_of(self._spec, self._backend, "lingering"))
        self._audience.say("lingering", obstacle=obstacle, pid=os.getpid())

    def _drop_locks(self) -> None:
        """Give the ports back, where there is no run that will, or none any more."""
        if self._orphaned or self._audience.is_detached or has_ended(self._run, self._reason):
            self._locks.drop()
