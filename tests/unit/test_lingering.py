"""How long the empty rest of a hold stays, and what it takes to remove it."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from synplug.holding.lingering import LINGER_S, wait_until_harmless

FOREIGN = "netfilter queue 7 holds packets of somebody else"


@dataclass
class Rest:
    """A backend, a guard, a deadman and a clock; *obstacle* and *others* may change with time."""

    flushes_queues: bool = True
    patience_s: float = 0.0
    sigterm_at_s: float = float("inf")
    left_s: float = float("inf")
    foreign_until_s: float = 0.0
    others_from_s: float = float("inf")
    others_until_s: float = float("-inf")
    now_s: float = 0.0
    alone: bool = False
    told: list[str] = field(default_factory=list)

    def obstacle(self) -> str:
        return FOREIGN if self.now_s < self.foreign_until_s else ""

    def try_alone(self) -> bool:
        self.alone = not self.others_from_s <= self.now_s < self.others_until_s
        return self.alone

    def leave(self) -> None:
        self.alone = False

    def set(self, left_s: float) -> None:
        assert not self.alone, "one that is stopped in between would never be ended"
        self.left_s = left_s

    def stop(self) -> None:
        self.left_s = float("inf")

    def turn(self, milliseconds: int | None) -> None:
        assert milliseconds
        assert not self.alone
        assert self.left_s == float("inf"), "its end would remove the table, whoever is hurt"
        self.now_s += milliseconds / 1000

    def wait(self) -> float:
        wait_until_harmless(
            self,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            clock=lambda: self.now_s,
            is_hurried=lambda: self.now_s >= self.sigterm_at_s,
            tell=self.told.append,
            turn=self.turn,
        )
        return self.now_s


def test_where_nobody_is_hurt_it_goes_at_once() -> None:
    rest = Rest()
    assert rest.wait() == 0
    assert rest.alone
    assert rest.told == []


def test_somebody_elses_packets_are_waited_for_and_told_once() -> None:
    rest = Rest(foreign_until_s=3)
    assert rest.wait() == pytest.approx(3, abs=0.05)
    assert rest.alone
    assert rest.told == [FOREIGN]


def test_a_queue_that_never_runs_empty_is_waited_for_for_a_minute() -> None:
    rest = Rest(foreign_until_s=float("inf"))
    assert rest.wait() == pytest.approx(LINGER_S, abs=0.05)
    assert rest.alone, "a hold that begins now must not lose its SYNs by the removal"


def test_a_hold_of_ours_that_has_begun_meanwhile_is_waited_for_all_the_same() -> None:
    rest = Rest(foreign_until_s=float("inf"), others_from_s=LINGER_S - 1, others_until_s=100)
    assert rest.wait() >= 100
    assert rest.alone


def test_sigterm_ends_the_wait_for_somebody_else() -> None:
    rest = Rest(foreign_until_s=float("inf"), sigterm_at_s=5)
    assert rest.wait() == pytest.approx(5, abs=0.05)
    assert rest.alone


def test_a_hold_of_ours_is_waited_for_whatever_is_said() -> None:
    """It has a deadline of its own; what it holds is never dropped."""
    rest = Rest(sigterm_at_s=5, others_from_s=0, others_until_s=100)
    assert rest.wait() == pytest.approx(100, abs=0.05)
    assert rest.alone


def test_what_flushes_no_queues_waits_for_nobody_and_keeps_nobody_waiting() -> None:
    rest = Rest(flushes_queues=False, foreign_until_s=9, others_from_s=0, others_until_s=9)
    assert rest.wait() == 0
    assert not rest.alone


@pytest.mark.parametrize("flushes_queues", [True, False])
def test_the_deadman_runs_for_the_removal(flushes_queues: bool) -> None:
    rest = Rest(flushes_queues=flushes_queues, foreign_until_s=1, patience_s=5)
    rest.wait()
    assert 5 < rest.left_s < 15
