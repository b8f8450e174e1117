"""What a sequence is asked to do."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Mapping

from synplug.model import HoldSpec, OnDrainTimeout
from synplug.record import Record


class DrainPlan(Record):
    """How long to wait for the old listener; seconds, 0 switches a part off.

    :param timeout_s: for its accept queues and request sockets to be empty.
    :param quiesce_s: for its established connections to be idle.
    :param netns: of a listener that is not here: a name, a path or a pid; may be empty.
    """

    timeout_s: float = 1.0
    on_timeout: OnDrainTimeout = OnDrainTimeout.PROCEED
    quiesce_s: float = 1.0
    netns: str = ""


class ReadyPlan(Record):
    """When the service counts as restarted.

    :param http: a URL that must answer 2xx or 3xx, besides.
    :param command: an argv that must exit with 0, besides.
    :param timeout_s: from the command's start; None: until the hold's deadline.
    :param settle_s: how long listeners and processes must have been still: after the command
        succeeded, where the listeners stay the same (a reload); a new generation's always.
    :param require_new: never take unchanged listeners for a finished reload.
    :param must_last: a new listener may be that of a check, and gone at once.
    """

    http: str = ""
    command: tuple[str, ...] = ()
    timeout_s: float | None = None
    settle_s: float = 0.3
    require_new: bool = False
    must_last: bool = False


class WrapPlan(Record):
    """A restart.

    :param argv: the restart command.
    :param service_pids: processes known to be the service's.
    :param unit: its systemd unit, such as ``nginx.service``; may be empty.
    :param check: an argv that must succeed before anything is held; may be empty.
    :param best_effort: run the command even when nothing can be held.
    :param unheld: why nothing can, as is known before; empty: it may be.
    """

    argv: tuple[str, ...]
    spec: HoldSpec
    service_pids: tuple[int, ...] = ()
    unit: str = ""
    check: tuple[str, ...] = ()
    best_effort: bool = False
    unheld: str = ""
    lock_timeout_s: float = 0.0
    drain: DrainPlan = DrainPlan()
    ready: ReadyPlan = ReadyPlan()


class HoldPlan(Record):
    """A hold that is left to its keeper, under the name in *spec*."""

    spec: HoldSpec
    lock_timeout_s: float = 0.0
    drain: DrainPlan = DrainPlan()


class StopMethod(Record):
    """How a generation is told to close its listeners.

    :param number: the signal that its main process gets, unless one of the others is given.
    :param command: an argv to run. :param post: a URL to POST to. ``{pid}`` and
        ``{generation}`` in them stand for those of the generation to stop.
    :param timeout_s: until its listeners are gone; then SIGTERM, as long again, then SIGKILL.
    """

    number: int = signal.SIGTERM
    command: tuple[str, ...] = ()
    post: str = ""
    timeout_s: float = 2.0

    @property
    def by_signal(self) -> bool:
        """Whether it is a signal, which it ends by when it has finished."""
        return not (self.command or self.post)

    def __str__(self) -> str:
        if self.post:
            return f"POST {self.post}"
        return shlex.join(self.command) or signal.Signals(self.number).name


class RetirePlan(Record):
    """What an old generation is given once its listeners are gone; seconds.

    :param linger_s: to finish its established connections; then comes SIGTERM.
    :param kill_after_s: from there to SIGKILL.
    """

    linger_s: float = 30.0
    kill_after_s: float = 5.0


class SwapPlan(Record):
    """The way from one generation to the next.

    :param argv: starts the new one, in the foreground or as a daemon.
    :param environment: of the new one; None: ours.
    :param check: an argv that must succeed before anything is started; may be empty.
    :param new_pidfile: where the new one's pid is written; may be empty.
    :param migrate: have the kernel move what a closing listener has queued (tcp_migrate_req).
    """

    argv: tuple[str, ...]
    spec: HoldSpec
    environment: Mapping[str, str] | None = None
    check: tuple[str, ...] = ()
    lock_timeout_s: float = 0.0
    drain: DrainPlan = DrainPlan()
    ready: ReadyPlan = ReadyPlan()
    stop: StopMethod = StopMethod()
    retire: RetirePlan = RetirePlan()
    new_pidfile: str = ""
    migrate: bool = False
