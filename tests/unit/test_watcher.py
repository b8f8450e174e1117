"""The watcher's clean-up, with a clock that it waits on."""

from __future__ import annotations

import os

import pytest

from synplug.errors import KeeperError, KernelError, LockError
from synplug.holding import watcher


class Trouble:
    """A clean-up that fails so often; the clock goes on with each pause."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls = 0
        self.now_s = 0.0

    def recover_run(self, run_id: str) -> None:
        self.calls += 1
        if self.calls <= self.failures:
            raise LockError("another program has the lock of iptables")

    def pause(self, seconds: float) -> None:
        assert 0 < seconds <= 5
        self.now_s += seconds


def _clean_up(trouble: Trouble, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(watcher, "recover_run", trouble.recover_run)
    return watcher.clean_up("0123abcd", clock=lambda: trouble.now_s, pause=trouble.pause)


def test_it_is_tried_again_until_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    trouble = Trouble(failures=6)
    assert _clean_up(trouble, monkeypatch)
    assert trouble.calls == 7
    assert 1 < trouble.now_s < 30


def test_it_is_given_up_after_two_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    trouble = Trouble(failures=10**6)
    assert not _clean_up(trouble, monkeypatch)
    assert 120 <= trouble.now_s < 130
    assert trouble.calls < 50


def test_one_that_cannot_watch_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is armed: a plug without a watcher could hold for ever."""

    def refuse(_capabilities: frozenset[int]) -> None:
        raise KernelError("give up capabilities", 1)

    monkeypatch.setattr(watcher, "limit", refuse)
    with pytest.raises(KeeperError, match="watcher"):
        watcher.start("0123abcd", frozenset())
    os.waitpid(-1, 0)
