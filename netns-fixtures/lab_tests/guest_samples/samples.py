"""What can become of a test in a guest. Not collected by itself; see test_guest.py."""

from __future__ import annotations

from pathlib import Path

import pytest


def test_passes() -> None:
    print("said in the guest")


def test_fails() -> None:
    assert Path("/proc/version").read_text() == "something else"


@pytest.mark.skip(reason="not today")
def test_is_skipped() -> None:
    pass


def test_kills_its_kernel() -> None:
    Path("/proc/sysrq-trigger").write_text("c")


def test_is_owed_by_the_dead() -> None:
    pass
