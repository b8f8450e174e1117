"""The one interface of everything that can hold.

A backend lives in the keeper and nowhere else. It is driven in this order::

    load_libraries() → arm() → { absorb() }* → [ observe() → { absorb() }* ] → hold()
    → { absorb(), let_through(), release_next() }* → open() → confirm_empty() → remove() → close()

``close()`` alone must be safe at any point: it undoes what the kernel does not undo by itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping

from synplug.holding.waiting import Lane
from synplug.kernel.capabilities import NET_ADMIN, NET_RAW
from synplug.model import Endpoint, Flow, HoldCounts

#: What a keeper needs that does not know its backend yet.
ANY_BACKEND = frozenset({NET_ADMIN, NET_RAW})


class Backend(ABC):
    """Keeps SYNs, and lets them go."""

    #: What the report and the ledger call it.
    name: str
    #: The capabilities that it needs from :meth:`hold` on.
    capabilities: frozenset[int] = ANY_BACKEND
    #: Whether :meth:`release_next` can let some go and not others.
    can_pace: bool = True
    #: Whether it can let SYNs pass, and know whose they were.
    can_observe: bool = False
    #: How long :meth:`hold`, :meth:`open` and :meth:`remove` may wait for somebody else's lock.
    patience_s: float = 0.0
    #: Whether something stays in the kernel when its keeper is killed.
    outlives_its_keeper: bool = False
    #: Whether it holds in netfilter queues, which the removal of another run's table would flush.
    uses_queues: bool = True
    #: Whether :meth:`remove` drops what other netfilter queues of the network namespace hold.
    flushes_queues: bool = True

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the operator should know of others who interfered."""
        return ()

    @abstractmethod
    def traces(self) -> dict[str, str]:
        """What will stand in the kernel, by kind and name: known before it does."""

    def load_libraries(self) -> None:  # noqa: B027 -- most need nothing
        """Import what :meth:`clean_up_after_death` needs, unless making the backend has.

        Who calls that may have too few capabilities to read it then.
        """

    @abstractmethod
    def arm(self) -> None:
        """Do all that can fail. Nothing is held yet; a packet's way may change, not its fate."""

    def observe(self, go_on: Callable[[], None] = lambda: None) -> None:
        """One atomic change: from here on SYNs are looked at, and pass.

        As :meth:`observed`, called only where :attr:`can_observe`; *go_on* as of :meth:`hold`.
        """
        raise NotImplementedError

    def observed(self) -> list[tuple[str, int]] | None:
        """Whose SYNs have passed since, as hexadecimal flows, and in by which device; told once.

        None: not known of all, and never again.
        """
        return None

    @abstractmethod
    def hold(self, go_on: Callable[[], None] = lambda: None) -> None:
        """One atomic change: from here on SYNs wait.

        :param go_on: is called just before, when no lock is waited for any more.
        """

    @abstractmethod
    def fileno(self) -> int:
        """A descriptor that is readable when something arrived for :meth:`absorb`."""

    @abstractmethod
    def absorb(self) -> bool:
        """Take note of what has arrived: dedupe, count, let through. Bounded in time.

        :returns: whether there may be more.
        """

    @abstractmethod
    def let_through(self, flow: Flow) -> None:
        """Let the SYN of this connection pass, whether it waits already or is still to come."""

    def may_hold_local(self) -> bool:
        """Whether a SYN that was sent on this host may wait; False: certainly none does."""
        return True

    @abstractmethod
    def waiting(self) -> int:
        """How many connections wait."""

    def waiting_by_lane(self) -> dict[Lane, int]:
        """The same by lane: a destination port, unless that has been divided.

        As :meth:`divide` and :meth:`release_next`, called only where :attr:`can_pace`.
        """
        raise NotImplementedError

    def divide(self, port: int, endpoints: Iterable[Endpoint]) -> None:
        """From here on each of these endpoints, which have an address, is a lane of its own.

        The port's own keeps the others; no port is divided twice.
        """
        raise NotImplementedError(f"opens as a whole, not port {port} by {endpoints}")

    def release_next(self, lane: Lane, limit: int) -> int:
        """Let go up to *limit* connections of a lane in the order of their arrival.

        :returns: how many.
        """
        raise NotImplementedError(f"opens as a whole, not {limit} of {lane}")

    @abstractmethod
    def check_for_loss(self) -> int:
        """Notice packets that the kernel no longer holds though no verdict was given for them.

        Somebody removed a netfilter hook, or a device went down; returns how many are newly
        gone. Their clients retransmit, and then wait here again.
        """

    @abstractmethod
    def open(self, go_on: Callable[[], None] = lambda: None) -> int:
        """End the hold: nothing new waits, and all that waits is let go.

        :param go_on: is called again and again if that takes long, as a sign of life.
        :returns: how many were let go at once.
        """

    @abstractmethod
    def confirm_empty(self, go_on: Callable[[], None] = lambda: None) -> None:
        """Verify that nothing waits any more, packets that were on their way included.

        :param go_on: is called again and again if that takes long, as a sign of life.
        :raises ReleaseError: something does.
        """

    @abstractmethod
    def obstacle(self) -> str:
        """Why :meth:`remove` would hurt somebody else right now, in words; empty: it would not.

        Asked only where it :attr:`flushes_queues`.
        """

    @abstractmethod
    def remove(self) -> None:
        """Remove the empty rest from the kernel, and verify that it is gone.

        :raises ReleaseError: it is not.
        """

    @abstractmethod
    def counts(self) -> HoldCounts:
        """What became of the SYNs so far."""

    @abstractmethod
    def close(self) -> None:
        """Give everything up, in whatever state it is. Never raises for what is gone already.

        :raises SynplugError: something is left that the kernel does not remove by itself.
        """

    @abstractmethod
    def clean_up_after_death(self, traces: Mapping[str, str]) -> list[str]:
        """Remove what a dead keeper of the same run left. Called on a backend never armed.

        :param traces: what that one's :meth:`traces` said.
        :returns: what was removed, in words.
        """
