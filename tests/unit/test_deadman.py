"""The timer that ends a keeper: on a process that is stopped, since that is what it is for."""

from __future__ import annotations

import os
import signal
import time

import pytest

from synplug.kernel.deadman import Deadman


@pytest.mark.parametrize("delays_s", [(0.05,), (60.0, 0.05)], ids=["set", "set again"])
def test_it_ends_a_stopped_process(delays_s: tuple[float, ...]) -> None:
    pid = os.fork()
    if pid == 0:
        deadman = Deadman()
        for delay_s in delays_s:
            deadman.set(delay_s)
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    assert _status(pid) == -signal.SIGKILL


def test_a_stopped_timer_ends_nobody() -> None:
    pid = os.fork()
    if pid == 0:
        deadman = Deadman()
        deadman.set(0.05)
        deadman.stop()
        time.sleep(0.2)
        os._exit(7)
    assert _status(pid) == 7


def _status(pid: int) -> int:
    for _ in range(500):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("it still runs")
