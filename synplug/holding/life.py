"""Whether a run's keeper lives: it has a lock for as long as it does.

A pid says nothing to another PID namespace, which may share the network namespace and /run; a
flock(2) is the file's, whoever looks. The kernel gives it up before a pidfd tells of the end.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress

from synplug.holding.runtime import create, here

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Life:
    """A keeper's own lock. It is one of those that ``recover`` removes when nobody has them."""

    def __init__(self, run_id: str) -> None:
        self._path = _path(run_id)
        self._descriptor = -1

    def begin(self) -> None:
        """Live, for all to see; waits the moment that somebody's look takes."""
        while self._descriptor < 0:
            descriptor = create(self._path, 0)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except BaseException:
                os.close(descriptor)
                raise
            if os.fstat(descriptor).st_nlink:
                self._descriptor = descriptor
            else:
                os.close(descriptor)  # removed between our open and our lock

    def end(self) -> None:
        """Live no more; nothing is left of it."""
        if self._descriptor >= 0:
            with suppress(FileNotFoundError):
                os.unlink(self._path)
            os.close(self._descriptor)
            self._descriptor = -1


def lives(run_id: str) -> bool:
    """Whether the keeper of that run has its lock.

    :raises OSError: that cannot be found out, which is not "no".
    """
    try:
        descriptor = os.open(_path(run_id), _FLAGS)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _path(run_id: str) -> str:
    return f"{here()}/keeper-{run_id}.lock"
