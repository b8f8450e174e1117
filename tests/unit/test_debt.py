"""When newcomers outpace a service, and what only looks like it; against a model of both."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tests.unit.fakes import World, listener
from tests.unit.test_pace import Listening, pacer, step

_LOOK_S = 0.005
_OUTPACED = "newcomers outpaced the service"


@dataclass
class Model:
    """A service that accepts at its rate while it *goes*, and who comes: by chance, and in herds.

    :param accepts, comes: connections a second, at a time. :param herds: how many come at a time.
    :param is_even: as many come in each while as in any other.
    """

    seed: int
    waiting: int
    accepts: float
    comes: Callable[[float], float]
    herds: dict[float, int] = field(default_factory=dict)
    goes: Callable[[float], bool] = lambda _at_s: True
    backlog: int = 128
    is_even: bool = False
    opened_at_s: float | None = None
    limit: str = ""

    def run(self, until_s: float) -> Model:
        chance, world = random.Random(self.seed), World(0.0)
        rooms = Listening(listener(1, backlog=self.backlog))
        paced = pacer(rooms, world)
        herds, queued, able, come = sorted(self.herds.items()), 0, 0.0, 0.0
        while world.now_s < until_s:
            released = step(paced, self.waiting)
            self.limit = paced.limit
            if released is None:
                self.opened_at_s = world.now_s
                return self
            self.waiting -= released
            queued += released
            able = able + self.accepts * _LOOK_S if self.goes(world.now_s) and queued else 0.0
            accepted = min(queued, int(able))
            able, queued = able - accepted, queued - accepted
            rooms.now = [listener(1, backlog=self.backlog, accept_queue=queued)]
            come += self._newcomers(chance, self.comes(world.now_s) * _LOOK_S)
            while herds and herds[0][0] <= world.now_s:
                come += herds.pop(0)[1]
            self.waiting, come = self.waiting + int(come), come - int(come)
            world.now_s += _LOOK_S
        return self

    def _newcomers(self, chance: random.Random, mean: float) -> float:
        """Of Poisson's distribution, unless they come evenly."""
        if self.is_even:
            return mean
        number, product = 0, chance.random()
        while product > math.exp(-mean):
            number, product = number + 1, product * chance.random()
        return number


# --- herds


def test_a_herd_is_not_compared_with_what_was_before_it() -> None:
    world, rooms = World(0.0), Listening(listener(1, backlog=128))
    paced, waiting = pacer(rooms, world), 5000
    for tick in range(160):
        waiting += 3200 if tick == 20 else 0
        released = step(paced, waiting)
        assert released is not None, paced.limit
        waiting -= min(released, 50)
        rooms.now = [listener(1, backlog=128, accept_queue=78)]
        world.now_s += 0.01
    assert waiting == 200


@pytest.mark.parametrize("share", [0.0, 0.5, 0.8, 0.9])
@pytest.mark.parametrize("seed", range(8))
def test_no_herd_of_any_size_is_debt_where_what_waits_falls(share: float, seed: int) -> None:
    """Three of them, two seconds apart at the least; in between some 10 % less come than go."""
    chance = random.Random(seed)
    model = Model(
        seed=seed,
        waiting=20_000,
        accepts=5000,
        comes=lambda _at_s: 5000 * share,
        herds={at_s + chance.random(): int(10 ** chance.uniform(0, 5)) for at_s in (0.1, 3.1, 6.1)},
    ).run(9.0)
    assert _OUTPACED not in model.limit, model.opened_at_s


@pytest.mark.parametrize("size", [10, 60, 100, 200, 500, 3000, 50_000])
@pytest.mark.parametrize("at_s", [0.2, 0.41, 1.33])
def test_a_slow_but_even_fall_makes_up_for_a_herd(size: int, at_s: float) -> None:
    model = Model(
        seed=0,
        waiting=20_000,
        accepts=5000,
        comes=lambda _at_s: 4750,
        herds={at_s: size},
        is_even=True,
    ).run(8.0)
    assert model.opened_at_s is None, model.limit


@pytest.mark.parametrize("seed", range(4))
def test_herds_that_come_faster_than_they_are_accepted_are_debt(seed: int) -> None:
    model = Model(
        seed=seed,
        waiting=5000,
        accepts=5000,
        comes=lambda _at_s: 1000,
        herds={number * 0.3: 1500 for number in range(30)},
    ).run(6.0)
    assert model.opened_at_s is not None
    assert _OUTPACED in model.limit


# --- as many as are accepted, and more


@pytest.mark.parametrize("share", [1.0, 1.02, 1.1, 1.5, 3.0])
@pytest.mark.parametrize("accepts", [500, 2000, 5000])
@pytest.mark.parametrize("seed", range(4))
def test_as_many_as_are_accepted_are_noticed(share: float, accepts: int, seed: int) -> None:
    """By chance it takes longer where they are few: what waits falls for a while."""
    model = Model(
        seed=seed, waiting=1000 + accepts // 2, accepts=accepts, comes=lambda _at_s: accepts * share
    ).run(5.0)
    assert model.opened_at_s is not None
    assert model.opened_at_s < (2.0 if accepts * share >= 2000 else 3.5)
    assert _OUTPACED in model.limit


@pytest.mark.parametrize("seed", range(6))
def test_it_does_not_matter_how_much_has_fallen_before(seed: int) -> None:
    model = Model(
        seed=seed,
        waiting=20_000,
        accepts=5000,
        comes=lambda at_s: 0 if at_s < 2 else 5100,
    ).run(5.0)
    assert model.opened_at_s is not None
    assert 2.5 < model.opened_at_s < 4.0
    assert _OUTPACED in model.limit


@pytest.mark.parametrize("seed", range(4))
def test_slow_falls_of_many_are_no_debt(seed: int) -> None:
    model = Model(
        seed=seed,
        waiting=50_000,
        accepts=10_000,
        comes=lambda _at_s: 9500,
        backlog=4096,
    ).run(20.0)
    assert model.opened_at_s is None, model.limit
    assert model.waiting < 45_000


# --- standstills


@pytest.mark.parametrize("pause_s", [0.25, 0.3, 1.0, 2.0])
def test_a_service_that_pauses_before_every_place_is_outpaced_all_the_same(pause_s: float) -> None:
    """Each pause is a standstill, and what waits behind it is more each time."""
    world, rooms = World(0.0), Listening(listener(1, backlog=5))
    paced, waiting = pacer(rooms, world), 100
    while (released := step(paced, waiting)) is not None:
        waiting -= released
        rooms.now = [listener(1, backlog=5, accept_queue=5)]
        for _ in range(round(pause_s / 0.05)):
            world.now_s += 0.05
            if step(paced, waiting) is None:
                break
        rooms.now = [listener(1, backlog=5, accept_queue=4)]
        waiting += 2
        assert world.now_s < 6 * max(1.5, pause_s)
    assert _OUTPACED in paced.limit


@pytest.mark.parametrize("seed", range(4))
def test_a_service_that_makes_up_for_its_standstills_is_not_outpaced(seed: int) -> None:
    """It stands still for 0.4 s of each second; or for 1.5 s at first, and soon again."""
    for goes in (
        lambda at_s: at_s % 1.0 > 0.4,
        lambda at_s: not (0.1 < at_s < 1.6 or 1.7 < at_s < 2.8),
    ):
        model = Model(
            seed=seed, waiting=8000, accepts=5000, comes=lambda _at_s: 1500, goes=goes
        ).run(9.0)
        assert _OUTPACED not in model.limit, model.opened_at_s
