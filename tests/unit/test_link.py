"""What is said of a keeper that is gone; whole keepers are in tests/integration."""

from __future__ import annotations

import pytest

from synplug.errors import KeeperError, ReleaseError
from synplug.holding import attached
from synplug.holding.attached import AttachedHold
from synplug.holding.link import KeeperLink
from synplug.holding.recover import Recovered


class Link(KeeperLink):
    """To a keeper that has died, and left what may not go away."""

    error: ReleaseError | None = None

    def _clean_up_after_death(self) -> None:
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
