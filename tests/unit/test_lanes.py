"""A port whose endpoints part: who goes to one that accepts nothing waits alone."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from math import ceil
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synplug.holding import nfqueue
from synplug.holding.nfqueue import QueueBackend
from synplug.holding.pace import Pacer
from synplug.holding.room import room_of
from synplug.holding.waiting import Lane, Place, WaitingSyns
from synplug.model import Endpoint, Flow, HoldSpec, Listener, ReleaseMode
from synplug.record import replace
from tests.unit.fake_queues import FakeGate, FakeQueues
from tests.unit.fakes import HTTP, World, listener
from tests.unit.test_pace import Listening

FINE, HUNG = "10.0.0.1", "10.0.0.2"
SLOW = HUNG


def at(address: str, port: int = 80) -> Endpoint:
    return Endpoint(port=port, address=ip_address(address))


def flow(number: int, to: str, port: int = 80) -> Flow:
    destination = ip_address(to).packed
    source = number.to_bytes(len(destination), "big")
    return Flow(source + destination + b"\x80\x00" + port.to_bytes(2, "big"))


class Port:
    """Its listeners, and the pace at which it is let go.

    :param endpoints: those that are held; none: the whole of port 80.
    """

    def __init__(
        self,
        *listeners: Listener,
        endpoints: tuple[Endpoint, ...] = (HTTP,),
        syn_limit: int = 0,
    ) -> None:
        self.world = World(0.0)
        self.rooms = Listening(*listeners)
        self.divided: list[tuple[int, list[Endpoint]]] = []
        self.pacer = Pacer(
            endpoints=endpoints,
            mode=ReleaseMode.PACED,
            rooms=self.rooms,
            clock=self.world.clock,
            divide=self._divide,
            syn_limit=syn_limit,
        )

    def _divide(self, port: int, endpoints: Iterable[Endpoint]) -> None:
        self.divided.append((port, list(endpoints)))

    def step(self, waiting: dict[Lane, int], after_s: float = 0.0) -> dict[Lane, int] | None:
        self.world.now_s += after_s
        return self.pacer.step(waiting)


def full(number: int, address: str, backlog: int = 5) -> Listener:
    return listener(number, address, backlog=backlog, accept_queue=backlog + 1)


# --- the pace


def test_who_goes_to_an_endpoint_that_accepts_does_not_wait_for_another() -> None:
    port = Port(listener(1, FINE, backlog=100), full(2, HUNG))
    assert port.step({80: 1000}) == {80: 0, 0: 0}
    assert port.step({80: 1000}, after_s=0.6) == {80: 0, 0: 0}
    assert port.divided == [(80, [at(FINE), at(HUNG)])]
    waiting: dict[Lane, int] = {80: 0, at(FINE): 600, at(HUNG): 400}
    assert port.step(waiting) == {80: 0, at(FINE): 100, at(HUNG): 0, 0: 0}
    assert port.pacer.limit == (
        f"port 80: backlog of 5, {FINE}:80: backlog of 100, {HUNG}:80: backlog of 5"
    )


def test_the_one_that_hung_is_served_when_it_accepts_again() -> None:
    port = Port(listener(1, FINE, backlog=100), full(2, HUNG))
    port.step({80: 300})
    port.step({80: 300}, after_s=0.6)
    port.step({80: 0, at(FINE): 0, at(HUNG): 300})
    port.rooms.now[1] = listener(2, HUNG, backlog=5)
    assert port.step({80: 0, at(FINE): 0, at(HUNG): 300}, after_s=3.0) == {
        80: 0,
        at(FINE): 0,
        at(HUNG): 5,
        0: 0,
    }
    assert port.step({80: 0, at(FINE): 0, at(HUNG): 2}) is None, "it fits, so all is opened"


def test_who_goes_to_no_endpoint_of_its_own_stays_with_the_port() -> None:
    """A listener of both IP versions is the port's: nobody's address is its address."""
    port = Port(listener(1, "::", backlog=100), full(2, "::1"))
    port.step({80: 400})
    port.step({80: 400}, after_s=0.6)
    assert port.divided == [(80, [at("::1")])]
    assert port.step({80: 300, at("::1"): 100}) == {80: 100, at("::1"): 0, 0: 0}
    assert port.step({80: 200, at("::1"): 100}, after_s=0.6) == {80: 100, at("::1"): 0, 0: 0}
    assert port.divided == [(80, [at("::1")])], "once"


@pytest.mark.parametrize(("slow_per_s", "backlog"), [(20, 5), (20, 128), (100, 128)])
def test_one_that_is_slow_does_not_set_the_pace_of_another(slow_per_s: int, backlog: int) -> None:
    """It lets somebody in now and then, so it does not hang; a model of both, by milliseconds."""
    port = Port(listener(1, FINE, backlog=128), listener(2, SLOW, backlog=backlog))
    accepts = {FINE: 5.0, SLOW: slow_per_s / 1000}
    limit = {FINE: 128, SLOW: backlog}
    queued = {FINE: 0.0, SLOW: 0.0}
    waiting = [FINE] * 2000 + [SLOW] * 300
    Random(1).shuffle(waiting)
    done_s = 0.0
    while FINE in waiting and port.world.now_s < 20:
        lanes: dict[Lane, int] = {80: 0 if port.divided else len(waiting)}
        if port.divided:
            lanes |= {at(one): waiting.count(one) for one in (FINE, SLOW)}
        released = port.step(lanes, after_s=0.001)
        assert released is not None, "opened: what waits for the slow one does not fit"
        queued = {one: max(0.0, number - accepts[one]) for one, number in queued.items()}
        for lane, number in released.items():
            for _ in range(number):
                who = str(lane.address) if isinstance(lane, Endpoint) else waiting[0]
                waiting.remove(who)
                queued[who] += 1
                assert queued[who] <= limit[who], f"{who} overflows"
                done_s = port.world.now_s if who == FINE else done_s
        port.rooms.now = [
            listener(number, one, backlog=limit[one], accept_queue=ceil(left))
            for number, (one, left) in enumerate(queued.items(), start=1)
        ]
    assert done_s < 1.2, "half a second until it is seen, and its own 0.4 s"


def test_the_other_ports_go_on_meanwhile() -> None:
    port = Port(
        listener(1, FINE, backlog=100),
        full(2, HUNG),
        listener(3, "0.0.0.0", 81, backlog=100),
        endpoints=(HTTP, Endpoint(port=81)),
    )
    port.step({80: 1000, 81: 0})
    assert port.step({80: 1000, 81: 40}, after_s=0.6) == {80: 0, 81: 40, 0: 0}
    assert port.divided == [(80, [at(FINE), at(HUNG)])]


@pytest.mark.parametrize(
    "listeners",
    [
        pytest.param([full(1, FINE), full(2, HUNG)], id="all accept nothing"),
        pytest.param([full(1, FINE)], id="one endpoint"),
        pytest.param([full(1, FINE), listener(2, FINE)], id="two of a group"),
        pytest.param([listener(1, FINE, backlog=5), listener(2, HUNG, backlog=5)], id="none full"),
        pytest.param([replace(full(1, FINE), device=1), listener(2, HUNG)], id="bound to a device"),
    ],
)
def test_it_is_not_divided(listeners: list[Listener]) -> None:
    port = Port(*listeners)
    for _ in range(4):
        port.step({80: 1000}, after_s=0.2)
    assert port.divided == []


def test_a_short_standstill_divides_nothing() -> None:
    port = Port(listener(1, FINE, backlog=100), full(2, HUNG))
    for _ in range(4):
        port.step({80: 1000}, after_s=0.1)
    port.rooms.now[1] = listener(2, HUNG, backlog=5, accept_queue=3)
    port.step({80: 1000}, after_s=0.1)
    port.rooms.now[1] = full(2, HUNG)
    for _ in range(4):
        port.step({80: 1000}, after_s=0.1)
    assert port.divided == []


def test_a_group_that_hangs_parts_before_all_its_members_are_full() -> None:
    """Its members would be found to hang one after the other, and each overflows until then."""
    group = [full(1, HUNG), *(listener(number, HUNG, backlog=5) for number in (2, 3, 4))]
    port = Port(*group, listener(5, FINE, backlog=100))
    port.step({80: 1000})
    assert port.step({80: 1000}, after_s=0.6) == {80: 0, 0: 0}, "nobody, while it is divided"
    assert port.divided == [(80, [at(HUNG), at(FINE)])]
    released = port.step({80: 0, at(FINE): 500, at(HUNG): 500})
    assert released == {80: 0, at(FINE): 100, at(HUNG): room_of(group[1:], 0).free, 0: 0}
    assert "a listener that accepts nothing was left out" in port.pacer.limit


def test_it_parts_where_handshakes_have_less_room_than_the_backlog() -> None:
    """Without SYN cookies; there the accept queue need not be full."""
    port = Port(listener(1, FINE), listener(2, HUNG, backlog=511, accept_queue=48), syn_limit=48)
    port.step({80: 1000})
    port.step({80: 1000}, after_s=0.6)
    assert port.divided == [(80, [at(FINE), at(HUNG)])]


# --- what is known of a part


def test_the_handshakes_of_a_part_are_its_own() -> None:
    """Those let go before it was one, too; the port is not charged with those of the others."""
    port = Port(listener(1, "::", backlog=40), listener(2, FINE, backlog=100))
    assert port.step({80: 1000}) == {80: 40, 0: 0}
    port.rooms.now.append(full(3, HUNG))
    port.step({80: 960}, after_s=0.1)
    port.step({80: 960}, after_s=0.6)
    assert port.divided == [(80, [at(FINE), at(HUNG)])]
    port.rooms.asked.clear()
    port.rooms.left_out.clear()
    port.rooms.requests = 35
    released = port.step({80: 300, at(FINE): 300, at(HUNG): 360})
    assert released == {80: 5, at(FINE): 65, at(HUNG): 0, 0: 0}
    assert port.rooms.asked == [(HTTP,), (at(FINE),)], "the third one is full without them"
    assert port.rooms.left_out[0] == (at(FINE), at(HUNG))
    assert at(FINE) not in port.rooms.left_out[1]


def test_all_of_an_ip_version_but_the_addresses_that_part_from_it() -> None:
    port = Port(listener(1, "0.0.0.0", backlog=5), listener(3, "::", v6only=True))
    port.step({80: 1000})
    port.rooms.now.append(full(2, HUNG))
    port.step({80: 1000}, after_s=0.1)
    port.step({80: 1000}, after_s=0.6)
    port.rooms.asked.clear()
    port.rooms.left_out.clear()
    port.step({80: 0, at("0.0.0.0"): 300, at("::"): 300, at(HUNG): 300})
    asked = dict(zip(port.rooms.asked, port.rooms.left_out, strict=True))
    assert asked[at("0.0.0.0"),] == asked[at("::"),] == (at(HUNG),)


def test_a_member_that_was_left_out_before_is_left_out_after() -> None:
    port = Port(full(1, FINE), listener(2, FINE, backlog=5), listener(3, HUNG, backlog=100))
    port.step({80: 1000})
    port.step({80: 1000}, after_s=0.6)
    assert port.divided == [(80, [at(FINE), at(HUNG)])]
    released = port.step({80: 0, at(FINE): 100, at(HUNG): 400})
    assert released == {80: 0, at(FINE): 5, at(HUNG): 100, 0: 0}


def test_what_bounded_the_pace_before_is_still_told() -> None:
    port = Port(listener(1, FINE, backlog=100), full(2, HUNG))
    port.step({80: 1000})
    port.step({80: 1000}, after_s=0.6)
    assert port.pacer.limit == "port 80: backlog of 5"


def test_another_listener_in_its_place_is_a_parts_too() -> None:
    """So who waits for that address is not let go as if nobody listened there."""
    port = Port(listener(1, FINE, backlog=100), full(2, HUNG))
    port.step({80: 1000})
    port.step({80: 1000}, after_s=0.6)
    port.rooms.now[0] = listener(3, "0.0.0.0", backlog=100)
    assert port.step({80: 0, at(FINE): 500, at(HUNG): 400}) == {
        80: 0,
        at(FINE): 100,
        at(HUNG): 0,
        0: 0,
    }
    port.rooms.now[:] = [full(2, HUNG)]
    assert port.step({80: 0, at(FINE): 400, at(HUNG): 400}) == {
        80: 0,
        at(FINE): 400,
        at(HUNG): 0,
        0: 0,
    }, "they are refused, as they would be without a hold"


# --- who waits, and where


def entered(*flows: Flow) -> WaitingSyns:
    waiting = WaitingSyns([80, 81])
    for number, one in enumerate(flows, 1):
        waiting.enter(one, Place(0, number, number, moved=False, local=False))
    return waiting


def test_a_flow_goes_to_its_very_address_or_that_of_its_version_or_the_port() -> None:
    mine, any_v4, other_v6 = flow(1, FINE), flow(2, HUNG), flow(3, "2001:db8::1")
    waiting = entered(mine, any_v4, other_v6, flow(4, FINE, 81))
    waiting.divide(80, [at(FINE), at("0.0.0.0")])
    assert waiting.by_lane() == {0: 0, 80: 1, 81: 1, at(FINE): 1, at("0.0.0.0"): 1}
    later = flow(5, FINE)
    waiting.enter(later, Place(0, 5, 5, moved=False, local=False))
    assert [one for one, _ in waiting.take(at(FINE), 9)] == [mine, later]
    assert [one for one, _ in waiting.take(at("0.0.0.0"), 9)] == [any_v4]
    assert not waiting.is_all_in(80)
    assert [one for one, _ in waiting.take(81, 9)] == [flow(4, FINE, 81)]
    assert waiting.is_all_in(80)
    assert [one for one, _ in waiting.take(80, 9)] == [other_v6]
    assert len(waiting) == 0


def test_ipv6_is_not_taken_for_ipv4() -> None:
    """The end of an IPv6 address may look like an IPv4 address."""
    alike = flow(1, "::10.0.0.1")
    waiting = entered(alike, flow(2, "::"))
    waiting.divide(80, [at(FINE), at("0.0.0.0")])
    assert waiting.by_lane()[80] == 2
    assert waiting.get(alike) is not None


def test_all_of_ipv6_have_a_lane() -> None:
    waiting = entered(flow(1, FINE), flow(2, "fd00::1"), flow(3, "fd00::2"))
    waiting.divide(80, [at("::"), at("fd00::2")])
    assert waiting.by_lane() == {0: 0, 80: 1, 81: 0, at("::"): 1, at("fd00::2"): 1}


_ADDRESSES = st.sampled_from([FINE, HUNG, "0.0.0.0", "::", "::1", "2001:db8::1", "::10.0.0.1"])


@given(
    flows=st.lists(
        st.tuples(st.integers(1, 200), _ADDRESSES, st.sampled_from([80, 81])), unique=True
    ),
    parts=st.lists(_ADDRESSES, unique=True),
    divided_after=st.integers(0, 30),
)
def test_nobody_is_lost_and_everybody_keeps_the_order(
    flows: list[tuple[int, str, int]], parts: list[str], divided_after: int
) -> None:
    packed = [flow(*one) for one in flows]
    waiting = entered(*packed[:divided_after])
    waiting.divide(80, map(at, parts))
    for number, one in enumerate(packed[divided_after:], divided_after + 1):
        waiting.enter(one, Place(0, number, number, moved=False, local=False))
    assert len(waiting) == len(packed)
    assert all(waiting.get(one) is not None for one in packed)
    taken = {lane: waiting.take(lane, len(packed)) for lane in waiting.by_lane()}
    assert sorted(one for mine in taken.values() for one, _ in mine) == sorted(packed)
    for lane, mine in taken.items():
        assert [place.packet for _, place in mine] == sorted(place.packet for _, place in mine)
        if isinstance(lane, Endpoint) and lane.exact_address:
            assert {one for one, _ in mine} == {
                one
                for one, (_, to, port) in zip(packed, flows, strict=True)
                if port == 80 and ip_address(to) == lane.address
            }
    assert len(waiting) == 0


# --- the queues


@given(st.data())
def test_a_verdict_settles_those_of_its_lane_alone(data: st.DataObject) -> None:
    """In several queues, with copies that were sent again, before and after a port is divided."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nfqueue, "PacketQueues", FakeQueues)
        endpoints = (HTTP, Endpoint(port=81))
        spec = HoldSpec(endpoints=endpoints, run_id="0123abcd", max_held_packets=100_000)
        backend = QueueBackend(spec, FakeGate())
        backend.arm()
    backend.hold()
    queues = backend._queues
    assert isinstance(queues, FakeQueues)
    places: dict[tuple[int, int], Flow] = {}
    divided = False
    steps = st.one_of(
        st.tuples(st.integers(1, 6), _ADDRESSES, st.sampled_from([80, 81])),
        st.integers(0, 5),
        st.lists(_ADDRESSES, min_size=1, unique=True),
    )
    for step in data.draw(st.lists(steps, min_size=5, max_size=60)):
        if isinstance(step, tuple):
            number = 100 + step[0] % 2
            places[number, queues.arrive(flow(*step), queue=number)] = flow(*step)
            backend.absorb()
        elif isinstance(step, list) and not divided:
            backend.divide(80, map(at, step))
            divided = True
            assert set(map(at, step)) <= set(backend.waiting_by_lane())
        elif isinstance(step, int):
            lane = data.draw(st.sampled_from(list(backend.waiting_by_lane())))
            before, accepted = backend.waiting_by_lane(), len(queues.accepted)
            released = backend.release_next(lane, step)
            assert released == min(step, before[lane]) == len(queues.accepted) - accepted
            assert backend.waiting_by_lane() == before | {lane: before[lane] - released}
            for packet in queues.accepted[accepted:]:
                assert _may_be_in(places[packet], lane)
        assert sum(map(len, queues.waiting.values())) == backend.waiting()
    waiting = backend.waiting()
    assert backend.open() == waiting
    assert not any(queues.waiting.values())


def _may_be_in(one: Flow, lane: Lane) -> bool:
    if isinstance(lane, int):
        return one[-2:] == lane.to_bytes(2, "big")
    address, exact = one[(len(one) - 4) // 2 : -4], lane.exact_address
    assert lane.address is not None
    is_same = exact.packed == address if exact else len(address) == len(lane.address.packed)
    return is_same and one[-2:] == lane.port.to_bytes(2, "big")
