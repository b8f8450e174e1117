"""How fast held connections are let go."""

from __future__ import annotations

import errno
import json
import random
from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synplug.errors import KernelError
from synplug.holding import paced as paced_module
from synplug.holding.nfqueue import QueueBackend
from synplug.holding.pace import Pacer, at_once
from synplug.holding.paced import Fitting, Sighting, let_go_in_steps, why_hurry
from synplug.holding.room import room_of
from synplug.holding.waiting import Lane
from synplug.model import Endpoint, HoldSpec, Hook, Listener, ReleaseMode
from synplug.record import replace
from tests.unit.fakes import HTTP, World, listener


class Listening:
    """Listeners with a backlog, and what waits there."""

    def __init__(self, *now: Listener, requests: int = 0) -> None:
        self.now = list(now)
        self.requests = requests
        self.asked: list[tuple[Endpoint, ...]] = []
        self.left_out: list[tuple[Endpoint, ...]] = []

    def listeners(self, endpoints: Iterable[Endpoint] | None = None) -> list[Listener]:
        wanted = list(endpoints or ())
        return [own for own in self.now if any(own.serves(endpoint) for endpoint in wanted)]

    def request_sockets(self, endpoints: Iterable[Endpoint], but: Iterable[Endpoint] = ()) -> int:
        self.asked.append(tuple(endpoints))
        self.left_out.append(tuple(but))
        return self.requests


def pacer(
    rooms: Listening,
    world: World | None = None,
    *endpoints: Endpoint,
    mode: ReleaseMode = ReleaseMode.PACED,
    syn_limit: int = 0,
) -> Pacer:
    world = world or World(0.0)
    return Pacer(
        endpoints=endpoints or (HTTP,),
        mode=mode,
        rooms=rooms,
        clock=world.clock,
        divide=never_divided,
        syn_limit=syn_limit,
    )


def never_divided(port: int, endpoints: Iterable[Endpoint]) -> None:
    raise AssertionError(f"port {port} has been divided by {endpoints}")


def step(paced: Pacer, waiting: int) -> int | None:
    """How many of those who wait for port 80 may go."""
    released = paced.step({80: waiting})
    return None if released is None else released[80]


# --- room


@pytest.mark.parametrize(
    ("listeners", "requests", "free", "total"),
    [
        ([listener(1, backlog=100)], 0, 100, 100),
        ([listener(1, backlog=100, accept_queue=30)], 20, 50, 100),
        ([listener(1, backlog=100, accept_queue=100)], 0, 0, 100),
        ([listener(1, backlog=100, accept_queue=101)], 50, 0, 100),
        ([listener(1, backlog=0)], 0, 1, 1),
        # a SO_REUSEPORT set: some socket gets more than its share, by chance
        ([listener(1, backlog=100), listener(2, backlog=100)], 0, 140, 140),
        ([listener(n, backlog=100) for n in range(4)], 0, 260, 260),
        ([listener(1, backlog=100, accept_queue=90), listener(2, backlog=100)], 0, 10, 140),
        ([listener(n, backlog=b) for n, b in enumerate((10, 99, 99, 99))], 5, 6, 11),
        # as many as fit into one always fit, whichever gets them
        ([listener(n, backlog=5) for n in range(2)], 0, 5, 5),
        # each address has its own: who comes may all want the same one
        ([listener(1, "10.0.0.1", backlog=100), listener(2, "10.0.0.2", backlog=50)], 0, 50, 50),
        ([listener(n, f"10.0.0.{n}", backlog=128) for n in range(1, 9)], 0, 128, 128),
        (
            [
                listener(1, "10.0.0.1", backlog=100, accept_queue=30),
                listener(2, "10.0.0.2", backlog=80),
            ],
            0,
            70,
            80,
        ),
        # so has each device that one is bound to
        ([replace(listener(n, backlog=100), device=n) for n in (1, 2)], 0, 100, 100),
        # those of IPv4 and of IPv6 are two sets
        ([listener(n, ("0.0.0.0", "::")[n % 2], backlog=100) for n in range(4)], 0, 140, 140),
    ],
)
def test_room(listeners: list[Listener], requests: int, free: int, total: int) -> None:
    assert room_of(listeners, requests)[:2] == (free, total)


