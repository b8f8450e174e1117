"""What is said of a keeper that is gone; whole keepers are in tests/integration."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from synplug.errors import KeeperError, ReleaseError
from synplug.holding import attached, link
from synplug.holding.attached import AttachedHold
from synplug.holding.link import KeeperLink
from synplug.holding.recover import Recovered
from synplug.model import ReleaseReason


class Link(KeeperLink):
    """To a keeper that has died, and left what may not go away."""

    error: ReleaseError | None = None

    def __init__(self, keeper_pid: int = 0) -> None:
        super().__init__()
        self.keeper_pid = keeper_pid
        self._held_at_s = 1.0
        self.is_cleaned_up = False
        if keeper_pid:
            self._pidfd = os.pidfd_open(keeper_pid)

    def _clean_up_after_death(self) -> None:
        self.is_cleaned_up = True
        if self.error is not None:
            raise self.error


def _death(link: KeeperLink) -> KeeperError:
    with pytest.raises(KeeperError) as info:
        link._died()
    return info.value


def test_what_is_cleaned_up_is_no_longer_held() -> None:
    assert "no longer held" in str(_death(Link()))


def test_what_stays_is_named_and_not_said_to_be_gone() -> None:
    link = Link()
    link.error = ReleaseError("the device synplug0123abcd is still there", remedy="remove it")
    words = str(_death(link))
    assert "the device synplug0123abcd is still there (remove it)" in words
    assert "synplug recover" in words
    assert "no longer held" not in words


@pytest.mark.parametrize(
    ("run_id", "is_told"), [("0123abcd", True), ("", True), ("ffffffff", False)]
)
def test_a_hold_that_was_asked_for_by_name_says_so_too(
    monkeypatch: pytest.MonkeyPatch, run_id: str, is_told: bool
) -> None:
    """Of its own run; of any, if it has never heard which one that is."""
    left = Recovered(run_id="0123abcd", backend="plug", endpoints=(), error="still there")
    monkeypatch.setattr(attached, "recover", lambda: [left])
    kept = AttachedHold.__new__(AttachedHold)
    KeeperLink.__init__(kept)
    kept._run_id = run_id
    words = str(_death(kept))
    assert ("still there" in words) is is_told
    assert ("no longer held" in words) is not is_told


@pytest.fixture
def keeper(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A process that says nothing."""
    monkeypatch.setattr(link, "_GONE_TIMEOUT_S", 0.05)
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_one_that_does_not_answer_is_ended(keeper: subprocess.Popen[bytes]) -> None:
    """The control of the next."""
    silent = Link(keeper.pid)
    with pytest.raises(KeeperError, match="does not listen; connections are no longer held"):
        silent._say("open")
    assert keeper.wait(10) == -signal.SIGKILL
    assert silent.is_cleaned_up
    assert silent.result is not None
    assert silent.result.reason is ReleaseReason.KEEPER_LOST
    os.close(silent._pidfd)


def test_one_that_cannot_be_ended_is_said_to_hold_on(
    keeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits in the kernel for what no signal interrupts, another's network device perhaps."""
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda *_: None)
    stuck = Link(keeper.pid)
    with pytest.raises(KeeperError, match="may still be held") as info:
        stuck._say("open")
    assert "no longer held" not in str(info.value)
    assert f"/proc/{keeper.pid}/stack" in info.value.remedy
    assert not stuck.is_cleaned_up
    assert stuck.result is not None
    assert stuck.result.reason is ReleaseReason.KEEPER_STUCK
    os.close(stuck._pidfd)


def test_one_whose_pid_is_not_known_here_is_not_said_to_have_ended() -> None:
    """That of a hold in another PID namespace."""
    with pytest.raises(KeeperError, match="may still be held"):
        Link()._kill("does not answer")
