"""The lock of iptables(8), taken as it takes it: flock(2) on one file for every table."""

from __future__ import annotations

import fcntl
import os

from synplug.errors import KernelError, LockError, PrivilegeError

#: Others wait in a queue that we are not in: look often, and not in step with them.
_LOCK_POLL_MAX_S = 0.005


def lock(path: str, patience_s: float) -> int:
    """Lock the file as iptables(8) does."""
    descriptor = _open_lock(path)
    if not _try_lock(descriptor) and not _lock_patiently(descriptor, patience_s):
        os.close(descriptor)
        waited = f", for {patience_s:g} s" if patience_s else ""
        raise LockError(
            f"another program has {path}, the lock of iptables{waited}",
            remedy=f"'fuser -v {path}' names it",
        )
    return descriptor


def load_library() -> None:
    """Import what retries: for who may not be able to when it has to."""
    import tenacity  # noqa: F401


def _lock_patiently(descriptor: int, patience_s: float) -> bool:
    """Retry; importing what retries is left to those who have to."""
    from tenacity import Retrying, retry_if_result, stop_after_delay, wait_random

    attempts = Retrying(
        stop=stop_after_delay(patience_s),
        wait=wait_random(0, _LOCK_POLL_MAX_S),
        retry=retry_if_result(lambda taken: not taken),
        retry_error_callback=lambda _: False,
    )
    return bool(attempts(_try_lock, descriptor))


def _open_lock(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except PermissionError as error:
        raise PrivilegeError(
            f"cannot open {path}, the lock of iptables", capability="CAP_DAC_OVERRIDE"
        ) from error
    except OSError as error:
        raise KernelError(f"open {path}, the lock of iptables", error.errno or 0) from error


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