@pytest.mark.parametrize("members", [2, 4, 8, 16])
@pytest.mark.parametrize("backlog", [5, 128, 511])
def test_no_member_of_a_group_gets_more_than_it_has_room_for(members: int, backlog: int) -> None:
    """A hash spreads them; the kernel takes one more than the backlog (sk_acceptq_is_full)."""
    chance = random.Random(4711)
    free = room_of([listener(n, backlog=backlog) for n in range(members)], 0).free
    for _ in range(300):
        got = Counter(chance.randrange(members) for _ in range(free))
        assert max(got.values()) <= backlog + 1


def test_without_syn_cookies_handshakes_have_less_room() -> None:
    one = listener(1, backlog=511, accept_queue=20)
    assert room_of([one], 0, syn_limit=48)[:2] == (28, 48)
    assert room_of([one], 0, syn_limit=4096)[:2] == (491, 511)
    paced = Pacer(
        endpoints=(HTTP,),
        mode=ReleaseMode.PACED,
        rooms=Listening(one),
        clock=World(0.0).clock,
        divide=never_divided,
        syn_limit=48,
    )
    assert step(paced, 300) == 28
    assert paced.limit.startswith("48 handshakes, by net.ipv4.tcp_max_syn_backlog")


def test_a_member_that_hangs_at_the_limit_of_handshakes_does_not_stop_the_others() -> None:
    """Without SYN cookies it is never given as many as its backlog takes."""
    world = World(0.0)
    rooms = Listening(
        listener(1, backlog=511, accept_queue=96), *(listener(n, backlog=511) for n in (2, 3, 4))
    )
    paced = pacer(rooms, world, syn_limit=96)
    assert step(paced, 1000) == 0
    world.now_s += 0.6
    assert step(paced, 1000) == room_of(rooms.now[1:], 0, syn_limit=96).free > 0
    assert "a listener that accepts nothing was left out" in paced.limit


def test_a_member_that_accepts_nothing_does_not_stop_the_others() -> None:
    world = World(0.0)
    stuck = listener(1, backlog=100, accept_queue=101)
    rooms = Listening(stuck, *(listener(n, backlog=100) for n in (2, 3, 4)))
    paced = pacer(rooms, world)
    assert step(paced, 1000) == 0
    world.now_s += 0.6
    assert step(paced, 1000) == room_of(rooms.now[1:], 0).free
    assert "a listener that accepts nothing was left out" in paced.limit


def test_a_service_that_is_full_altogether_is_waited_for() -> None:
    world = World(0.0)
    rooms = Listening(*(listener(n, backlog=100, accept_queue=101) for n in (1, 2)))
    paced = pacer(rooms, world)
    for _ in range(3):
        assert step(paced, 1000) == 0
        world.now_s += 0.4
    assert "left out" not in paced.limit


# --- steps


def test_what_fits_into_half_of_the_backlog_goes_at_once() -> None:
    paced = pacer(Listening(listener(1, backlog=100)))
    assert step(paced, 50) is None
    assert (paced.steps, paced.limit) == (0, "")


@given(
    waiting=st.integers(0, 5000),
    backlogs=st.lists(st.integers(1, 5000), min_size=1, max_size=5),
    queued=st.integers(0, 400),
    syn_limit=st.sampled_from([0, 96, 192]),
)
def test_the_run_finds_the_same_to_fit_by_what_it_has_seen(
    waiting: int, backlogs: list[int], queued: int, syn_limit: int
) -> None:
    """So the keeper need not look: it opens where its first step would be to open."""
    seen = [
        listener(number, backlog=backlog, accept_queue=min(queued, backlog))
        for number, backlog in enumerate(backlogs, 1)
    ]
    paced = Pacer(
        endpoints=(HTTP,),
        mode=ReleaseMode.PACED,
        rooms=Listening(*seen),
        clock=World(0.0).clock,
        divide=never_divided,
        syn_limit=syn_limit,
    )
    fits = waiting <= at_once((HTTP,), seen, syn_limit=syn_limit)[80]
    assert fits == (paced.step({80: waiting}) is None)


