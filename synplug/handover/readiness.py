"""When is the new listener there? Pure policy: observations in, a verdict out.

Two ways to be ready (besides the probes):

- *replaced*: all that the old listeners served is served by sockets that were not there before,
  and every old one is gone. A unit's must last: until the command has succeeded (one that does
  not return early), or for the settle time. The check of a configuration in its ExecStartPre=
  listens for a moment, too (`nginx -t`);
- *settled*: the command has succeeded, all that the old listeners served is served, and neither
  the listeners nor the service's processes have changed for the settle time: a reload that keeps
  its sockets, or a port that was named by mistake;
- *partial*: the same, but something that was served is not: ten times the settle time is waited
  for it, since a service may bind one address long after another. Then it is taken for gone (a
  port that a new configuration has dropped), and the others need not wait any longer.

Where the listeners cannot be seen, the command's success is all there is to observe (*unseen*), and
the probes say the rest.
"""

from __future__ import annotations

import enum
from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol

from synplug.model import Endpoint, Listener


class Readiness(enum.Enum):
    """A verdict."""

    NOT_YET = ""
    REPLACED = "replaced"
    SETTLED = "settled"
    PARTIAL = "partial"
    UNSEEN = "unseen"


#: How many settle times are waited for an address that was served, and is not.
_PARTIAL_SETTLES = 10


class Watch(Protocol):
    """Watches a restart: observations in, a verdict out."""

    @property
    def verdict(self) -> Readiness:
        """The last verdict."""

    @property
    def gap_s(self) -> float | None:
        """Seconds for which at least one old address was served by nobody; None: not one."""

    def observe(
        self,
        *,
        now_s: float,
        listeners: Collection[Listener],
        processes: Collection[int],
        succeeded: bool,
    ) -> Readiness:
        """One look.

        :param processes: the service's pids. :param succeeded: the command has exited with 0.
        """

    def missing(self, listeners: Collection[Listener]) -> list[Endpoint]:
        """What the old listeners served, or was asked for if there were none, and nobody serves."""

    def complaint(self, listeners: Collection[Listener]) -> str:
        """What was not there in time."""


class UnseenWatch:
    """For listeners that cannot be seen. Who answers before the command ends may be the old one."""

    gap_s: float | None = None

    def __init__(self) -> None:
        self.verdict = Readiness.NOT_YET

    def observe(
        self,
        *,
        now_s: float,  # noqa: ARG002
        listeners: Collection[Listener],  # noqa: ARG002
        processes: Collection[int],  # noqa: ARG002
        succeeded: bool,
    ) -> Readiness:
        """Whether the command has succeeded is all that counts."""
        self.verdict = Readiness.UNSEEN if succeeded else Readiness.NOT_YET
        return self.verdict

    def missing(self, listeners: Collection[Listener]) -> list[Endpoint]:  # noqa: ARG002
        """Nothing is known."""
        return []

    def complaint(self, listeners: Collection[Listener]) -> str:  # noqa: ARG002
        """The probe was never asked."""
        return "the command had not ended in time, and the readiness check is asked only then"


class ListenerWatch:
    """Watches the listeners of a restart.

    :param old: those that stood before it. :param settle_s: see :class:`ReadyPlan`, as for
        *require_new* and *must_last*.
    """

    def __init__(
        self,
        *,
        endpoints: tuple[Endpoint, ...],
        old: Collection[Listener],
        settle_s: float,
        require_new: bool,
        must_last: bool = False,
    ) -> None:
        self._old = {listener.cookie for listener in old}
        # What has to be served anew: each address of the old ones, or whatever was asked for.
        self._wanted = {
            single for listener in old for single in _singles(listener.endpoint())
        } or set(endpoints)
        self._unserved = {
            endpoint for endpoint in endpoints if not any(o.serves(endpoint) for o in old)
        }
        self._settle_s = settle_s
        self._partial_s = _PARTIAL_SETTLES * settle_s
        self._require_new = require_new
        self._must_last = must_last
        self._last_seen: object = None
        self._changed_at_s = 0.0
        self._gap_from_s: float | None = None
        #: Seconds for which at least one old address was served by nobody; None: there was no gap.
        self.gap_s: float | None = None
        #: The last verdict.
        self.verdict = Readiness.NOT_YET

    def observe(
        self,
        *,
        now_s: float,
        listeners: Collection[Listener],
        processes: Collection[int],
        succeeded: bool,
    ) -> Readiness:
        """One look.

        :param processes: the service's pids. :param succeeded: the command has exited with 0.
        """
        new = [listener for listener in listeners if listener.cookie not in self._old]
        self._note_gap(now_s, listeners)
        seen = (
            frozenset(listener.cookie for listener in listeners),
            frozenset(processes),
            succeeded,
        )
        if seen != self._last_seen:
            self._last_seen, self._changed_at_s = seen, now_s
        is_still = now_s - self._changed_at_s >= self._settle_s
        lasts = is_still or not self._must_last or (succeeded and not self._require_new)
        if lasts and len(new) == len(listeners) and self._covers(new):
            self.verdict = Readiness.REPLACED
        elif succeeded and is_still and not self._require_new and not self.missing(listeners):
            self.verdict = Readiness.SETTLED
        elif succeeded and not self._require_new and self._is_partial(now_s, listeners):
            self.verdict = Readiness.PARTIAL
        else:
            self.verdict = Readiness.NOT_YET
        return self.verdict

    def _covers(self, new: Collection[Listener]) -> bool:
        wanted = self._wanted | self._unserved
        return all(any(listener.serves(endpoint) for listener in new) for endpoint in wanted)

    def missing(self, listeners: Collection[Listener]) -> list[Endpoint]:
        """What the old listeners served, or was asked for if there were none, and nobody serves."""
        return sorted(
            (
                endpoint
                for endpoint in self._wanted
                if not any(listener.serves(endpoint) for listener in listeners)
            ),
            key=str,
        )

    def complaint(self, listeners: Collection[Listener]) -> str:
        """What was not there in time."""
        if not listeners:
            return "the service had no listener in time"
        return (
            "no new listener in time, and the old ones were not still for --settle after the "
            "command's success"
        )

    def _is_partial(self, now_s: float, listeners: Collection[Listener]) -> bool:
        some_are_served = len(self.missing(listeners)) < len(self._wanted)
        waited_s = now_s - self._changed_at_s
        return bool(self._old) and some_are_served and waited_s >= self._partial_s

    def _note_gap(self, now_s: float, listeners: Collection[Listener]) -> None:
        served = not self._old or not self.missing(listeners)  # of a first start there is no gap
        if not served and self._gap_from_s is None:
            self._gap_from_s = now_s
        elif served and self._gap_from_s is not None and self.gap_s is None:
            self.gap_s = now_s - self._gap_from_s


def _singles(endpoint: Endpoint) -> tuple[Endpoint, ...]:
    """An endpoint of both families as one of each."""
    if endpoint.address is not None:
        return (endpoint,)
    return (
        Endpoint(port=endpoint.port, address=IPv4Address(0)),
        Endpoint(port=endpoint.port, address=IPv6Address(0)),
    )
