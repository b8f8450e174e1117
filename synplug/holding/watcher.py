"""The watcher: cleans up after a keeper that was killed, where the kernel does not.

A forked child of the keeper with a session of its own, and outside of its control group where
that can be had, so that a SIGKILL of the whole process group, or of the whole control group, does
not end both. It waits for the keeper's end; one that has cleaned up leaves nothing to do. What
that takes was imported before the fork, so it needs no capabilities but the backend's.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

from synplug.errors import KeeperError, SynplugError
from synplug.holding.keeper_process import limit
from synplug.holding.recover import recover_run
from synplug.kernel import procfs
from synplug.kernel.control_group import leave_control_group

#: Somebody else may have a lock that the clean-up needs, for long.
_GIVE_UP_S = 120.0
_PAUSE_MIN_S, _PAUSE_MAX_S = 0.1, 5.0
#: What the watcher tells of itself.
_APART, _WITH_THE_KEEPER = b"+", b"-"


def start(run_id: str, capabilities: frozenset[int]) -> bool:
    """Have the calling process, the keeper of that run, watched from now on.

    :param capabilities: all that its clean-up needs.
    :returns: whether the watcher is out of reach of who kills the keeper's control group, or its
        PID namespace.
    :raises KeeperError: there is no watcher.
    """
    keeper = os.pidfd_open(os.getpid())
    told, tell = os.pipe2(os.O_CLOEXEC)
    if os.fork() == 0:
        try:
            _watch(keeper, run_id, tell, capabilities)
        finally:
            os._exit(0)
    os.close(keeper)
    os.close(tell)
    with os.fdopen(told, "rb") as pipe:
        word = pipe.read()
    if not word:
        raise KeeperError("the watcher of the keeper ended before it could watch")
    return word == _APART


def _watch(keeper: int, run_id: str, tell: int, capabilities: frozenset[int]) -> None:
    os.setsid()
    is_apart = leave_control_group()
    procfs.close_descriptors_but((keeper, tell))  # a lock that we had would stay taken
    procfs.set_name("synplug-watcher")
    limit(capabilities)
    os.write(tell, _APART if is_apart else _WITH_THE_KEEPER)
    os.close(tell)
    poll = select.poll()
    poll.register(keeper, select.POLLIN)
    poll.poll()
    clean_up(run_id)


def clean_up(
    run_id: str,
    *,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> bool:
    """Clean up after that run, if need be again and again for two minutes; whether it is done.

    If it is not, the ledger keeps what is left for 'synplug recover'.
    """
    give_up_s = clock() + _GIVE_UP_S
    pause_s = _PAUSE_MIN_S
    while True:
        try:
            recover_run(run_id)
        except (SynplugError, OSError):
            if clock() >= give_up_s:
                return False
        else:
            return True
        pause(pause_s)
        pause_s = min(2 * pause_s, _PAUSE_MAX_S)
