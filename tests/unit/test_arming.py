"""What a backend that could not be armed leaves, and what is said of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from synplug.errors import KernelError, LockError, ReleaseError, UnsupportedError
from synplug.holding import locks, runtime, watcher
from synplug.holding.arming import arm_first
from synplug.holding.ledger import Ledger, entries
from synplug.holding.locks import FlushGuard
from synplug.model import Endpoint, HoldSpec

SPEC = HoldSpec(endpoints=(Endpoint(port=80),), run_id="0123abcd")


class Refused:
    """A backend that the kernel refuses, after it has made something."""

    name = "plug"
    outlives_its_keeper = False

    def __init__(self, left: str = "", *, uses_queues: bool = False) -> None:
        self._left = left
        self.uses_queues = uses_queues

    def load_libraries(self) -> None:
        pass

    def traces(self) -> dict[str, str]:
        return {"ifb device": "synplug0123abcd"}

    def arm(self) -> None:
        raise KernelError("add a filter", 95)

    def close(self) -> None:
        if self._left:
            raise ReleaseError(self._left)


def _arm(*backends: Refused) -> None:
    makers: Any = tuple(lambda _spec, made=made: made for made in backends)
    nobody: Any = type("Nobody", (), {"close_door": lambda _self: None})()
    arm_first(makers, SPEC, Ledger(SPEC.run_id), FlushGuard(), nobody)


@pytest.fixture(autouse=True)
def _root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "ROOT", str(tmp_path / "synplug"))
    monkeypatch.setattr(watcher, "start", lambda _run_id, _capabilities: True)


def test_what_is_undone_is_not_in_the_ledger() -> None:
    with pytest.raises(KernelError):
        _arm(Refused())
    assert list(entries()) == []


def test_what_could_not_be_undone_stays_in_the_ledger_and_is_told() -> None:
    with pytest.raises(ReleaseError, match=r"add a filter.*; and .*the clsact of lo") as told:
        _arm(Refused("the clsact of lo is still there"), Refused())
    assert "synplug recover" in told.value.remedy
    assert [entry.traces for entry in entries()] == [{"ifb device": "synplug0123abcd"}]


def test_what_would_help_the_last_one_is_told_where_none_could_be_armed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def arm(_: Refused) -> None:
        raise UnsupportedError("held SYNs pass by a firewall", remedy="--backend plug")

    monkeypatch.setattr(Refused, "arm", arm)
    with pytest.raises(UnsupportedError, match="pass by a firewall") as told:
        _arm(Refused(), Refused())
    assert told.value.remedy.startswith("--backend plug; 'synplug doctor'")


@pytest.mark.parametrize("uses_queues", [True, False])
def test_where_somebody_does_not_end_his_removal_nothing_is_made(
    monkeypatch: pytest.MonkeyPatch, uses_queues: bool
) -> None:
    """Nobody could hold; another backend that uses no queues is not taken instead."""
    monkeypatch.setattr(locks, "_REMOVAL_S", 0.05)
    remover = FlushGuard()
    assert remover.try_alone()
    monkeypatch.setattr(Refused, "arm", lambda _: None)
    if uses_queues:
        with pytest.raises(LockError, match=rf"pid {os.getpid()}, does not end the removal"):
            _arm(Refused(uses_queues=True), Refused())
        assert list(entries()) == []
    else:
        _arm(Refused())
    remover.leave()
