"""A run's view of its hold: start the keeper, talk to it, and outlive it.

:class:`Hold` is what sequences see; :class:`KeptHold` is the real one, with a forked keeper.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from synplug.errors import KeeperError, SynplugError
from synplug.holding.backends import backends_for
from synplug.holding.base import Backend
from synplug.holding.channel import Channel, error_from_wire, error_to_wire, result_from_wire
from synplug.holding.keeper import Keeper, become_keeper
from synplug.holding.ledger import Ledger
from synplug.holding.locks import PortLocks, remove_unused_locks
from synplug.model import Flow, HoldCounts, HoldResult, HoldSpec, ReleaseReason

_ARM_TIMEOUT_S = 15.0
#: Its loop never blocks for long, so a keeper that lives answers soon.
_ANSWER_S = 2.0
#: A keeper that is silent for so long after the deadline is stuck, and ended.
_SILENCE_S = 0.3
#: One that has said that it releases may have tens of thousands to let go, or a lock to wait for.
_RELEASE_S = 10.0
_GONE_TIMEOUT_S = 1.0


class Hold(Protocol):
    """What a sequence can do with a hold. Times are CLOCK_MONOTONIC seconds."""

    @property
    def backend(self) -> str:
        """The backend's name; empty before :meth:`arm`."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the operator should know of it."""

    @property
    def result(self) -> HoldResult | None:
        """The result, if the hold has ended, as far as is known."""

    def arm(self) -> None:
        """Do all that can fail; nothing is held.

        :raises SynplugError: it failed, and nothing was touched.
        """

    def hold(self) -> float:
        """From the returned time on SYNs wait."""

    def let_through(self, flow: Flow) -> None:
        """Let this connection pass."""

    def ended(self) -> HoldResult | None:
        """The result, if the hold has ended by itself; never waits.

        :raises KeeperError: the keeper died.
        """

    def begin_release(self) -> None:
        """Ask for the hold's end, at the pace of the listeners; :meth:`ended` tells when."""

    def open_now(self) -> None:
        """Ask for all that still waits to be let go at once. For impatience."""

    def fileno(self) -> int:
        """A descriptor that is readable when :meth:`ended` may have something new."""

    def release(self) -> HoldResult:
        """End the hold and return when all is let go. May be called again."""

    def finish(self) -> str:
        """Wait a moment until nothing is left; returns why something stays a while, or ``""``."""

    def close(self) -> None:
        """End it in whatever state it is, and never raise. For ``finally``."""