def test_nobody_fits_where_nobody_was_seen() -> None:
    """Each port has its own listeners, and room is theirs."""
    other = Endpoint(port=81)
    found = at_once((HTTP, other), [listener(1, backlog=1000)])
    assert found == {80: 500, 81: 0}


def test_what_the_run_has_seen_counts_for_a_moment() -> None:
    spec = HoldSpec(endpoints=(HTTP,), run_id="0123abcd")
    fitting = Fitting()
    assert not fitting.has_room({80: 0}, 0.0), "nothing is known"
    seen = Sighting([listener(1, backlog=1000)], 7.0)
    fitting.hear(json.loads(json.dumps(Fitting.to_wire(spec, seen, 0))))
    assert fitting.has_room({80: 256}, 7.001)
    assert not fitting.has_room({80: 257}, 7.001), "a look takes less than they do"
    assert not fitting.has_room({80: 1, 0: 1}, 7.001), "whose that is cannot be read"
    assert not fitting.has_room({80: 50}, 7.01), "it may be another one by now"
    fitting.hear(Fitting.to_wire(spec, Sighting([listener(1, backlog=100)], 7.0), 0))
    assert fitting.has_room({80: 50}, 7.001)
    assert not fitting.has_room({80: 51}, 7.001), "half of the room is the newcomers'"
    fitting.hear({"event": "open"})
    assert not fitting.has_room({80: 1}, 7.001)
    forwarded = replace(spec, hook=Hook.FORWARD)
    assert Fitting.to_wire(forwarded, seen, 0) == {}, "this host's are not its own"
    assert Fitting.to_wire(spec, Sighting(), 0) == {}


class Waiting(QueueBackend):
    """Some wait, and whenever somebody is let go others come; None: nobody any more."""

    def __init__(self, now: int, *come: int) -> None:
        self.now: dict[Lane, int] = {80: now, 0: 0}
        self.come, self.log = list(come), list[int]()

    can_pace = True

    def absorb(self) -> bool:
        if self.log and self.come:
            self.now[80] += self.come.pop(0)
        return False

    def waiting_by_lane(self) -> dict[Lane, int]:
        return dict(self.now)

    def release_next(self, lane: Lane, limit: int) -> int:
        self.now[lane] -= limit
        self.log.append(limit)
        return limit


@pytest.mark.parametrize(
    ("backend", "mode", "gone"),
    [
        (Waiting(30, 3, 0), ReleaseMode.PACED, [30, 3]),
        (Waiting(30, 9, 8, 7, 6), ReleaseMode.PACED, [30, 9, 8]),
        (Waiting(0), ReleaseMode.PACED, []),
        (Waiting(30), ReleaseMode.BURST, []),
    ],
)
def test_who_comes_while_all_fit_stays_behind_them(
    backend: Waiting, mode: ReleaseMode, gone: list[int]
) -> None:
    """They go before the rule is taken out, and then those who came meanwhile; not for ever."""
    spec = HoldSpec(endpoints=(HTTP,), run_id="0123abcd", release=mode)
    fitting = Fitting()
    fitting.hear(Fitting.to_wire(spec, Sighting([listener(1, backlog=1000)], 7.0), 0))
    paced = let_go_in_steps(
        backend,
        spec,
        fitting=fitting,
        clock=lambda: 7.001,
        why_over=lambda: "",
        turn=lambda _ms: None,
    )
    assert backend.log == gone
    assert (paced.steps, paced.remarks) == (0, ())


