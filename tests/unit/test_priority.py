"""Going first while others wait, and nobody else with us."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from synplug.handover.priority import ahead_of_others

_SHOW = "import os; print(os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0))"
_PLAIN = f"0 {os.SCHED_OTHER}"


def mine() -> str:
    return f"{os.getpriority(os.PRIO_PROCESS, 0)} {os.sched_getscheduler(0)}"


def of_a_child() -> str:
    return subprocess.run(
        [sys.executable, "-c", _SHOW], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture(autouse=True)
def _plain() -> Iterator[None]:
    """Each begins at nice 0, and ends there."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, 0)  # fails for users whose tests are run by nice(1)
    yield
    assert mine() == _PLAIN
    os.setpriority(os.PRIO_PROCESS, 0, before)


def test_we_go_first_and_what_we_start_does_not() -> None:
    attempt = [sys.executable, "-c", "import os; os.setpriority(os.PRIO_PROCESS, 0, -10)"]
    may = subprocess.run(attempt, check=False, stderr=subprocess.DEVNULL).returncode == 0
    with ahead_of_others():
        assert (os.getpriority(os.PRIO_PROCESS, 0) < 0) is may
        assert of_a_child() == _PLAIN
    assert of_a_child() == _PLAIN


def test_an_error_ends_it_too() -> None:
    with pytest.raises(KeyError), ahead_of_others():
        raise KeyError


@pytest.mark.parametrize("policy", [os.SCHED_BATCH, os.SCHED_IDLE])
def test_who_has_another_policy_keeps_it(policy: int) -> None:
    seen: list[str] = []

    def run() -> None:  # in a thread: a policy is a thread's
        os.sched_setscheduler(0, policy, os.sched_param(0))
        with ahead_of_others():
            seen.append(mine())
        seen.append(mine())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [f"0 {policy}"] * 2


def test_who_is_nice_stays_nice() -> None:
    lines = ["import os", "from synplug.handover.priority import ahead_of_others"]
    lines += ["with ahead_of_others():", f"    {_SHOW.partition('; ')[2]}"]
    argv = ["nice", "-n", "5", sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == f"5 {os.SCHED_OTHER}"
