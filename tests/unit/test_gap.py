"""The moment at which a table is removed."""

from __future__ import annotations

import pytest

from synplug.errors import KernelError
from synplug.holding import gap
from synplug.holding.gap import gap_of_others

OURS, THEIRS = 20_000, 7


class Lengths:
    """What is seen look by look: how many wait in their queue, at the end none for ever."""

    def __init__(self, *waiting: int) -> None:
        self.left = list(reversed(waiting))
        self.looks = 0

    def now(self) -> list[tuple[int, int]]:
        self.looks += 1
        return [(OURS, 5), (THEIRS, self.left.pop() if self.left else 0)]

    def close(self) -> None:
        self.left.clear()


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gap, "_LIMIT_S", 0.05)


def looks_until_it(monkeypatch: pytest.MonkeyPatch, lengths: Lengths) -> int:
    monkeypatch.setattr(gap, "QueueLengths", lambda: lengths)
    with gap_of_others((OURS,)) as wait:
        wait()
        return lengths.looks


def test_it_ends_just_when_their_queue_has_run_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    assert looks_until_it(monkeypatch, Lengths(0, 0, 0, 1, 2, 1, 0, 1)) == 7


def test_without_other_queues_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = Lengths()
    monkeypatch.setattr(Lengths, "now", lambda self: [(OURS, 5)])
    assert looks_until_it(monkeypatch, lengths) == 0


def test_a_silent_queue_and_one_that_never_empties_are_not_waited_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert looks_until_it(monkeypatch, Lengths()) > 2
    assert looks_until_it(monkeypatch, Lengths(*[1] * 1_000_000)) > 2


def test_where_nothing_can_be_seen_nothing_is_waited_for_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused() -> Lengths:
        raise KernelError("read", 24)

    monkeypatch.setattr(gap, "QueueLengths", refused)
    with gap_of_others((OURS,)) as wait:
        wait()
