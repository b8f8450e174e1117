"""The watcher: cleans up after a keeper that was killed, where the kernel does not.

A forked child of the keeper with a session of its own, and outside of its control group where
that can be had, so that a SIGKILL of the whole process group, or of the whole control group, does
not end both. It waits for the keeper's end; one that has cleaned up leaves nothing to do.
"""

from __future__ import annotations

import os
import select
from contextlib import suppress

from synplug.errors import SynplugError
from synplug.holding.recover import recover_run
from synplug.kernel import procfs


def start(run_id: str) -> None:
    """Have the calling process, the keeper of that run, watched from now on."""
    keeper = os.pidfd_open(os.getpid())
    if os.fork() == 0:
        try:
            _watch(keeper, run_id)
        finally:
            os._exit(0)
    os.close(keeper)


def _watch(keeper: int, run_id: str) -> None:
    os.setsid()
    procfs.leave_control_group()
    procfs.close_descriptors_but((keeper,))  # a lock that we had would stay taken
    procfs.set_name("synplug-watcher")
    poll = select.poll()
    poll.register(keeper, select.POLLIN)
    poll.poll()
    with suppress(SynplugError):  # the ledger keeps what is left for 'synplug recover'
        recover_run(run_id)
