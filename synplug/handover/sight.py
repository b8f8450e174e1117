"""What can be seen of the service that is restarted.

Its listeners, where they are in this network namespace (:class:`Sight`). With ``--hook forward``
and ``prerouting`` they are not (:class:`FarSight`): then the old one can be looked at where it is
said to be, and whether the new one is there is left to the readiness probe.
"""

from __future__ import annotations

from collections.abc import Callable

from synplug.errors import unforeseen
from synplug.handover.account import unserved_warnings, with_owners
from synplug.handover.drain import Drain
from synplug.handover.plan import DrainPlan, ReadyPlan
from synplug.handover.readiness import ListenerWatch, UnseenWatch, Watch
from synplug.handover.tools import Observer, SocketTable, Tools
from synplug.model import Endpoint, HoldSpec, Hook, Listener, OwnedListener
from synplug.steps import DrainResult


class Sight:
    """The listeners of a run's endpoints, before the restart and after it.

    :param warn: is told what the operator should know.
    """

    def __init__(
        self,
        spec: HoldSpec,
        *,
        tools: Tools,
        drain: DrainPlan,
        warn: Callable[[str], None],
    ) -> None:
        self._spec = spec
        self._tools = tools
        self._drain = drain
        self._warn = warn
        self._watch: Watch | None = None
        self._ahead: Drain | None = None
        #: The listeners that stood before the restart.
        self.old: list[Listener] = []
        #: The same with their processes.
        self.old_owned: tuple[OwnedListener, ...] = ()

    @property
    def readiness(self) -> str:
        """The last verdict, for the report."""
        return self._watch.verdict.value if self._watch else ""

    @property
    def gap_s(self) -> float | None:
        """For how long an old address was served by nobody; None: never, as far as was seen."""
        return self._watch.gap_s if self._watch else None

    def look_at_the_old(self) -> None:
        """Who listens before anything is done."""
        self._note_old(self._tools.sockets.listeners(self._spec.endpoints))

    def warn_of_the_start(self) -> None:
        """Warn of what nobody has served."""
        for endpoint in self._spec.endpoints:
            if not any(listener.serves(endpoint) for listener in self.old):
                self._warn(f"nobody listened on {endpoint} before the command")

    def _note_old(self, old: list[Listener]) -> None:
        self.old = old
        self.old_owned = with_owners(old, self._tools.processes)

    def look_ahead(self, hold: Observer) -> None:
        """Before the hold: see who has something to finish, while new connections still pass."""
        self._ahead = self._drain_of(self._tools.sockets, self._spec.endpoints)
        self._ahead.look_ahead(hold)

    def drain(self, stopped: Callable[[], bool]) -> DrainResult | None:
        """Let the old listener's queues run empty; None: they could not be looked at.

        :param stopped: says that the wait has lost its point.
        """
        drain = self._ahead or self._drain_of(self._tools.sockets, self._spec.endpoints)
        return drain.wait(stopped)

    def _drain_of(self, sockets: SocketTable, endpoints: tuple[Endpoint, ...]) -> Drain:
        return Drain(
            plan=self._drain,
            endpoints=endpoints,
            old=self.old,
            sockets=sockets,
            clock=self._tools.clock,
            pause=self._tools.signals.pause,
        )

    def watch_for_the_new(self, ready: ReadyPlan) -> Watch:
        """What says when they are there."""
        self._watch = ListenerWatch(
            endpoints=self._spec.endpoints,
            old=self.old,
            settle_s=ready.settle_s,
            require_new=ready.require_new,
            must_last=ready.must_last,
        )
        return self._watch

    def look_at_the_end(self) -> None:
        """Warn of what nobody serves."""
        now = self.listeners_now()
        for warning in self.unserved(now):
            self._warn(warning)
        if self._missing(now):
            self._warn(
                "what was served and is not was waited for ten times --settle; "
                "--require-new waits until the deadline"
            )

    def unserved(self, now: list[Listener]) -> list[str]:
        """Of the endpoints, and of what was served before, in words."""
        return unserved_warnings((*self._spec.endpoints, *self._missing(now)), now)

    def _missing(self, now: list[Listener]) -> list[Endpoint]:
        return self._watch.missing(now) if self._watch else []

    def new_owned(self) -> tuple[OwnedListener, ...]:
        """Those that the report calls new, and whose they are."""
        try:
            return with_owners(self.listeners_now(), self._tools.processes)
        except Exception as error:  # noqa: BLE001 -- as below
            self._warn(f"the new listeners' owners could not be read: {unforeseen(error)}")
            return ()

    def listeners_now(self) -> list[Listener]:
        """A failure to look, whatever it is, is no reason to say nothing of all the rest."""
        try:
            return self._tools.sockets.listeners(self._spec.endpoints)
        except Exception as error:  # noqa: BLE001
            self._warn(f"the new listeners could not be read: {unforeseen(error)}")
            return []

    def close(self) -> None:
        """Look no more."""


class FarSight(Sight):
    """For listeners in another network namespace: the old one's is known, or not even that.

    Whoever listens here on the same port is somebody else: a container engine's proxy, perhaps.
    """

    _far: SocketTable | None = None

    def look_at_the_old(self) -> None:
        hook = f"--hook {self._spec.hook.value}"
        if not self._drain.netns:
            self._warn(
                f"the old listener's queues could not be looked at ({hook} without --drain-netns): "
                "what it had not finished may be lost"
            )
            return
        self._far = self._tools.sockets_in(self._drain.netns)
        # What is met before DNAT is sent to a port that need not be the listener's.
        is_known = self._spec.hook is Hook.FORWARD
        self._note_old(self._far.listeners(self._spec.endpoints if is_known else None))
        if not self.old:
            self._warn(f"nobody listened in {self._drain.netns} before the command")

    def look_ahead(self, hold: Observer) -> None:
        """What passes here has other addresses there."""

    def drain(self, stopped: Callable[[], bool]) -> DrainResult | None:
        if self._far is None:
            return None
        try:
            endpoints = tuple(dict.fromkeys(listener.endpoint() for listener in self.old))
            return self._drain_of(self._far, endpoints).wait(stopped)
        finally:
            self.close()

    def watch_for_the_new(self, ready: ReadyPlan) -> Watch:  # noqa: ARG002
        self._watch = UnseenWatch()
        return self._watch

    def warn_of_the_start(self) -> None:
        """Nothing is known but what was said when it was looked at."""

    def listeners_now(self) -> list[Listener]:
        return []

    def unserved(self, now: list[Listener]) -> list[str]:  # noqa: ARG002
        return []

    def close(self) -> None:
        """Its open socket would keep that network namespace, with its addresses, alive."""
        far, self._far = self._far, None
        if far is not None:
            far.close()


def sight_of(
    spec: HoldSpec, *, tools: Tools, drain: DrainPlan, warn: Callable[[str], None]
) -> Sight:
    """The one that befits the hook."""
    make = Sight if spec.hook is Hook.INPUT else FarSight
    return make(spec, tools=tools, drain=drain, warn=warn)
