"""The keeper: the process that owns a hold's kernel state.

A forked child with one loop over the channels, the backend and the deadline. It ends the hold
when it is told to, at the deadline, when its run has gone without leaving it the hold, and on
SIGTERM. Every way out of the loop passes through :meth:`Keeper._dismantle`.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from typing import Any

from synplug.errors import PrivilegeError, SynplugError, UnsupportedError
from synplug.holding import watcher
from synplug.holding.audience import Audience
from synplug.holding.base import Backend
from synplug.holding.channel import Channel, endpoint_to_wire, error_to_wire, result_to_wire
from synplug.holding.keeper_process import limit
from synplug.holding.ledger import Entry, Ledger
from synplug.holding.locks import FlushGuard, RunLocks
from synplug.holding.pace import Pacer
from synplug.kernel import procfs
from synplug.kernel.deadman import Deadman
from synplug.kernel.sock_diag import SocketDiagnostics
from synplug.model import Flow, HoldResult, HoldSpec, Listener, ReleaseReason

#: How long an empty table may stay because removing it would drop others' packets.
LINGER_S = 60.0
_LINGER_POLL_MS = 20
_PACE_POLL_MS = 1
_LOSS_CHECK_S = 0.05
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
        self._served: list[Any] = []
        self._spec = spec
        self._backends = backends
        self._locks = locks
        self._clock = clock
        self._ledger = Ledger(spec.run_id)
        self._guard = FlushGuard()
        self._reason: ReleaseReason | None = None
        self._orphaned = False
        self._held_at_s = 0.0
        self._loss_checked_at_s = 0.0
        self._lost = 0
        self._is_open_asked = False
        self._warnings: list[str] = []

    def run(self) -> None:
        """Arm, and serve the channel until all is gone."""
        signals, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._wake)
        signal.signal(signal.SIGTERM, lambda *_: None)  # the wake-up descriptor tells
        try:
            self._arm()
        except SynplugError as error:
            self._audience.say("failed", error=error_to_wire(error))
            return
        for descriptor in (signals, self._backend.fileno()):
            self._poll.register(descriptor, select.POLLIN)
        self._signals = signals
        try:
            self._serve()
        except SynplugError as error:
            self._audience.say("failed", error=error_to_wire(error))
            self._backend.close()  # if that fails, the ledger keeps what is left for recover
            self._guard.leave()
            self._ledger.remove()
        finally:
            self._audience.close_door()
            self._backend.close()

    # --- armed

    def _arm(self) -> None:
        """Take the first backend that this kernel has."""
        for make in self._backends:
            backend = make(self._spec)
            if backend.outlives_its_keeper:
                watcher.start(self._spec.run_id)
            try:
                self._write_ledger(backend, "arming")
                backend.arm()
            except SynplugError as error:
                backend.close()  # if that fails, the ledger keeps what is left for recover
                self._ledger.remove()
                if isinstance(error, PrivilegeError) or len(self._backends) == 1:
                    raise
                self._warnings.append(f"backend {backend.name} is not available: {error.message}")
                continue
            self._backend = backend
            limit(backend.capabilities)
            self._deadman = Deadman()
            self._write_ledger(backend, "armed")
            if self._spec.name:
                self._audience.open_door(self._spec.name)
            self._audience.say("armed", backend=backend.name)
            return
        raise UnsupportedError(
            "; ".join(self._warnings), remedy="'synplug doctor' says what each would need"
        )

    def _write_ledger(self, backend: Backend, state: str, deadline_s: float = 0.0) -> None:
        self._ledger.write(
            Entry(
                run_id=self._spec.run_id,
                name=self._spec.name,
                keeper=os.getpid(),
                keeper_start=procfs.start_time(os.getpid()),
                backend=backend.name,
                state=state,
                endpoints=tuple(map(str, self._spec.endpoints)),
                deadline_s=deadline_s,
                traces=backend.traces(),
            )
        )

    # --- the loop

    def _serve(self) -> None:
        """Armed, then holding: until there is a reason to end it."""
        while self._reason is None:
            self._turn(self._timeout_ms())
        if self._held_at_s:
            self._release()
        self._dismantle()

    def _timeout_ms(self) -> int | None:
        if not self._held_at_s:
            return None
        left_s = min(self._deadline_s - self._clock(), _LOSS_CHECK_S)
        return max(0, int(left_s * 1000) + 1)

    def _turn(self, timeout_ms: int | None) -> None:
        """Wait for something to happen, and see to it."""
        for descriptor, _ in self._poll.poll(timeout_ms):
            if descriptor == self._signals:
                os.read(self._signals, 64)
                self._end(ReleaseReason.SIGNAL)
            elif descriptor != self._backend.fileno():
                self._listen(descriptor)
            elif self._held_at_s:
                self._backend.absorb()
        now = self._clock()
        if self._held_at_s:
            if now >= self._deadline_s:
                self._end(ReleaseReason.DEADLINE)
            if now - self._loss_checked_at_s > _LOSS_CHECK_S:
                self._loss_checked_at_s = now
                self._check_for_loss()

    def _end(self, reason: ReleaseReason) -> None:
        """The first reason counts; a lost parent is noted in any case."""
        self._orphaned |= reason is ReleaseReason.ORPHANED
        self._reason = self._reason or reason

    def _listen(self, descriptor: int) -> None:
        message = self._audience.hear(descriptor)
        if message is None:
            return
        if message["event"] == "orphaned":
            self._end(ReleaseReason.ORPHANED)
        elif message["event"] == "hold" and self._reason is None:
            self._hold()
        elif message["event"] == "detach":
            self._served = message["served"]
            self._audience.detach()
        elif message["event"] in ("release", "open"):
            self._is_open_asked |= message["event"] == "open"
            self._end(ReleaseReason.ASKED)
        elif message["event"] == "let through":
            self._backend.let_through(Flow(bytes.fromhex(message["flow"])))

    def _hold(self) -> None:
        self._guard.share()
        deadline_s = self._clock() + self._spec.max_hold_s
        self._write_ledger(self._backend, "holding", deadline_s)
        self._deadman.set(self._spec.max_hold_s + _DEADMAN_S)
        self._backend.hold()
        self._held_at_s = self._clock()
        self._deadline_s = self._held_at_s + self._spec.max_hold_s
        self._audience.say("holding", at_s=self._held_at_s)

    def _greeting(self) -> dict[str, Any]:
        """What somebody needs to know who asks for the hold by its name."""
        return {
            "run_id": self._spec.run_id,
            "endpoints": [endpoint_to_wire(endpoint) for endpoint in self._spec.endpoints],
            "served": self._served,
            "backend": self._backend.name,
            "at_s": self._held_at_s,
            "max_hold_s": self._spec.max_hold_s,
        }

    def _check_for_loss(self) -> None:
        self._lost += self._backend.check_for_loss()

    def _loss_warning(self) -> tuple[str, ...]:
        if not self._lost:
            return ()
        return (
            f"{self._lost} held SYNs were dropped by somebody else, who removed a netfilter hook "
            "or a device; their clients retransmit",
        )

    def _burst_warning(self, released: int, listeners: list[Listener]) -> tuple[str, ...]:
        """What has gone at once from a backend that cannot do otherwise, if that was too much."""
        backlog = min((listener.backlog for listener in listeners), default=released)
        if self._backend.can_pace or released <= backlog:
            return ()
        return (
            f"{released} SYNs were let go at once, and a listener has a backlog of {backlog}: "
            "some may wait a second more (raise its backlog, and net.core.somaxconn)",
        )

    # --- releasing

    def _pace(self, pacer: Pacer) -> None:
        self._backend.absorb()
        may_pace = self._backend.can_pace
        while may_pace and not self._is_open_asked and self._clock() < self._deadline_s:
            room = pacer.step(self._backend.waiting())
            if room is None:
                break
            released = self._backend.release_next(room)
            self._turn(0 if released else _PACE_POLL_MS)

    def _release(self) -> None:
        """Let go at the listeners' pace, then open."""
        self._audience.say("releasing")
        diagnostics = SocketDiagnostics()
        pacer = Pacer(
            endpoints=self._spec.endpoints,
            mode=self._spec.release,
            rooms=diagnostics,
            clock=self._clock,
        )
        listeners: list[Listener] = []
        try:
            self._pace(pacer)
            listeners = diagnostics.listeners(self._spec.endpoints)
        except SynplugError as error:  # no reason to drop what waits
            self._warnings.append(f"let go at once, since the listeners could not be read: {error}")
        diagnostics.close()
        left_s = max(0.0, self._deadline_s - self._clock())
        self._deadman.set(left_s + _DEADMAN_S + self._backend.waiting() / _SLOWEST_RELEASE_PER_S)
        burst = self._burst_warning(self._backend.open(), listeners)
        opened_at_s = self._clock()
        self._deadman.set(_CONFIRM_S)  # new connections pass already
        self._backend.confirm_empty()
        self._deadman.stop()  # nothing is held any more, and what is left may linger
        self._guard.leave()
        self._result = HoldResult(
            backend=self._backend.name,
            reason=self._reason or ReleaseReason.ASKED,
            held_at_s=self._held_at_s,
            opened_at_s=opened_at_s,
            counts=self._backend.counts(),
            release_steps=pacer.steps,
            release_limit=pacer.limit if pacer.steps else "",
            warnings=(*self._warnings, *self._loss_warning(), *burst),
        )
        self._audience.close_door()
        self._audience.say("released", result=result_to_wire(self._result))
        self._drop_locks()

    def _dismantle(self) -> None:
        """Remove the rest as soon as nobody is hurt by it; then nothing is left of the hold."""
        give_up_s = self._clock() + LINGER_S
        told = False
        while obstacle := self._obstacle():
            if self._clock() > give_up_s:
                break
            if not told:
                told = True
                self._write_ledger(self._backend, "lingering")
                self._audience.say("lingering", obstacle=obstacle, pid=os.getpid())
            self._turn(_LINGER_POLL_MS)
        try:
            self._backend.remove()
        finally:
            self._guard.leave()
        self._ledger.remove()
        self._audience.say("gone")
        self._drop_locks()

    def _drop_locks(self) -> None:
        """Give the ports back, where there is no run that will."""
        if self._orphaned or self._audience.is_detached:
            self._locks.drop()

    def _obstacle(self) -> str:
        """Who would lose packets if the rest were removed now; takes the guard if nobody."""
        if not self._guard.try_alone():
            return "another synplug run holds connections in this network namespace"
        obstacle = self._backend.obstacle()
        if obstacle:
            self._guard.leave()
        return obstacle
