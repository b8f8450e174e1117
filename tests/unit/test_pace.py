"""How fast held connections are let go."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synplug.holding.pace import Pacer, room_of
from synplug.model import Endpoint, Listener, ReleaseMode
from tests.unit.fakes import HTTP, World, listener


class Listening:
    """Listeners with a backlog, and what waits there."""

    def __init__(self, *now: Listener, requests: int = 0) -> None:
        self.now = list(now)
        self.requests = requests
        self.asked: list[tuple[Endpoint, ...]] = []

    def listeners(self, endpoints: Iterable[Endpoint] | None = None) -> list[Listener]:
        wanted = list(endpoints or ())
        return [own for own in self.now if any(own.serves(endpoint) for endpoint in wanted)]

    def request_sockets(self, endpoints: Iterable[Endpoint]) -> int:
        self.asked.append(tuple(endpoints))
        return self.requests


def pacer(
    rooms: Listening,
    world: World | None = None,
    *endpoints: Endpoint,
    mode: ReleaseMode = ReleaseMode.PACED,
) -> Pacer:
    world = world or World(0.0)
    return Pacer(endpoints=endpoints or (HTTP,), mode=mode, rooms=rooms, clock=world.clock)


# --- room


@pytest.mark.parametrize(
    ("listeners", "requests", "free", "total"),
    [
        ([listener(1, backlog=100)], 0, 100, 100),
        ([listener(1, backlog=100, accept_queue=30)], 20, 50, 100),
        ([listener(1, backlog=100, accept_queue=100)], 0, 0, 100),
        ([listener(1, backlog=100, accept_queue=101)], 50, 0, 100),
        ([listener(1, backlog=0)], 0, 1, 1),
        # a SO_REUSEPORT set: half of what the fullest would allow all of them
        ([listener(1, backlog=100), listener(2, backlog=100)], 0, 100, 100),
        ([listener(n, backlog=100) for n in range(4)], 0, 200, 200),
        ([listener(1, backlog=100, accept_queue=90), listener(2, backlog=100)], 0, 10, 100),
        ([listener(n, backlog=b) for n, b in enumerate((10, 99, 99, 99))], 5, 15, 20),
    ],
)
def test_room(listeners: list[Listener], requests: int, free: int, total: int) -> None:
    assert room_of(listeners, requests)[:2] == (free, total)


# --- steps


def test_what_fits_into_half_of_the_backlog_goes_at_once() -> None:
    paced = pacer(Listening(listener(1, backlog=100)))
    assert paced.step(50) is None
    assert (paced.steps, paced.limit) == (0, "backlog of 100")


def test_what_does_not_fit_goes_in_steps_of_the_room() -> None:
    rooms = Listening(listener(1, backlog=100))
    paced = pacer(rooms)
    assert paced.step(51) == 51
    assert paced.step(1000) == 100
    rooms.now = [listener(1, backlog=100, accept_queue=60)]
    rooms.requests = 15
    assert paced.step(900) == 25
    assert paced.steps == 3
    assert paced.limit == "backlog of 100"


def test_a_full_listener_gets_nothing_and_that_is_no_step() -> None:
    rooms = Listening(listener(1, backlog=100, accept_queue=100))
    paced = pacer(rooms)
    assert paced.step(10) == 0
    assert paced.steps == 0


def test_it_opens_only_when_half_of_the_backlog_is_free() -> None:
    """After the opening nobody counts: half of the room is for those who come then."""
    rooms = Listening(listener(1, backlog=100, accept_queue=51))
    paced = pacer(rooms)
    assert paced.step(1) == 1
    rooms.now = [listener(1, backlog=100, accept_queue=50)]
    assert paced.step(26) == 26
    assert paced.step(25) is None


def test_nobody_listens_nothing_to_wait_for() -> None:
    assert pacer(Listening()).step(1000) is None


def test_the_endpoint_with_the_least_room_sets_the_pace() -> None:
    rooms = Listening(listener(1, port=80, backlog=1000), listener(2, port=81, backlog=10))
    paced = pacer(rooms, None, Endpoint(port=80), Endpoint(port=81))
    assert paced.step(100) == 10


def test_a_port_that_nobody_serves_does_not_count() -> None:
    rooms = Listening(listener(1, port=80, backlog=100))
    assert pacer(rooms, None, Endpoint(port=80), Endpoint(port=81)).step(100) == 100


def test_request_sockets_are_counted_from_the_second_step_on() -> None:
    """Before the first release there are none of ours, and counting them costs."""
    rooms = Listening(listener(1, backlog=10), requests=4)
    paced = pacer(rooms)
    assert paced.step(100) == 10
    assert rooms.asked == []
    assert paced.step(90) == 6
    assert rooms.asked == [(HTTP,)]


def test_a_burst_is_not_paced() -> None:
    rooms = Listening(listener(1, backlog=1))
    paced = pacer(rooms, mode=ReleaseMode.BURST)
    assert paced.step(100_000) is None
    assert paced.steps == 0


# --- debt


def test_newcomers_that_outpace_the_service_end_the_pacing() -> None:
    world, rooms = World(0.0), Listening(listener(1, backlog=10))
    paced = pacer(rooms, world)
    assert paced.step(100) == 10
    world.now_s = 0.5
    assert paced.step(100) == 10
    world.now_s = 0.501
    assert paced.step(100) is None
    assert "newcomers outpaced" in paced.limit


def test_progress_starts_the_window_anew() -> None:
    world, rooms = World(0.0), Listening(listener(1, backlog=10))
    paced = pacer(rooms, world)
    for waiting in range(100, 50, -1):
        assert paced.step(waiting) == 10
        world.now_s += 0.4


def test_a_service_that_accepts_nothing_yet_is_no_debt() -> None:
    """It has not been given a step that it could have taken."""
    world = World(0.0)
    paced = pacer(Listening(listener(1, backlog=10, accept_queue=10)), world)
    for _ in range(20):
        assert paced.step(100) == 0
        world.now_s += 0.1


# --- against a model of a listener


@given(
    backlog=st.integers(1, 300),
    waiting=st.integers(0, 3000),
    accepts=st.integers(1, 50),
)
def test_a_listener_that_accepts_is_never_overrun_and_all_get_in(
    backlog: int, waiting: int, accepts: int
) -> None:
    world, rooms = World(0.0), Listening(listener(1, backlog=backlog))
    paced = pacer(rooms, world)
    queued = served = 0
    total = waiting
    for _ in range(total * 2 + 10):
        room = paced.step(waiting)
        going = waiting if room is None else room
        assert 0 <= going <= waiting
        waiting -= going
        queued += going
        assert queued <= backlog
        taken = min(queued, accepts)
        queued, served = queued - taken, served + taken
        rooms.now = [listener(1, backlog=backlog, accept_queue=queued)]
        world.now_s += 0.001
        if room is None:
            break
    assert waiting == 0
    assert served + queued == total


# --- handshakes that nobody completes


def test_handshakes_that_stay_do_not_hold_back_those_who_wait() -> None:
    """As a flood with forged sources leaves them; the rest goes before the deadline."""
    world = World(0.0)
    rooms = Listening(listener(1, backlog=100), requests=0)
    paced = pacer(rooms, world)
    assert paced.step(5000) == 100
    rooms.requests = 100
    while world.now_s < 1.5:
        assert paced.step(4900) == 0
        world.wait(0.1)
    world.wait(0.1)
    assert paced.step(4900) is None
    assert "did not complete their handshakes" in paced.limit


def test_a_service_that_does_not_accept_is_waited_for() -> None:
    """The same room, filled by what the service has to accept: that is its own pace."""
    world = World(0.0)
    rooms = Listening(listener(1, backlog=100), requests=0)
    paced = pacer(rooms, world)
    assert paced.step(5000) == 100
    rooms.now = [listener(1, backlog=100, accept_queue=100)]
    while world.now_s < 8:
        assert paced.step(4900) == 0
        world.wait(0.1)


def test_slow_handshakes_are_waited_for_as_long_as_some_complete() -> None:
    world = World(0.0)
    rooms = Listening(listener(1, backlog=100), requests=0)
    paced = pacer(rooms, world)
    waiting = 5000 - (paced.step(5000) or 0)
    for _ in range(20):
        rooms.requests = 90
        released = paced.step(waiting)
        assert released == 10
        waiting -= released
        world.wait(0.3)