class KeptHold:
    """A hold whose kernel state belongs to a forked keeper.

    :param locks: taken; the keeper shares them.
    """

    def __init__(self, spec: HoldSpec, locks: PortLocks) -> None:
        self._spec = spec
        self._locks = locks
        self._backends = backends_for(spec.backend)
        self._channel: Channel | None = None
        self._pid = 0
        self._pidfd = -1
        self._held_at_s = 0.0
        self._asked_at_s: float | None = None
        self._result: HoldResult | None = None
        self._releasing = False
        self._gone = False
        self._lingering = ""
        self.backend = ""
        self.warnings: tuple[str, ...] = ()

    @property
    def result(self) -> HoldResult | None:
        """The result, if the hold has ended, as far as is known."""
        return self._result

    @property
    def keeper_pid(self) -> int:
        """The keeper's pid; 0 when there is none."""
        return self._pid

    def arm(self) -> None:
        try:
            self._channel, other_end = Channel.pair()
            self._pid = os.fork()
        except OSError as error:
            raise KeeperError(f"the keeper cannot be started: {error.strerror}") from error
        if self._pid == 0:
            self._channel.close()
            _live_as_keeper(other_end, self._spec, self._backends, self._locks)
        other_end.close()
        # Not the pid: a program that we are a library of may collect children that it never made.
        with suppress(ProcessLookupError):
            self._pidfd = os.pidfd_open(self._pid)
        self.backend = self._expect("armed", _ARM_TIMEOUT_S)["backend"]

    def hold(self) -> float:
        self._say("hold")
        self._held_at_s = float(self._expect("holding", _ARM_TIMEOUT_S)["at_s"])
        return self._held_at_s

    def let_through(self, flow: Flow) -> None:
        self._say("let through", flow=flow.hex())

    def ended(self) -> HoldResult | None:
        while self._result is None and self._readable(0):
            self._take(self._receive())
        if self._result is None and self._held_at_s and time.monotonic() > self._patience_end_s():
            self._kill("did not release when it should have")
        return self._result

    def _patience_end_s(self) -> float:
        """When a keeper that has not released yet is given up."""
        deadline_s = self._held_at_s + self._spec.max_hold_s
        if self._releasing:
            return deadline_s + _RELEASE_S
        if self._asked_at_s is not None:
            return min(deadline_s + _SILENCE_S, self._asked_at_s + _ANSWER_S)
        return deadline_s + _SILENCE_S

    def begin_release(self) -> None:
        if self.ended() is None:
            self._asked_at_s = time.monotonic()
            self._say("release")

    def open_now(self) -> None:
        if self.ended() is None:
            self._say("open")

    def fileno(self) -> int:
        return self._channel.fileno() if self._channel is not None else -1

    def release(self) -> HoldResult:
        self.begin_release()
        while self.ended() is None:
            self._readable(self._patience_end_s() - time.monotonic())
        assert self._result is not None
        return self._result

    def finish(self) -> str:
        deadline_s = time.monotonic() + _GONE_TIMEOUT_S
        while not self._gone and not self._lingering:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not self._readable(left_s):
                self._lingering = "the keeper has not finished cleaning up"
                break
            self._take(self._receive())
        if self._gone:
            self._reap()
        return "" if self._gone else self._lingering

    def close(self) -> None:
        if self._channel is None:
            return
        try:
            with suppress(SynplugError):
                if self._held_at_s and self._result is None:
                    self.release()
        finally:  # whatever interrupts us: at its end of file the keeper ends the hold
            if self._channel is not None:
                self._channel.close()
                self._channel = None
            self._reap()

    # --- the channel

    def _say(self, event: str, **fields: Any) -> None:
        if self._channel is None or not self._channel.send(event, **fields):
            self._kill("does not listen")

    def _readable(self, timeout_s: float) -> bool:
        if self._channel is None:
            self._died()
        assert self._channel is not None
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN)
        return bool(poll.poll(max(0, int(timeout_s * 1000))))

    def _receive(self) -> dict[str, Any]:
        message = self._channel.receive() if self._channel else None
        if message is None:
            self._died()
        assert message is not None
        return message

    def _take(self, message: dict[str, Any]) -> None:
        """Enter what the keeper says."""
        event = message["event"]
        if event == "failed":
            raise error_from_wire(message["error"])
        if event == "released":
            self._result = result_from_wire(message["result"])
        elif event == "releasing":
            self._releasing = True
        elif event == "lingering":
            self._lingering = f"{message['obstacle']}; pid {message['pid']} waits for that"
        elif event == "gone":
            self._gone = True

    def _expect(self, event: str, timeout_s: float) -> dict[str, Any]:
        deadline_s = time.monotonic() + timeout_s
        while self._readable(deadline_s - time.monotonic()):
            message = self._receive()
            self._take(message)
            if message["event"] == event:
                return message
        self._kill(f"did not answer ({event} expected)")
        raise AssertionError("unreachable")

    # --- the keeper's end

    def _kill(self, why: str) -> None:
        """End a keeper that does not answer; the kernel, or we, undo what it had."""
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self._died(why)

    def _died(self, why: str = "died") -> None:
        """The keeper is gone: clean up after it.

        :raises KeeperError: always.
        """
        pid = self._pid
        self._reap()
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self._gone = True
        if self._held_at_s and self._result is None:
            self._result = HoldResult(
                backend=self.backend,
                reason=ReleaseReason.KEEPER_LOST,
                held_at_s=self._held_at_s,
                opened_at_s=time.monotonic(),
                counts=HoldCounts(),
            )
        # One that is in use is known by its name; one that was only being tried may be any.
        left = [make(self._spec) for make in self._backends]
        for backend in left:
            if self.backend in ("", backend.name):
                backend.clean_up_after_death()
        Ledger(self._spec.run_id).remove()
        remove_unused_locks()
        raise KeeperError(f"the keeper (pid {pid}) {why}; connections are no longer held")

    def _reap(self) -> None:
        """Collect the keeper, which should end by now.

        One that lingers is collected in the background, if we go on as a library in a program.
        """
        pid, self._pid = self._pid, 0
        descriptor, self._pidfd = self._pidfd, -1
        if not pid:
            return
        has_ended = True
        if descriptor >= 0:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            has_ended = bool(poll.poll(0 if self._lingering else _GONE_TIMEOUT_S * 1000))
            os.close(descriptor)
        if has_ended:
            _collect(pid)
        else:
            import threading

            threading.Thread(target=_collect, args=(pid,), daemon=True).start()


def _collect(pid: int) -> None:
    with suppress(ChildProcessError):  # the program that we are a library of was faster
        os.waitpid(pid, 0)


def _live_as_keeper(
    channel: Channel,
    spec: HoldSpec,
    backends: tuple[Callable[[HoldSpec], Backend], ...],
    locks: PortLocks,
) -> None:
    """The forked child's whole life; never returns."""
    status = 1
    # First of all: what our caller has lost track of must not be finalised here, where its
    # descriptors' numbers will be ours. And nothing of ours makes cycles.
    gc.freeze()
    gc.disable()
    try:
        become_keeper((channel.fileno(), *locks.descriptors))
        Keeper(channel=channel, spec=spec, backends=backends, locks=locks).run()
        status = 0
    except BaseException as error:  # noqa: BLE001 -- above every other in this process
        channel.send("failed", error=error_to_wire(KeeperError(f"keeper: {error!r}")))
    finally:
        os._exit(status)
