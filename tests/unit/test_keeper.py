"""The keeper's loop, with a backend that takes notes; whole keepers are in tests/integration."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from synplug.errors import ReleaseError
from synplug.holding import keeper, runtime
from synplug.holding.channel import Channel
from synplug.holding.keeper import Keeper
from synplug.holding.ledger import entries
from synplug.holding.locks import RunLocks
from synplug.model import Endpoint, HoldSpec, ReleaseReason

SPEC = HoldSpec(endpoints=(Endpoint(port=80),), run_id="0123abcd")


class Notes:
    """The ledger, the deadman, and a backend whose descriptor is always readable."""

    name = "plug"
    patience_s = 0.0
    outlives_its_keeper = True
    uses_queues = flushes_queues = False
    can_observe = False
    capabilities: frozenset[int] = frozenset()

    def __init__(self) -> None:
        self.log: list[str] = []
        self.left_s = self.left_at_removal_s = float("inf")
        self.signal = -1  # where one is told
        self.readable, self._other = os.pipe()
        os.write(self._other, b"x")

    def shut(self) -> None:
        os.close(self.readable)
        os.close(self._other)

    def fileno(self) -> int:
        return self.readable

    def observe(self, go_on: Callable[[], None] = lambda: None) -> None:
        go_on()
        self.log.append("observe")

    def observed(self) -> list[tuple[str, int]] | None:
        return None

    def hold(self, go_on: Callable[[], None] = lambda: None) -> None:
        go_on()
        self.log.append("hold")

    def absorb(self) -> bool:
        self.log.append("absorb")
        return False

    def may_hold_local(self) -> bool:
        return "absorb" in self.log

    def check_for_loss(self) -> int:
        return 0

    def obstacle(self) -> str:
        return "somebody's packets"

    def traces(self) -> dict[str, str]:
        return {}

    def open(self, go_on: Callable[[], None] = lambda: None) -> int:
        self.log.append("open")
        return 0

    def waiting(self) -> int:
        return 0

    def confirm_empty(self, go_on: Callable[[], None] = lambda: None) -> None:
        self.log.append("confirm")

    def remove(self) -> None:
        self.log.append("remove")
        self.left_at_removal_s = self.left_s
        if "stays" in self.log:
            raise ReleaseError("the device is still there")

    def close(self) -> None:
        self.log.append("close")

    def set(self, left_s: float) -> None:
        self.left_s = left_s

    def stop(self) -> None:
        self.left_s = float("inf")


@pytest.fixture
def notes() -> Iterator[Notes]:
    made = Notes()
    yield made
    made.shut()


@pytest.fixture
def armed(notes: Notes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keeper]:
    """A keeper whose backend is armed, and that has not yet heard anything."""
    monkeypatch.setattr(runtime, "ROOT", str(tmp_path))
    monkeypatch.setattr(keeper, "limit", lambda _: None)
    ours, theirs = Channel.pair()
    made = Keeper(channel=ours, spec=SPEC, backends=(), locks=RunLocks(()))
    made._backend = notes  # type: ignore[assignment]
    made._deadman = notes  # type: ignore[assignment]
    made._run = os.pidfd_open(os.getpid())
    made._signals, notes.signal = os.pipe2(os.O_NONBLOCK)
    made._poll.register(made._signals, select.POLLIN)
    yield made
    for descriptor in (made._run, made._signals, notes.signal):
        os.close(descriptor)
    ours.close()
    theirs.close()


def serve(made: Keeper, monkeypatch: pytest.MonkeyPatch, messages: list[str]) -> int:
    """Serve until all that is in *messages* was heard; how often it woke up for nothing."""
    woken = 0

    def turn(_self: Keeper, _timeout_ms: int | None) -> None:
        nonlocal woken
        woken += sum(1 for _ in made._poll.poll(0))
        message = messages.pop(0)
        if message == "observe":
            made._observe()
        elif message == "hold":
            made._hold()
        elif message == "end":
            made._end(ReleaseReason.ASKED)

    with monkeypatch.context() as patched:
        patched.setattr(Keeper, "_turn", turn)
        made._serve()
    return woken


def test_what_only_waits_wakes_nobody_for_a_moment_and_others_are_heard(
    armed: Keeper, notes: Notes
) -> None:
    armed._hold()
    notes.log.clear()
    armed._gather()
    assert notes.log == [], "a SYN has come, and has time"
    armed._turn(0)
    assert notes.log == ["absorb"]
    os.write(notes.signal, b"x")
    armed._gather()
    assert (armed._reason, notes.log) == (ReleaseReason.SIGNAL, ["absorb"])
    armed._turn(0)
    assert notes.log == ["absorb", "absorb"], "what comes during the release is seen to at once"


@pytest.mark.parametrize("uses_queues", [True, False])
def test_what_comes_is_seen_to_while_it_is_armed(
    armed: Keeper, notes: Notes, monkeypatch: pytest.MonkeyPatch, uses_queues: bool
) -> None:
    """And while it lingers: what others send to its queues, or what changes about its device."""
    notes.uses_queues = uses_queues
    assert serve(armed, monkeypatch, ["", "end"]) > 0
    armed._turn(0)
    assert notes.log[-1] == "absorb"


def test_who_is_observed_is_seen_to_and_the_rule_goes_even_without_a_hold(
    armed: Keeper, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes.can_observe = True
    assert serve(armed, monkeypatch, ["observe", "", "end"]) > 0, "what comes wakes it"
    assert [what for what in notes.log if what != "absorb"] == [
        "observe", "open", "confirm", "remove",
    ]  # fmt: skip
    assert list(entries()) == []


def test_its_life_ends_soon_after_the_deadline_from_the_moment_that_the_rule_is_in_force(
    armed: Keeper, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it might have waited for a lock before it, and may for another one."""
    notes.can_observe, notes.patience_s = True, 5.0
    allowed_s = SPEC.max_hold_s + 1.0  # and then new connections pass, whatever it does
    left_s: list[float] = []

    def noted(method: Callable[[], object]) -> Callable[..., int]:
        def call(go_on: Callable[[], None] = lambda: None) -> int:
            left_s.append(notes.left_s)
            method()
            go_on()
            left_s.append(notes.left_s)
            return 0

        return call

    monkeypatch.setattr(notes, "observe", noted(notes.observe))
    monkeypatch.setattr(notes, "open", noted(notes.open))
    armed._observe()
    assert left_s[0] == SPEC.max_hold_s + 0.6 + 5.0, "it may wait for the lock"
    assert left_s[1] <= allowed_s, "no more, once the rule is put in"
    armed._hold()
    assert notes.left_s <= allowed_s
    armed._deadline_s = 0.0
    armed._open()
    assert max(left_s[2:]) <= 1.0, "nor when it opens, and each sign of life gives it no more"