@pytest.mark.parametrize(
    ("left_s", "is_asked", "words"),
    [
        (0.0, False, "500 SYNs that still waited for room at the listeners were let go at once, "
         "since --max-hold was over"),
        (9.0, True, "since that was asked for"),
        (9.0, False, ""),
    ],
)  # fmt: skip
def test_who_had_to_go_before_there_was_room_is_told(
    monkeypatch: pytest.MonkeyPatch, left_s: float, is_asked: bool, words: str
) -> None:
    """Nothing else says so: the release was asked for, and its end is an end."""
    full = Listening(listener(1, backlog=100, accept_queue=100))
    monkeypatch.setattr(full, "close", lambda: None, raising=False)
    monkeypatch.setattr(paced_module, "SocketDiagnostics", lambda: full)
    backend, turns = Waiting(500), list[int]()
    backend.waiting = lambda: backend.now[80]  # type: ignore[method-assign]

    def turn(_ms: int | None) -> None:
        turns.append(1)
        if not words:
            full.now = [listener(1, backlog=1000)]

    paced = let_go_in_steps(
        backend,
        HoldSpec(endpoints=(HTTP,), run_id="0123abcd"),
        fitting=Fitting(),
        clock=lambda: 7.0,
        why_over=lambda: why_hurry(left_s, is_asked) if len(turns) > 2 else "",
        turn=turn,
    )
    assert paced.steps == 0
    if not words:
        assert (paced.remarks, paced.limit) == ((), "")
        return
    (told,) = paced.remarks
    assert words in told
    assert paced.limit == "backlog of 100"
    at_once = let_go_in_steps(
        backend,
        HoldSpec(endpoints=(HTTP,), run_id="0123abcd"),
        fitting=Fitting(),
        clock=lambda: 7.0,
        why_over=lambda: why_hurry(left_s, is_asked),
        turn=turn,
    )
    assert at_once.remarks == (), "a hold that ends by its deadline says so itself"


@pytest.mark.parametrize(
    ("syncookies", "hook", "waiting", "is_told"),
    [("2", Hook.INPUT, 300, True), ("1", Hook.INPUT, 300, False), ("0", Hook.INPUT, 300, False),
     ("2", Hook.INPUT, 30, False), ("2", Hook.FORWARD, 300, False)],
)  # fmt: skip
def test_handshakes_that_cannot_be_counted_are_told(
    monkeypatch: pytest.MonkeyPatch, syncookies: str, hook: Hook, waiting: int, is_told: bool
) -> None:
    """Not where all fitted at once, and where they are another network namespace's."""
    rooms = Listening(listener(1, backlog=100))
    monkeypatch.setattr(rooms, "close", lambda: None, raising=False)
    monkeypatch.setattr(paced_module, "SocketDiagnostics", lambda: rooms)
    settings = {"net.ipv4.tcp_syncookies": syncookies}
    monkeypatch.setattr(paced_module, "sysctl", lambda name: settings.get(name, "512"))
    world, backend = World(0.0), Waiting(waiting)
    backend.waiting = lambda: backend.now[80]  # type: ignore[method-assign]
    paced = let_go_in_steps(
        backend,
        HoldSpec(endpoints=(HTTP,), run_id="0123abcd", hook=hook),
        fitting=Fitting(),
        clock=world.clock,
        why_over=lambda: "",
        turn=lambda _ms: world.wait(0.011),
    )
    assert sum(backend.log) == waiting
    assert (paced.steps > 0) == (waiting == 300)
    assert bool(paced.remarks) == is_told
    if is_told:
        (told,) = paced.remarks
        assert "net.ipv4.tcp_syncookies is 2" in told
        assert "set it to 1" in told


def test_a_queue_that_cannot_be_read_is_opened_at_once_and_that_is_told() -> None:
    class Broken(Waiting):
        def absorb(self) -> bool:
            raise KernelError("read the netfilter queue", errno.ENOBUFS)

    backend = Broken(30)
    paced = let_go_in_steps(
        backend,
        HoldSpec(endpoints=(HTTP,), run_id="0123abcd"),
        fitting=Fitting(),
        clock=lambda: 7.0,
        why_over=lambda: "",
        turn=lambda _ms: None,
    )
    assert backend.log == []
    (told,) = paced.remarks
    assert told.startswith("let go at once")
    assert "read the netfilter queue" in told


