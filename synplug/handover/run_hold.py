"""A run's hold: armed, begun and released once, and given up whatever happens between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from synplug.errors import KeeperError, SynplugError, unforeseen
from synplug.handover.timeline import Step, Timeline
from synplug.handover.tools import Tools
from synplug.holding.handle import Hold
from synplug.holding.paced import Fitting, Sighting, syn_limit
from synplug.kernel.sock_diag import Connection
from synplug.model import Flow, HoldResult, HoldSpec, ReleaseReason

_RELEASE_POLL_S = 0.05
#: A paced release goes on for so long after a signal; one that gets nowhere is not waited for.
_PATIENCE_AFTER_A_SIGNAL_S = 0.5


class RunHold:
    """Drives a :class:`Hold` for a sequence, and keeps what is known of it.

    :param interrupted: whether a signal has come; passes signals on, so it is asked often.
    """

    def __init__(
        self,
        spec: HoldSpec,
        *,
        tools: Tools,
        timeline: Timeline,
        interrupted: Callable[[], bool],
    ) -> None:
        self._spec = spec
        self._tools = tools
        self._timeline = timeline
        self._interrupted = interrupted
        self._hold: Hold | None = None
        self._held_at_s: float | None = None
        self._syn_limit = 0
        #: Of the hold that has ended, as far as is known.
        self.result: HoldResult | None = None

    @property
    def is_armed(self) -> bool:
        """Whether there is a hold: armed, holding or released, but not given up."""
        return self._hold is not None

    @property
    def is_holding(self) -> bool:
        """Whether SYNs wait now, as far as is known."""
        return self._hold is not None and self._held_at_s is not None and self.result is None

    @property
    def keeper_pid(self) -> int:
        """Its keeper's pid; 0 where there is none."""
        return self._hold.keeper_pid if self._hold is not None else 0

    def arm(self) -> None:
        """Do everything that can fail, and what can be done before anybody waits.

        :raises SynplugError: it did.
        """
        self._hold = self._tools.hold(self._spec)
        self._hold.arm()
        self._syn_limit = syn_limit()

    def observe(self) -> bool:
        """SYNs pass from here on, and it is noted whose; False: this backend cannot do that."""
        assert self._hold is not None, "arm() comes first"
        return self._hold.observe()

    def begun(self) -> list[Connection] | None:
        """The connections that have begun since :meth:`observe`, if all are known; told once."""
        assert self._hold is not None, "arm() comes first"
        return self._hold.begun()

    @property
    def observed(self) -> list[Connection] | None:
        """Those that began after that, until :meth:`begin`, if all are known."""
        return self._hold.observed if self._hold is not None else None

    def begin(self) -> None:
        """SYNs wait from here on.

        :raises SynplugError: they do not.
        """
        assert self._hold is not None, "arm() comes first"
        self._held_at_s = self._hold.hold()

    def ended(self) -> HoldResult | None:
        """The result, if the hold has ended by itself.

        :raises KeeperError: its keeper died.
        """
        if self._hold is not None and self.result is None:
            self.result = self._hold.ended()
        return self.result

    @property
    def may_hold_local(self) -> bool:
        """Whether a connection from this host may wait, as far as is known."""
        return self._hold is not None and self._hold.may_hold_local

    def let_through(self, flow: Flow) -> None:
        """Let this connection pass."""
        if self._hold is not None:
            self._hold.let_through(flow)

    def release(self, seen: Sighting | None = None) -> str:
        """Let go; returns why something of it stays a while, or ``""``.

        :param seen: the listeners, where somebody has looked just now.
        :raises SynplugError: it could not be released, or was lost.
        """
        if self._hold is None or self._held_at_s is None:
            return ""
        self._timeline.begins(Step.RELEASE)
        asked_s = self._tools.clock()
        fitting = Fitting.to_wire(self._spec, seen or Sighting(), self._syn_limit)
        self.result = self._let_go(self._hold, fitting)
        self._timeline.note(Step.HOLD, self._held_at_s, self.result.opened_at_s)
        if self.result.reason is ReleaseReason.ASKED:
            self._timeline.note(Step.RELEASE, asked_s, self.result.opened_at_s)
        with self._timeline.phase(Step.CLEAN_UP):
            return self._hold.finish()

    def _let_go(self, hold: Hold, fitting: Mapping[str, Any] | None = None) -> HoldResult:
        """Release at the listeners' pace; at once, if that takes long after a signal."""
        hold.begin_release(fitting)
        patience_end_s = float("inf")
        while (result := hold.ended()) is None:
            now_s = self._tools.clock()
            if self._interrupted():
                patience_end_s = min(patience_end_s, now_s + _PATIENCE_AFTER_A_SIGNAL_S)
            if now_s >= patience_end_s:
                hold.open_now()
            self._tools.signals.pause(_RELEASE_POLL_S, hold)
        return result

    def close(self, because: SynplugError | None) -> SynplugError | None:
        """End it in whatever state it is; may be called again.

        :param because: what went wrong before, if anything.
        :returns: what went wrong now, if nothing did before.
        """
        hold, self._hold = self._hold, None
        if hold is None:
            return None
        failure = None
        try:
            is_lost = isinstance(because, KeeperError)
            if self._held_at_s is not None and self.result is None and not is_lost:
                self.result = self._let_go(hold)
        except Exception as error:  # noqa: BLE001 -- something else has failed already: go on
            failure = unforeseen(error)
        finally:
            hold.close()
            self.result = self.result or hold.result
        return failure if because is None else None
