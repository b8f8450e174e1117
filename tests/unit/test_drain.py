"""Waiting for the old listener's queues and for requests in flight."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from ipaddress import ip_address

import pytest

from synplug.handover.drain import Drain, is_busy
from synplug.handover.plan import DrainPlan
from synplug.kernel.sock_diag import Connection, begun_by
from synplug.model import Endpoint, Flow, HoldSpec, Listener
from synplug.steps import DrainResult
from tests.unit.fakes import HTTP, FakeHold, FakeSockets, World, connection, listener

# --- busy, or not


@pytest.mark.parametrize(
    ("why", "found", "busy"),
    [
        ("answered long ago", connection(), False),
        ("unread bytes", connection(unread=1), True),
        ("unacknowledged bytes", connection(unsent=1), True),
        ("still in an accept queue", connection(accepted=False), True),
        ("received a moment ago", connection(since_received_ms=99, since_sent_ms=5000), True),
        ("sent a moment ago", connection(since_sent_ms=99, since_received_ms=5000), True),
        ("just not a moment ago", connection(since_sent_ms=100, since_received_ms=200), False),
        ("the peer spoke last", connection(since_received_ms=4000, since_sent_ms=5000), True),
        ("we spoke last", connection(since_received_ms=5000, since_sent_ms=4000), False),
        # a tie: the byte counters decide; the SYN is one acknowledged byte
        (
            "a tie, data came, none answered",
            connection(since_sent_ms=5000, since_received_ms=5000, received=10, acked=1),
            True,
        ),
        (
            "a tie, kernel does not count",
            connection(since_sent_ms=5000, since_received_ms=5000, received=10, acked=0),
            True,
        ),
        (
            "a tie, answered",
            connection(since_sent_ms=5000, since_received_ms=5000, received=10, acked=2),
            False,
        ),
        (
            "a tie, nothing ever came",
            connection(since_sent_ms=500, since_received_ms=500, received=0, acked=1),
            False,
        ),
        (
            "a tie, nothing came yet",
            connection(since_sent_ms=499, since_received_ms=499, received=0, acked=1),
            True,
        ),
        (
            "a tie, the server spoke first, and at once",
            connection(since_sent_ms=499, since_received_ms=499, received=0, acked=20),
            False,
        ),
    ],
)
def test_busy(why: str, found: Connection, busy: bool) -> None:
    assert is_busy(found) is busy, why


# --- the wait


class Waited:
    """A drain that is waited for."""

    def __init__(self, *old: Listener, plan: DrainPlan | None = None) -> None:
        self.world = World(0.0)
        self.sockets = FakeSockets(self.world, old)
        self.old = old
        self.endpoints: tuple[Endpoint, ...] = (HTTP,)
        self.plan = plan or DrainPlan(timeout_s=1.0, quiesce_s=1.0)
        self.pauses: list[float] = []
        self.stopped: Callable[[], bool] = lambda: False

    def result(self) -> DrainResult:
        return self.drain().wait(self._stopped)

    def drain(self, mine: Callable[[], Collection[int]] | None = None) -> Drain:
        return Drain(
            mine=mine,
            plan=self.plan,
            endpoints=self.endpoints,
            old=self.old,
            sockets=self.sockets,
            clock=self.world.clock,
            pause=self._pause,
        )

    def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.world.wait(seconds)

    def _stopped(self) -> bool:
        return self.stopped()


def test_empty_queues_take_one_look() -> None:
    waited = Waited(listener(1))
    assert waited.result() == DrainResult()
    assert waited.pauses == [0.001]
    assert waited.sockets.asked == [(HTTP,)]  # handshakes and connections together


def test_a_handshake_that_completes_during_the_look_is_seen() -> None:
    """It was in no queue when the look began, and is no handshake any more later in it."""
    waited = Waited(listener(1), plan=DrainPlan(timeout_s=1.0, quiesce_s=0.0))
    walk = waited.sockets.inbound

    def completes(endpoints: Iterable[Endpoint], *, established: bool = True) -> list[Connection]:
        waited.sockets.inbound = walk  # type: ignore[method-assign]
        waited.sockets.now = [listener(1, accept_queue=1)]
        waited.world.after(0.1, lambda: setattr(waited.sockets, "now", [listener(1)]))
        return walk(endpoints, established=established)

    waited.sockets.inbound = completes  # type: ignore[method-assign]
    assert waited.result().empty
    assert waited.world.now_s >= 0.1


def test_the_first_look_is_not_at_once() -> None:
    """A SYN that was on its way is a handshake by then."""
    waited = Waited(listener(1), plan=DrainPlan(timeout_s=1.0, quiesce_s=0.0))
    waited.world.after(0.0005, lambda: setattr(waited.sockets, "requests", 2))
    waited.world.after(0.1, lambda: setattr(waited.sockets, "requests", 0))
    assert waited.result().empty
    assert waited.world.now_s >= 0.1


def test_it_waits_for_the_accept_queue_and_then_for_request_sockets() -> None:
    waited = Waited(listener(1, accept_queue=5))
    waited.sockets.requests = 1
    waited.world.after(0.2, lambda: setattr(waited.sockets, "now", [listener(1)]))
    waited.world.after(0.4, lambda: setattr(waited.sockets, "requests", 0))
    assert waited.result().empty
    assert waited.world.now_s == pytest.approx(0.4, abs=0.01)


def test_the_queues_of_new_listeners_do_not_matter() -> None:
    waited = Waited(listener(1))
    waited.sockets.now = [listener(1), listener(2, accept_queue=50)]
    assert waited.result().empty
    assert waited.world.now_s < 0.01


def test_what_is_left_after_the_timeout_is_counted() -> None:
    waited = Waited(listener(1, accept_queue=5), listener(2, accept_queue=6))
    result = waited.result()
    assert (result.empty, result.left) == (False, 11)
    assert waited.world.now_s == pytest.approx(1.0, abs=0.01)


def test_no_old_listener_no_wait() -> None:
    waited = Waited()
    waited.sockets.requests = 1
    waited.sockets.established = [connection(unread=1)]
    assert waited.result() == DrainResult()
    assert waited.world.now_s == 0
    assert waited.sockets.asked == []


def test_only_endpoints_with_an_old_listener_are_looked_at() -> None:
    """Not the port: another service may have it at another address."""
    mine = Endpoint(port=80, address=ip_address("10.0.0.1"))
    waited = Waited(listener(1, "10.0.0.1"))
    waited.endpoints = (mine, Endpoint(port=80, address=ip_address("10.0.0.2")), Endpoint(port=81))
    assert waited.result() == DrainResult()
    assert set(waited.sockets.asked) == {(mine,)}


def test_a_timeout_of_0_looks_once() -> None:
    waited = Waited(listener(1, accept_queue=1), plan=DrainPlan(timeout_s=0.0, quiesce_s=0.0))
    assert waited.result().left == 1
    assert waited.world.now_s == 0


def test_quiesce_waits_until_nothing_is_in_flight() -> None:
    waited = Waited(listener(1))
    waited.sockets.established = [connection(), connection(unread=3)]
    waited.world.after(0.3, lambda: setattr(waited.sockets, "established", [connection()]))
    result = waited.result()
    assert (result.quiet, result.busy) == (True, 0)
    assert waited.world.now_s == pytest.approx(0.3, abs=0.01)


def test_quiesce_has_a_time_of_its_own() -> None:
    waited = Waited(listener(1, accept_queue=1), plan=DrainPlan(timeout_s=0.5, quiesce_s=0.25))
    waited.sockets.established = [connection(unread=3), connection(unsent=1), connection()]
    result = waited.result()
    assert (result.empty, result.left, result.quiet, result.busy) == (False, 1, False, 2)
    assert waited.world.now_s == pytest.approx(0.75, abs=0.01)


def test_quiesce_off_looks_at_no_connection() -> None:
    waited = Waited(listener(1), plan=DrainPlan(quiesce_s=0.0))
    waited.sockets.established = [connection(unread=3)]
    assert waited.result().quiet
    assert waited.world.log == ["walk the handshakes"]


def test_it_ends_when_it_has_lost_its_point() -> None:
    waited = Waited(listener(1, accept_queue=1))
    waited.sockets.established = [connection(unread=3)]
    waited.stopped = lambda: waited.world.now_s >= 0.1
    result = waited.result()
    assert (result.left, result.busy) == (1, 1)
    assert waited.world.now_s == pytest.approx(0.1, abs=0.01)


def test_a_look_that_costs_much_is_followed_by_a_longer_pause() -> None:
    """At most a fifth of a processor is taken from the service that is to finish."""
    waited = Waited(listener(1, accept_queue=1), plan=DrainPlan(quiesce_s=0.0))
    cheap = waited.sockets.listeners

    def dear(endpoints: object = None) -> list[Listener]:
        waited.world.now_s += 0.02
        return cheap([HTTP])

    waited.sockets.listeners = dear  # type: ignore[method-assign]
    waited.result()
    assert waited.pauses[1] == pytest.approx(0.08)
    assert waited.world.now_s <= 1.05


def test_who_is_not_finished_is_looked_up_and_nobody_else() -> None:
    """A walk reads the whole table of the kernel; a look-up does not."""
    waited = Waited(listener(1))
    waited.sockets.established = [connection(), connection(unread=3, inode=9001)]
    idle = [connection(), connection(inode=9001)]
    waited.world.after(0.05, lambda: setattr(waited.sockets, "established", idle))
    assert waited.result().quiet
    assert waited.world.log[0] == "walk all connections"
    assert set(waited.world.log[1:]) == {"look 1 connections up"}
    assert set(waited.pauses) == {0.001}


def test_who_may_have_become_busy_meanwhile_is_not_forgotten() -> None:
    """Where the walk is 0.1 s old, whoever was idle then is asked again before all is quiet."""
    waited = Waited(listener(1))
    waited.sockets.established = [connection(), connection(unread=3, inode=9001)]
    swapped = [connection(unread=4), connection(inode=9001)]
    waited.world.after(0.2, lambda: setattr(waited.sockets, "established", swapped))
    waited.world.after(0.4, lambda: setattr(waited.sockets, "established", [connection()]))
    assert waited.result().quiet
    assert waited.world.now_s == pytest.approx(0.4, abs=0.01)
    assert waited.world.log.count("walk all connections") == 3


def test_many_who_are_not_finished_are_walked() -> None:
    waited = Waited(listener(1))
    waited.sockets.established = [connection(unread=3, inode=9001 + n) for n in range(65)]
    waited.world.after(0.05, lambda: setattr(waited.sockets, "established", []))
    assert waited.result().quiet
    assert set(waited.world.log) == {"walk all connections"}


def test_a_dear_walk_is_followed_by_cheap_look_ups_at_once() -> None:
    waited = Waited(listener(1))
    waited.sockets.established = [connection(unread=3)]
    walk = waited.sockets.inbound

    def dear(endpoints: Iterable[Endpoint], *, established: bool = True) -> list[Connection]:
        waited.world.now_s += 0.02
        return walk(endpoints, established=established)

    waited.sockets.inbound = dear  # type: ignore[method-assign]
    waited.world.after(0.03, lambda: setattr(waited.sockets, "established", [connection()]))
    assert waited.result().quiet
    assert waited.world.now_s == pytest.approx(0.03, abs=0.005)


def test_other_generations_connections_are_not_waited_for() -> None:
    """Those in its accept queue, neither: ours were accepted when our queues had run empty."""
    waited = Waited(listener(1))
    ours = connection(unread=1, inode=501)
    theirs = [connection(unread=1, inode=601), connection(accepted=False)]
    waited.sockets.established = [ours, *theirs]
    waited.world.after(0.05, lambda: setattr(waited.sockets, "established", theirs))
    assert waited.drain(mine=lambda: {501}).wait(lambda: False).quiet
    assert waited.world.now_s == pytest.approx(0.05, abs=0.01)


# --- the look ahead


class Ahead:
    """A drain that looks ahead, before a hold that notes who begins to connect meanwhile."""

    def __init__(self, waited: Waited) -> None:
        self.waited = waited
        self.hold = FakeHold(waited.world, HoldSpec(endpoints=(HTTP,), run_id="0123abcd"))
        self._drain = waited.drain()

    def result(self, *, observed: list[Connection] | None = None, able: bool = True) -> DrainResult:
        self.hold.can_observe, self.hold.observed = able, observed
        self._drain.look_ahead(self.hold)
        self.hold.hold()
        return self._drain.wait(lambda: False)

    @property
    def looks(self) -> list[str]:
        """What was done, in order."""
        return self.waited.world.log


def test_who_is_unfinished_is_seen_before_anybody_waits() -> None:
    waited = Waited(listener(1))
    ahead = Ahead(waited)
    assert ahead.result(observed=[]) == DrainResult()
    assert ahead.looks == ["observe", "walk all connections", "who has begun", "hold"]
    assert waited.pauses == [0.001], "what had passed the rule before has its request socket"


def test_who_began_to_connect_meanwhile_is_looked_up() -> None:
    waited = Waited(listener(1))
    ahead = Ahead(waited)
    waited.world.after(0.001, lambda: setattr(waited.sockets, "requests", 0))
    walk = waited.sockets.inbound

    def walked(endpoints: Iterable[Endpoint], *, established: bool = True) -> list[Connection]:
        found = walk(endpoints, established=established)
        waited.sockets.requests = 1  # it came behind our back
        waited.world.after(0.05, lambda: setattr(waited.sockets, "requests", 0))
        return found

    waited.sockets.inbound = walked  # type: ignore[method-assign]
    assert ahead.result(observed=[begun_by(Flow(bytes(12)), 2)]).empty
    assert waited.world.now_s == pytest.approx(0.05, abs=0.01)
    assert ahead.looks.count("walk all connections") == 1


def test_who_began_to_connect_is_looked_up_before_anybody_waits() -> None:
    """Who is finished by then needs no look any more; who is not, is looked at again."""
    waited = Waited(listener(1))
    walk = waited.sockets.inbound

    def walked(endpoints: Iterable[Endpoint], *, established: bool = True) -> list[Connection]:
        found = walk(endpoints, established=established)
        waited.sockets.requests = 1
        return found

    waited.sockets.inbound = walked  # type: ignore[method-assign]
    ahead = Ahead(waited)
    ahead.hold.begun_before = [
        begun_by(Flow(bytes([number]) + bytes(11)), 2) for number in range(30)
    ]
    waited.world.after(0.05, lambda: setattr(waited.sockets, "requests", 0))
    assert ahead.result(observed=[]).empty
    asked, before, hold, again = ahead.looks[2:6]
    assert (asked, before, hold) == ("who has begun", "look 30 connections up", "hold")
    assert again == "look 1 connections up"
    assert waited.world.now_s == pytest.approx(0.05, abs=0.01)


def test_who_has_become_busy_long_after_the_look_ahead_is_waited_for() -> None:
    """A keep-alive connection that was idle then, and has a request now."""
    waited = Waited(listener(1, accept_queue=1))
    ahead = Ahead(waited)
    waited.world.after(0.4, lambda: setattr(waited.sockets, "established", [connection(unread=1)]))
    waited.world.after(0.6, lambda: setattr(waited.sockets, "now", [listener(1)]))
    waited.world.after(0.9, lambda: setattr(waited.sockets, "established", [connection()]))
    assert ahead.result(observed=[]).quiet
    assert waited.world.now_s == pytest.approx(0.9, abs=0.02)


def test_who_was_busy_at_the_look_ahead_is_waited_for() -> None:
    waited = Waited(listener(1))
    waited.sockets.established = [connection(unread=1)]
    waited.world.after(0.05, lambda: setattr(waited.sockets, "established", [connection()]))
    ahead = Ahead(waited)
    assert ahead.result(observed=[]).quiet
    assert waited.world.now_s == pytest.approx(0.05, abs=0.01)
    assert ahead.looks.count("walk all connections") == 1


@pytest.mark.parametrize(
    ("able", "looks"),
    [
        (
            True,
            ["observe", "walk all connections", "who has begun", "hold", "walk all connections"],
        ),
        (False, ["observe", "hold", "walk all connections"]),
    ],
)
def test_where_not_all_are_known_all_are_walked_while_they_are_held(
    able: bool, looks: list[str]
) -> None:
    """Too many came meanwhile, or the backend cannot see them."""
    waited = Waited(listener(1))
    ahead = Ahead(waited)
    ahead.hold.begun_before = None
    assert ahead.result(observed=None, able=able) == DrainResult()
    assert ahead.looks == looks
    assert waited.pauses[-1] == 0.001


def test_without_an_old_listener_nobody_is_observed() -> None:
    ahead = Ahead(Waited())
    assert ahead.result() == DrainResult()
    assert ahead.looks == ["hold"]


def test_where_a_walk_is_dear_more_are_looked_up() -> None:
    """Two hundred look-ups cost less than a walk of 20 ms."""
    waited = Waited(listener(1))
    walk = waited.sockets.inbound

    def dear(endpoints: Iterable[Endpoint], *, established: bool = True) -> list[Connection]:
        waited.world.now_s += 0.02
        return walk(endpoints, established=established)

    waited.sockets.inbound = dear  # type: ignore[method-assign]
    ahead = Ahead(waited)
    begun = [begun_by(Flow(bytes([number]) + bytes(11)), 2) for number in range(200)]
    assert ahead.result(observed=begun) == DrainResult()
    assert ahead.looks[-1] == "look 200 connections up"