def test_what_does_not_fit_goes_in_steps_of_the_room() -> None:
    rooms = Listening(listener(1, backlog=100))
    paced = pacer(rooms)
    assert step(paced, 51) == 51
    assert step(paced, 1000) == 100
    rooms.now = [listener(1, backlog=100, accept_queue=60)]
    rooms.requests = 15
    assert step(paced, 900) == 25
    assert paced.steps == 3
    assert paced.limit == "backlog of 100"


def test_a_full_listener_gets_nothing_and_that_is_no_step() -> None:
    rooms = Listening(listener(1, backlog=100, accept_queue=100))
    paced = pacer(rooms)
    assert step(paced, 10) == 0
    assert paced.steps == 0


def test_it_opens_only_when_half_of_the_backlog_is_free() -> None:
    """After the opening nobody counts: half of the room is for those who come then."""
    rooms = Listening(listener(1, backlog=100, accept_queue=51))
    paced = pacer(rooms)
    assert step(paced, 1) == 1
    rooms.now = [listener(1, backlog=100, accept_queue=50)]
    assert step(paced, 26) == 26
    assert step(paced, 25) is None


def test_nobody_listens_nothing_to_wait_for() -> None:
    assert step(pacer(Listening()), 1000) is None


def ports(paced: Pacer, waiting_80: int, waiting_81: int) -> tuple[int, int] | None:
    """The same for two ports."""
    released = paced.step({80: waiting_80, 81: waiting_81})
    return None if released is None else (released[80], released[81])


def test_packets_that_cannot_be_read_are_not_held_back() -> None:
    paced = pacer(Listening(listener(1, backlog=10)))
    assert paced.step({80: 100, 0: 3}) == {80: 10, 0: 3}


def test_each_port_has_a_pace_of_its_own() -> None:
    rooms = Listening(listener(1, port=80, backlog=1000), listener(2, port=81, backlog=10))
    paced = pacer(rooms, None, Endpoint(port=80), Endpoint(port=81))
    assert ports(paced, 100, 100) == (100, 10)
    assert ports(paced, 7, 90) == (7, 10)
    assert paced.limit == "port 81: backlog of 10"
    assert ports(paced, 0, 5) is None


def test_a_service_that_does_not_accept_holds_back_nobody_elses_clients() -> None:
    full = listener(2, port=81, backlog=10, accept_queue=10)
    paced = pacer(
        Listening(listener(1, port=80, backlog=100), full),
        None,
        Endpoint(port=80),
        Endpoint(port=81),
    )
    assert ports(paced, 500, 3) == (100, 0)
    assert ports(paced, 20, 3) == (20, 0)


def test_a_port_that_nobody_serves_is_not_waited_for() -> None:
    rooms = Listening(listener(1, port=80, backlog=100))
    paced = pacer(rooms, None, Endpoint(port=80), Endpoint(port=81))
    assert ports(paced, 1000, 4) == (100, 4)


def test_one_port_in_debt_goes_and_the_others_are_paced_on() -> None:
    world = World(0.0)
    rooms = Listening(listener(1, port=80, backlog=10), listener(2, port=81, backlog=10))
    paced = pacer(rooms, world, Endpoint(port=80), Endpoint(port=81))
    for waiting in range(100, 94, -1):
        assert ports(paced, waiting, 50) == (10, 10)
        world.now_s += 0.1
    assert ports(paced, 94, 50) == (10, 50)
    assert "port 81: backlog of 10; opened at once, since newcomers" in paced.limit
    assert "port 80: backlog of 10," in paced.limit


