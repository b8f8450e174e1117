"""Whether the run has ended, as its keeper sees it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from synplug.holding import keeper_process
from synplug.holding.keeper_process import has_ended
from synplug.model import ReleaseReason

#: It ends when its input does.
_WAITS = [sys.executable, "-c", "import sys; sys.stdin.read()"]


@pytest.mark.parametrize("reason", [None, *ReleaseReason])
def test_a_run_that_lives_has_not_ended(reason: ReleaseReason | None) -> None:
    with subprocess.Popen(_WAITS, stdin=subprocess.PIPE) as run:
        pidfd = os.pidfd_open(run.pid)
        assert not has_ended(pidfd, reason)
        run.stdin.close()  # type: ignore[union-attr]
        run.wait()
        assert has_ended(pidfd, reason)
        os.close(pidfd)


def test_one_that_may_have_had_the_same_signal_gets_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keeper_process, "_DYING_MS", 30_000)
    with subprocess.Popen(["sleep", "0.1"]) as run:
        pidfd = os.pidfd_open(run.pid)
        assert not has_ended(pidfd, ReleaseReason.DEADLINE)
        assert has_ended(pidfd, ReleaseReason.SIGNAL)
        os.close(pidfd)
