"""``net.ipv4.tcp_migrate_req``, set for as long as somebody wants it, and restored after that.

With it the kernel gives what a closing listener has queued to another one of its SO_REUSEPORT
group (Linux 5.14; ``net/core/sock_reuseport.c``, reuseport_migrate_sock). It holds for the whole
network namespace, so runs share it: the first one writes down what it was, the last one restores
it. If that one was killed, the next run, or ``synplug recover``, does.
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import suppress

from synplug.errors import SynplugError
from synplug.holding.ledger import DRAFT
from synplug.holding.runtime import create, here, tidy
from synplug.kernel import sysctl

NAME = "net.ipv4.tcp_migrate_req"
_ATTEMPTS = 100
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Migration:
    """One run's share in it."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._descriptor: int | None = None

    def begin(self) -> None:
        """Set it.

        :raises UnsupportedError: the kernel has no such parameter.
        :raises SynplugError: it cannot be set, and was not.
        """
        sysctl.read(NAME)
        for _ in range(_ATTEMPTS):
            self._write_down()
            descriptor = _lock(fcntl.LOCK_SH)
            if descriptor is not None:
                break
        else:
            raise SynplugError(f"cannot use {_path()}: it keeps vanishing")
        self._descriptor = descriptor
        try:
            sysctl.write(NAME, "1")
        except BaseException:
            self.end()
            raise

    def _write_down(self) -> None:
        """What it is, unless somebody else has: complete or not at all."""
        draft = f"{_path()}.{self._run_id}{DRAFT}"
        with os.fdopen(create(draft, os.O_TRUNC), "w") as file:
            json.dump({"run_id": self._run_id, "value": sysctl.read(NAME)}, file)
        # One that was long in the making may have been removed: then it is made again.
        with suppress(FileExistsError, FileNotFoundError):
            os.link(draft, _path())
        with suppress(FileNotFoundError):
            os.unlink(draft)

    def end(self) -> None:
        """Restore it, if we are the last who wanted it; may be called again.

        :raises SynplugError: it cannot be restored; the entry stays for ``recover``.
        """
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
            restore_unless_wanted()


def restore_unless_wanted() -> str:
    """Restore it if nobody wants it any more; returns the run that had set it, or ``""``.

    :raises SynplugError: it cannot be restored.
    """
    try:
        descriptor = _lock(fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return ""
    if descriptor is None:
        return ""
    try:
        run_id, value = _entry(descriptor)
        if sysctl.read(NAME) != value:  # it may be read-only, and was never set then
            sysctl.write(NAME, value)
        os.unlink(_path())
        return run_id
    finally:
        os.close(descriptor)
        tidy(here())


def _path() -> str:
    return f"{here()}/tcp_migrate_req"


def _lock(kind: int) -> int | None:
    """The entry, open and locked; None: there is none.

    :raises BlockingIOError: another has it, and *kind* says not to wait.
    """
    try:
        descriptor = os.open(_path(), _FLAGS)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, kind)
    except BaseException:
        os.close(descriptor)
        raise
    if os.fstat(descriptor).st_nlink:
        return descriptor
    os.close(descriptor)  # its last holder removed it between our open and our lock
    return None


def _entry(descriptor: int) -> tuple[str, str]:
    """The run that wrote it, and what the parameter was."""
    try:
        found = json.loads(os.pread(descriptor, 256, 0))
        run_id, value = str(found["run_id"]), str(found["value"])
    except (ValueError, KeyError, TypeError) as error:
        raise SynplugError(f"{_path()} cannot be read", remedy="remove it") from error
    if value not in ("0", "1"):
        raise SynplugError(f"{_path()} holds no value of {NAME}", remedy="remove it")
    return run_id, value