@pytest.mark.parametrize(
    ("somaxconn", "words"),
    [(100, "backlog of 100, which is net.core.somaxconn"), (4096, "backlog of 100"),
     (0, "backlog of 100")],
)  # fmt: skip
def test_what_the_kernel_limits_is_said(somaxconn: int, words: str) -> None:
    paced = Pacer(
        endpoints=(HTTP,),
        mode=ReleaseMode.PACED,
        rooms=Listening(listener(1, backlog=100)),
        clock=World(0.0).clock,
        divide=never_divided,
        somaxconn=lambda: somaxconn,
    )
    step(paced, 1000)
    assert paced.limit == words


def test_request_sockets_are_counted_from_the_second_step_on() -> None:
    """Before the first release there are none of ours, and counting them costs."""
    rooms = Listening(listener(1, backlog=10), requests=4)
    paced = pacer(rooms)
    assert step(paced, 100) == 10
    assert rooms.asked == []
    assert step(paced, 90) == 6
    assert rooms.asked == [(rooms.now[0].endpoint(),)], "whatever address of it they want"


def test_where_all_fit_nobody_is_counted() -> None:
    """The walk would take longer than all the rest of the release."""
    rooms = Listening(listener(1, backlog=511), requests=300)
    paced = pacer(rooms)
    assert step(paced, 300) == 300
    rooms.now = [listener(1, backlog=511, accept_queue=250)]
    assert step(paced, 40) is None, "whatever became of the first ones, there is room for these"
    assert rooms.asked == []


def test_where_the_accept_queue_is_full_nobody_is_counted() -> None:
    """There is no room, whatever handshakes are under way: a service that hangs costs no walks."""
    rooms = Listening(listener(1, backlog=10), requests=3)
    paced = pacer(rooms)
    assert step(paced, 100) == 10
    for queued in (10, 11):
        rooms.now = [listener(1, backlog=10, accept_queue=queued)]
        assert step(paced, 90) == 0
    assert rooms.asked == []
    assert paced.limit == "backlog of 10", "it is not the clients who are waited for"
    rooms.now = [listener(1, backlog=10, accept_queue=4)]
    assert step(paced, 90) == 3
    assert len(rooms.asked) == 1
    rooms.requests = 6
    assert step(paced, 87) == 0
    assert paced.limit == "backlog of 10, filled by handshakes that wait for their clients"


def test_where_one_group_is_full_the_handshakes_of_another_are_not_what_it_waits_for() -> None:
    """They fill the smaller one; the other's service has to accept before anybody goes."""
    world = World(0.0)
    rooms = Listening(
        listener(1, "10.0.0.1", backlog=10), listener(2, "10.0.0.2", backlog=20), requests=10
    )
    paced = pacer(rooms, world)
    assert step(paced, 100) == 10
    rooms.now[1] = listener(2, "10.0.0.2", backlog=20, accept_queue=20)
    for _ in range(4):
        assert step(paced, 90) == 0
        world.now_s += 0.1
    assert paced.limit == "backlog of 10"
    assert rooms.asked == []


def test_where_too_little_room_may_be_left_they_are_counted_once_nobody_waits() -> None:
    rooms = Listening(listener(1, backlog=511), requests=200)
    paced = pacer(rooms)
    assert step(paced, 400) == 400
    assert step(paced, 30) == 30
    assert rooms.asked == []
    assert step(paced, 0) is None, "of 511 there are 311 free"
    assert len(rooms.asked) == 1


def test_where_somebody_had_to_wait_half_of_the_room_must_be_free_again() -> None:
    rooms = Listening(listener(1, backlog=511), requests=300)
    paced = pacer(rooms)
    assert step(paced, 600) == 511
    assert step(paced, 50) == 50
    assert step(paced, 0) == 0
    rooms.requests = 255
    assert step(paced, 0) is None


def test_a_burst_is_not_paced() -> None:
    rooms = Listening(listener(1, backlog=1))
    paced = pacer(rooms, mode=ReleaseMode.BURST)
    assert step(paced, 100_000) is None
    assert paced.steps == 0


# --- debt