def test_what_cannot_observe_changes_nothing_before_the_hold(
    armed: Keeper, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(armed, monkeypatch, ["observe", "", "end"])
    assert notes.log == ["remove"]


def test_what_changes_wakes_it_while_it_holds(armed: Keeper, notes: Notes) -> None:
    armed._hold()
    armed._turn(0)
    assert notes.log == ["hold", "absorb"]


def test_it_tells_once_that_somebody_on_this_host_may_wait(
    armed: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run looks for connections of its own from then on, and not before: that is dear."""
    said: list[str] = []
    monkeypatch.setattr(armed._audience, "say", lambda event, **_: said.append(event))
    armed._hold()
    assert said == ["holding"]
    armed._turn(0)
    armed._turn(0)
    assert said == ["holding", "holds local"]


def test_what_it_polls_is_asked_for_before_anybody_waits(
    armed: Keeper, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who gives up opens only what it knows to be held."""
    monkeypatch.setattr(Notes, "fileno", lambda _: -1)
    with pytest.raises(ValueError, match="file descriptor"):
        armed._hold()
    assert "hold" not in notes.log


@pytest.mark.parametrize("uses_queues", [False, True])
def test_only_who_uses_queues_has_the_guard(armed: Keeper, notes: Notes, uses_queues: bool) -> None:
    notes.uses_queues = uses_queues
    armed._hold()
    assert (armed._guard._descriptor is not None) is uses_queues
    armed._guard.leave()


def test_who_uses_no_queues_waits_for_nobody(
    armed: Keeper, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Keeper, "_turn", lambda *_: pytest.fail("it waits"))
    armed._dismantle()
    assert notes.log == ["remove"]


def test_a_timer_runs_while_the_rest_is_removed(armed: Keeper, notes: Notes) -> None:
    """One that is stopped meanwhile keeps a lock that others wait for."""
    armed._dismantle()
    assert notes.left_at_removal_s < 10


def test_the_first_sigterm_ends_the_hold_and_the_second_the_wait_for_others(
    armed: Keeper, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes.flushes_queues = True
    monkeypatch.setattr(armed, "_say_lingering", lambda _: None)
    turn = Keeper._turn
    turns = 0

    def turned(made: Keeper, _timeout_ms: int | None) -> None:
        nonlocal turns
        turns += 1
        if turns == 3:
            os.write(notes.signal, bytes([signal.SIGTERM]))
        turn(made, 0)

    os.write(notes.signal, bytes([signal.SIGTERM]))
    turn(armed, 0)
    assert armed._reason is ReleaseReason.SIGNAL
    monkeypatch.setattr(Keeper, "_turn", turned)
    armed._dismantle()
    assert turns == 3
    assert notes.log == ["remove"]


@pytest.mark.parametrize("outlives", [False, True])
def test_what_could_not_be_removed_stays_in_the_ledger(
    armed: Keeper, notes: Notes, monkeypatch: pytest.MonkeyPatch, outlives: bool
) -> None:
    """Unless it goes with the keeper."""
    monkeypatch.setattr(Keeper, "_turn", lambda *_: None)
    notes.outlives_its_keeper = outlives
    notes.log.append("stays")
    armed._hold()
    armed._give_up()
    assert notes.log[-1] == "close"
    assert [entry.run_id for entry in entries()] == [SPEC.run_id] * outlives
