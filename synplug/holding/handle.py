"""A run's view of its hold: start the keeper, talk to it, and outlive it.

:class:`Hold` is what sequences see; :class:`KeptHold` is the real one, with a forked keeper.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Protocol

from synplug.errors import KeeperError, SynplugError
from synplug.holding.backends import backends_for
from synplug.holding.base import Backend
from synplug.holding.channel import Channel, error_to_wire, listener_to_wire
from synplug.holding.keeper import Keeper
from synplug.holding.keeper_process import become_keeper
from synplug.holding.link import KeeperLink
from synplug.holding.locks import RunLocks
from synplug.holding.recover import recover_run
from synplug.kernel.sock_diag import Connection, begun_by
from synplug.model import Flow, HoldResult, HoldSpec, Listener

#: Nothing is held yet, so there is time: to import python-iptables takes a third of a second, and
#: twenty where the processor is emulated.
_ARM_TIMEOUT_S = 60.0
_ANSWER_TIMEOUT_S = 15.0
_END_TIMEOUT_S = 1.0


class Hold(Protocol):
    """What a sequence can do with a hold. Times are CLOCK_MONOTONIC seconds."""

    @property
    def keeper_pid(self) -> int:
        """The pid of its keeper; 0 when there is none."""

    @property
    def backend(self) -> str:
        """The backend's name; empty before :meth:`arm`."""

    @property
    def result(self) -> HoldResult | None:
        """The result, if the hold has ended, as far as is known."""

    @property
    def may_hold_local(self) -> bool:
        """Whether a connection from this host may wait, as far as is known."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was to be said when it was armed; the result has it, too."""

    def arm(self) -> None:
        """Do all that can fail; nothing is held.

        :raises SynplugError: it failed, and nothing was touched.
        """

    def observe(self) -> bool:
        """From here on SYNs pass, and it is noted whose; False: this backend cannot do that."""

    def hold(self) -> float:
        """From the returned time on SYNs wait."""

    def begun(self) -> list[Connection] | None:
        """The connections that have begun since; they are told once. None: not all are known."""

    @property
    def observed(self) -> list[Connection] | None:
        """Those that began after that, until SYNs waited; None: they are not all known."""

    def let_through(self, flow: Flow) -> None:
        """Let this connection pass."""

    def ended(self) -> HoldResult | None:
        """The result, if the hold has ended by itself; never waits.

        :raises KeeperError: the keeper died.
        """

    def detach(self, old: Iterable[Listener]) -> int:
        """Leave it to its keeper, whose pid is returned; it is asked for by its name from now on.

        :param old: the listeners that stood before it.
        :raises KeeperError: it is ending already.
        """

    def begin_release(self, fitting: Mapping[str, Any] | None = None) -> None:
        """Ask for the hold's end, at the pace of the listeners; :meth:`ended` tells when.

        :param fitting: how many fit, where that is known (:class:`synplug.holding.paced.Fitting`).
        """

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


class KeptHold(KeeperLink):
    """A hold whose kernel state belongs to a forked keeper.

    :param locks: taken; the keeper shares them.
    """

    def __init__(self, spec: HoldSpec, locks: RunLocks) -> None:
        super().__init__()
        self._spec = spec
        self._locks = locks
        self._backends = backends_for(spec.backend, spec.hook)
        self.warnings: tuple[str, ...] = ()
        self.observed: list[Connection] | None = None

    def arm(self) -> None:
        """Start the keeper, and let it do all that can fail."""
        try:
            self._channel, other_end = Channel.pair()
            self.keeper_pid = os.fork()
        except OSError as error:
            raise KeeperError(f"the keeper cannot be started: {error.strerror}") from error
        if self.keeper_pid == 0:
            self._channel.close()
            _live_as_keeper(other_end, self._spec, self._backends, self._locks)
        other_end.close()
        # Not the pid: a program that we are a library of may collect children that it never made.
        with suppress(ProcessLookupError):
            self._pidfd = os.pidfd_open(self.keeper_pid)
        armed = self._expect("armed", _ARM_TIMEOUT_S)
        self.backend = armed["backend"]
        self.warnings = tuple(armed["warnings"])

    def observe(self) -> bool:
        """From here on SYNs pass, and it is noted whose; False: this backend cannot do that."""
        self._say("observe")
        return bool(self._expect("observing", _ANSWER_TIMEOUT_S)["able"])

    def begun(self) -> list[Connection] | None:
        """The connections that have begun since; they are told once. None: not all are known."""
        self._say("observed")
        return _connections(self._expect("observed", _ANSWER_TIMEOUT_S)["observed"])

    def hold(self) -> float:
        """From the returned time on SYNs wait."""
        self._say("hold")
        holding = self._expect("holding", _ANSWER_TIMEOUT_S)
        self.observed = _connections(holding["observed"])
        self._held_at_s = float(holding["at_s"])
        self._deadline_s = self._held_at_s + self._spec.max_hold_s
        return self._held_at_s

    def detach(self, old: Iterable[Listener]) -> int:
        """Leave it to its keeper, whose pid is returned; it is asked for by its name from now on.

        :param old: the listeners that stood before it.
        :raises KeeperError: it is ending already.
        """
        self._say("detach", old=[listener_to_wire(listener) for listener in old])
        self._expect("detached", _ANSWER_TIMEOUT_S)
        self._hang_up()
        self._locks.leave()
        return self.keeper_pid

    def finish(self) -> str:
        """Wait a moment until nothing is left; returns why something stays a while, or ``""``."""
        lingering = super().finish()
        if self._gone:
            self._reap()
        return lingering

    def close(self) -> None:
        """End it in whatever state it is, and never raise. For ``finally``."""
        if self._channel is None:
            return
        try:
            with suppress(SynplugError):
                if self._held_at_s and self._result is None:
                    self.release()
        finally:  # whatever interrupts us: at its end of file the keeper ends the hold
            self._hang_up()
            self._reap()

    def _clean_up_after_death(self) -> None:
        recover_run(self._spec.run_id)

    def _reap(self) -> None:
        """Collect the keeper, which should end by now.

        One that lingers is collected in the background, if we go on as a library in a program.
        """
        pid, self.keeper_pid = self.keeper_pid, 0
        if not pid:
            return
        has_ended = True
        if self._pidfd >= 0:
            has_ended = self._has_ended(0 if self._lingering else _END_TIMEOUT_S)
            os.close(self._pidfd)
            self._pidfd = -1
        if has_ended:
            _collect(pid)
        else:
            import threading

            threading.Thread(target=_collect, args=(pid,), daemon=True).start()


def _connections(observed: list[tuple[str, int]] | None) -> list[Connection] | None:
    """What a keeper has observed, to be looked up."""
    if observed is None:
        return None
    return [begun_by(Flow(bytes.fromhex(flow)), device) for flow, device in observed]


def _collect(pid: int) -> None:
    with suppress(ChildProcessError):  # the program that we are a library of was faster
        os.waitpid(pid, 0)


def _live_as_keeper(
    channel: Channel,
    spec: HoldSpec,
    backends: tuple[Callable[[HoldSpec], Backend], ...],
    locks: RunLocks,
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
        channel.send("failed", error=error_to_wire(KeeperError(f"keeper: {error}")))
    finally:
        os._exit(status)