def test_newcomers_that_outpace_the_service_end_the_pacing() -> None:
    world, rooms = World(0.0), Listening(listener(1, backlog=10))
    paced = pacer(rooms, world)
    for tenth in range(6):
        world.now_s = tenth / 10
        assert step(paced, 100) == 10
    world.now_s = 0.601
    assert step(paced, 100) is None
    assert "newcomers outpaced" in paced.limit


def test_those_who_came_while_the_service_stood_still_are_no_debt() -> None:
    world, rooms = World(0.0), Listening(listener(1, backlog=10))
    paced = pacer(rooms, world)
    assert step(paced, 100) == 10
    for world.now_s in (0.2, 0.4, 0.6, 0.8):
        rooms.requests = 10
        assert step(paced, 150) == 0
    rooms.requests = 0
    for tenth, waiting in enumerate((150, 130, 110, 95)):
        world.now_s = 0.9 + tenth / 10
        assert step(paced, waiting) == 10
    assert "outpaced" not in paced.limit


def test_what_waits_after_a_standstill_is_what_it_begins_with() -> None:
    """It takes a while until fewer wait than before it, and that is no debt."""
    world, rooms = World(0.0), Listening(listener(1, backlog=10))
    paced = pacer(rooms, world)
    assert step(paced, 100) == 10
    rooms.now = [listener(1, backlog=10, accept_queue=10)]
    for world.now_s in (0.2, 0.4, 0.6, 0.8):
        assert step(paced, 150) == 0
    rooms.now = [listener(1, backlog=10)]
    for tenth, waiting in enumerate(range(150, 130, -1)):
        world.now_s = 0.9 + tenth / 10
        assert step(paced, waiting) == 10
    for _ in range(5):  # the control: from here on newcomers outpace it
        assert step(paced, 131) == 10
        world.now_s += 0.1
    world.now_s += 0.1
    assert step(paced, 131) is None


def test_clients_far_away_get_their_time_after_a_standstill() -> None:
    """Their handshakes fill the room, as a flood's do; but the service has stood still."""
    world, rooms = World(0.0), Listening(listener(1, backlog=100))
    paced = pacer(rooms, world)
    assert step(paced, 5000) == 100
    rooms.now = [listener(1, backlog=100, accept_queue=100)]
    for _ in range(40):
        world.now_s += 0.1
        assert step(paced, 6000) == 0
    rooms.now = [listener(1, backlog=100)]
    assert step(paced, 6000) == 100
    rooms.requests = 100
    for _ in range(12):
        world.now_s += 0.1
        assert step(paced, 6000) == 0


def test_newcomers_that_outpace_far_clients_are_debt() -> None:
    """Nobody goes for a round trip, again and again; it is not the service that stands still."""
    world, rooms = World(0.0), Listening(listener(1, backlog=100))
    paced = pacer(rooms, world)
    assert step(paced, 5000) == 100
    for tick in range(100):
        world.now_s += 0.05
        rooms.requests = 0 if tick % 8 == 7 else 100
        if step(paced, 6000) is None:
            break
    assert "outpaced" in paced.limit
    assert world.now_s > 1.5


def test_far_clients_that_send_again_are_no_debt() -> None:
    """Some of those that went wait once more; to make up for that takes some round trips."""
    world, rooms = World(0.0), Listening(listener(1, backlog=64))
    paced = pacer(rooms, world)
    assert step(paced, 300) == 64
    rooms.requests = 64
    assert step(paced, 236) == 0
    waiting = 236 + 26
    for _ in range(8):
        for rooms.requests in (64, 64, 64, 64, 56):
            world.now_s += 0.1
            released = step(paced, waiting)
            assert released is not None, paced.limit
            waiting -= released
    assert waiting < 236


def test_who_goes_at_once_is_no_debt_and_needs_no_pace() -> None:
    """Handshakes that nobody completes stay in the room, and there is enough beside them."""
    world, rooms = World(0.0), Listening(listener(1, backlog=128))
    paced = pacer(rooms, world)
    assert step(paced, 1000) == 128
    world.now_s += 0.1
    rooms.requests = 100
    assert step(paced, 30) == 28
    while world.now_s < 1.6:
        world.now_s += 0.1
        assert step(paced, 3) in {3, None}
    assert step(paced, 3) is None
    assert "outpaced" not in paced.limit
    assert "handshakes" not in paced.limit


