"""Talking to a keeper, whoever does it: what it has said, and how long it may be silent."""

from __future__ import annotations

import select
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NoReturn

from synplug.errors import KeeperError, unforeseen
from synplug.holding.channel import Channel, error_from_wire, result_from_wire
from synplug.model import Flow, HoldCounts, HoldResult, ReleaseReason

#: Its loop never blocks for long, so a keeper that lives answers soon.
_ANSWER_S = 2.0
#: A keeper that is silent for so long after the deadline is stuck, and ended.
_SILENCE_S = 0.3
#: One that has said that it releases may have tens of thousands to let go, or a lock to wait for.
_RELEASE_S = 10.0
_GONE_TIMEOUT_S = 1.0


class KeeperLink:
    """One end of a channel to a keeper, and what is known of its hold.

    Times are CLOCK_MONOTONIC seconds.
    """

    def __init__(self) -> None:
        self._channel: Channel | None = None
        self._pidfd = -1
        self._held_at_s = 0.0
        self._deadline_s = float("inf")
        self._asked_at_s: float | None = None
        self._result: HoldResult | None = None
        self._releasing = False
        self._gone = False
        self._lingering = ""
        #: Whether a connection from this host may wait: the keeper tells when one does.
        self.may_hold_local = False
        self.backend = ""
        #: The keeper's pid; 0 when there is none.
        self.keeper_pid = 0

    @property
    def result(self) -> HoldResult | None:
        """The result, if the hold has ended, as far as is known."""
        return self._result

    @property
    def is_releasing(self) -> bool:
        """Whether the keeper has said that it lets go."""
        return self._releasing

    # --- the hold

    def let_through(self, flow: Flow) -> None:
        """Let this connection pass."""
        self._say("let through", flow=flow.hex())

    def ended(self) -> HoldResult | None:
        """The result, if the hold has ended by itself; never waits.

        :raises KeeperError: the keeper died.
        """
        while self._result is None and self._readable(0):
            self._take(self._receive())
        if self._result is None and self._held_at_s and time.monotonic() > self._patience_end_s():
            self._kill("did not release when it should have")
        return self._result

    def _patience_end_s(self) -> float:
        """When a keeper that has not released yet is given up."""
        if self._releasing:
            return self._deadline_s + _RELEASE_S
        if self._asked_at_s is not None:
            return min(self._deadline_s + _SILENCE_S, self._asked_at_s + _ANSWER_S)
        return self._deadline_s + _SILENCE_S

    def begin_release(self, fitting: Mapping[str, Any] | None = None) -> None:
        """Ask for the hold's end, at the pace of the listeners; :meth:`ended` tells when.

        :param fitting: how many fit, where that is known (:class:`synplug.holding.paced.Fitting`).
        """
        if self.ended() is None:
            self._asked_at_s = time.monotonic()
            self._say("release", **(fitting or {}))

    def open_now(self) -> None:
        """Ask for all that still waits to be let go at once."""
        if self.ended() is None:
            self._say("open")

    def fileno(self) -> int:
        """A descriptor that is readable when :meth:`ended` may have something new."""
        return self._channel.fileno() if self._channel is not None else -1

    def release(self) -> HoldResult:
        """End the hold and return when all is let go. May be called again."""
        self.begin_release()
        while self.ended() is None:
            self._readable(self._patience_end_s() - time.monotonic())
        assert self._result is not None
        return self._result

    def finish(self) -> str:
        """Wait a moment until nothing is left; returns why something stays a while, or ``""``."""
        deadline_s = time.monotonic() + _GONE_TIMEOUT_S
        while not self._gone and not self._lingering:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not self._readable(left_s):
                self._lingering = "the keeper has not finished cleaning up"
                break
            self._take(self._receive())
        return "" if self._gone else self._lingering

    # --- the channel

    def _say(self, event: str, **fields: Any) -> None:
        if self._channel is None or not self._channel.send(event, **fields):
            self._kill("does not listen")

    def _readable(self, timeout_s: float) -> bool:
        if self._channel is None:
            self._died()
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN)
        return bool(poll.poll(max(0, int(timeout_s * 1000))))

    def _receive(self) -> dict[str, Any]:
        message = self._channel.receive() if self._channel else None
        if message is None:
            self._died()
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
        elif event == "holds local":
            self.may_hold_local = True
        elif event == "lingering":
            self._lingering = f"{message['obstacle']}; pid {message['pid']} waits for that"
        elif event == "gone":
            self._gone = True

    def _expect(  # noqa: RET503 -- _kill() never returns
        self, event: str, timeout_s: float
    ) -> dict[str, Any]:
        """What the keeper says of *event*; it is ended if it says nothing in so many seconds."""
        deadline_s = time.monotonic() + timeout_s
        while self._readable(deadline_s - time.monotonic()):
            message = self._receive()
            self._take(message)
            if message["event"] == event:
                return message
        self._kill(f"did not answer ({event} expected)")

    def _hang_up(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    # --- the keeper's end

    def _kill(self, why: str) -> NoReturn:
        """End a keeper that does not answer; the kernel, or we, undo what it had.

        Only a dead one can be cleaned up after. One that waits in the kernel for something that
        no signal interrupts, or whose pid is not known here, lives on.
        """
        has_ended = self.keeper_pid > 0 or self._gone
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            has_ended = self._has_ended(_GONE_TIMEOUT_S)
        self._died(why, has_ended=has_ended)

    def _died(self, why: str = "died", *, has_ended: bool = True) -> NoReturn:
        """The keeper is gone, or cannot be reached.

        :raises KeeperError: always, after what it left has been cleaned up.
        """
        pid = self.keeper_pid
        self._reap()
        self._hang_up()
        self._gone = True
        if self._held_at_s and self._result is None:
            self._result = HoldResult(
                backend=self.backend,
                reason=ReleaseReason.KEEPER_LOST if has_ended else ReleaseReason.KEEPER_STUCK,
                held_at_s=self._held_at_s,
                opened_at_s=time.monotonic(),
                counts=HoldCounts(),
            )
        words = f"the keeper (pid {pid}) {why}"
        if not has_ended:
            raise KeeperError(
                f"{words}, and has not ended: connections may still be held, until it does",
                remedy=f"look at /proc/{pid}/stack for what it waits for; "
                "when it has ended, run 'synplug recover'",
            )
        try:
            self._clean_up_after_death()
        except Exception as error:
            words += f"; what it made may still be in place: {unforeseen(error)}"
            raise KeeperError(words, remedy="run 'synplug recover'") from error
        raise KeeperError(f"{words}; connections are no longer held")

    def _has_ended(self, timeout_s: float) -> bool:
        """Whether the keeper's process is gone, in so many seconds."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    def _reap(self) -> None:
        """Collect the keeper, if that is ours to do."""

    def _clean_up_after_death(self) -> None:
        """Remove what a keeper that died has left."""
        raise NotImplementedError