def test_a_service_that_has_stopped_accepting_is_no_debt() -> None:
    """Somebody came just after the last one went."""
    world, rooms = World(0.0), Listening(listener(1, backlog=10))
    paced = pacer(rooms, world)
    assert step(paced, 100) == 10
    rooms.now = [listener(1, backlog=10, accept_queue=10)]
    for _ in range(100):
        world.now_s += 0.1
        assert step(paced, 101) == 0


def test_progress_starts_the_window_anew() -> None:
    world, rooms = World(0.0), Listening(listener(1, backlog=10))
    paced = pacer(rooms, world)
    for waiting in range(100, 50, -1):
        assert step(paced, waiting) == 10
        world.now_s += 0.4


def test_a_service_that_accepts_nothing_yet_is_no_debt() -> None:
    """It has not been given a step that it could have taken."""
    world = World(0.0)
    paced = pacer(Listening(listener(1, backlog=10, accept_queue=10)), world)
    for _ in range(20):
        assert step(paced, 100) == 0
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
        room = step(paced, waiting)
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
    assert step(paced, 5000) == 100
    rooms.requests = 100
    while world.now_s < 1.5:
        assert step(paced, 4900) == 0
        world.wait(0.1)
    world.wait(0.1)
    assert step(paced, 4900) is None
    assert "did not complete their handshakes" in paced.limit


def test_a_service_that_does_not_accept_is_waited_for() -> None:
    """The same room, filled by what the service has to accept: that is its own pace."""
    world = World(0.0)
    rooms = Listening(listener(1, backlog=100), requests=0)
    paced = pacer(rooms, world)
    assert step(paced, 5000) == 100
    rooms.now = [listener(1, backlog=100, accept_queue=100)]
    while world.now_s < 8:
        assert step(paced, 4900) == 0
        world.wait(0.1)


def test_slow_handshakes_are_waited_for_as_long_as_some_complete() -> None:
    world = World(0.0)
    rooms = Listening(listener(1, backlog=100), requests=0)
    paced = pacer(rooms, world)
    waiting = 5000 - (step(paced, 5000) or 0)
    for _ in range(20):
        rooms.requests = 90
        released = step(paced, waiting)
        assert released == 10
        waiting -= released
        world.wait(0.3)


# --- listeners that cannot be seen


def test_a_listener_that_cannot_be_seen_gets_a_step_and_a_pause() -> None:
    world = World(0.0)
    somebody_else = Listening(listener(1, backlog=1, accept_queue=1))
    paced = Pacer(
        endpoints=(HTTP,),
        mode=ReleaseMode.PACED,
        rooms=somebody_else,
        clock=world.clock,
        divide=never_divided,
        is_blind=True,
    )
    waiting, steps = 300, []
    while (released := step(paced, waiting)) is not None:
        waiting -= released
        if released:
            steps.append((round(world.now_s * 1000), released))
        world.now_s += 0.001
    assert steps[:4] == [(0, 64), (10, 64), (20, 64), (30, 64)]
    assert waiting <= 64
    assert paced.limit == "64 every 10 ms, since the listener cannot be seen"


def test_few_are_let_go_to_it_at_once_and_newcomers_do_not_keep_it_from_opening() -> None:
    world = World(0.0)

    def blind() -> Pacer:
        return Pacer(
            endpoints=(HTTP,),
            mode=ReleaseMode.PACED,
            rooms=Listening(),
            clock=world.clock,
            divide=never_divided,
            is_blind=True,
        )

    assert step(blind(), 32) is None
    paced = blind()
    for _ in range(2000):
        if step(paced, 1000) is None:
            break
        world.now_s += 0.001
    assert "newcomers outpaced the service" in paced.limit
