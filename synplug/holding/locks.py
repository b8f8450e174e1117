"""Locks: files in the folder of the network namespace that exist while they are held."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from synplug.errors import LockError
from synplug.holding.runtime import create, here, names_in, tidy
from synplug.kernel import procfs
from synplug.model import Endpoint, Family
from synplug.record import Record

_LOCK_POLL_S = 0.01
#: A keeper that is stopped in its removal is ended by then (:mod:`synplug.holding.lingering`).
_REMOVAL_S = 7.0
_REMOVAL_POLL_S = 0.002
_GRACE_S = 0.05  # a run that tidies up has each lock for a moment; that is no other run


class _Wanted(Record):
    """A lock to take.

    :param kind: of flock(2). :param holder: who has it when we do not get it.
    """

    path: str
    kind: int
    holder: str


class RunLocks:
    """The locks of a run's endpoints in this network namespace, and of the name of its hold.

    Each port has a lock for each IP version: an exact address shares it and has one of its own
    besides; whoever wants every address has it alone.

    A lock is on its file's open description: a forked keeper has it, too, for as long as it
    lives. They are taken in the same order by all, so two runs cannot wait for each other.
    """

    def __init__(self, endpoints: Iterable[Endpoint], name: str = "") -> None:
        self._folder = here()
        named = f"a hold named {name!r} is in force"
        self._wanted = [
            *([_Wanted(path=name_lock(name), kind=fcntl.LOCK_EX, holder=named)] if name else ()),
            *_of_endpoints(self._folder, set(endpoints)),
        ]
        self._taken: list[int] = []

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The open files that carry the locks."""
        return tuple(self._taken)

    def take(
        self,
        *,
        timeout_s: float,
        interrupted: Callable[[], bool] = lambda: False,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """Take them all, waiting up to *timeout_s* seconds for another run.

        :param interrupted: says that the wait has lost its point.
        :param pause: waits so many seconds, and may have other duties meanwhile.
        :raises LockError: it took longer, or was interrupted.
        """
        deadline_s = time.monotonic() + timeout_s
        try:
            for wanted in self._wanted:
                left_s = max(deadline_s - time.monotonic(), _GRACE_S)
                self._taken.append(_patiently(wanted, left_s, interrupted, pause))
        except BaseException:
            self.drop()
            raise

    def drop(self) -> None:
        """Give them back, and remove their files while that is still ours to do."""
        for descriptor, wanted in zip(self._taken, self._wanted, strict=False):
            with suppress(BlockingIOError):  # another run shares it
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_same(descriptor, wanted.path):
                    _remove(wanted.path)
            os.close(descriptor)
        self._taken.clear()
        tidy(self._folder)

    def leave(self) -> None:
        """Leave them to a keeper, who has them, too."""
        for descriptor in self._taken:
            os.close(descriptor)
        self._taken.clear()


def _of_endpoints(folder: str, endpoints: set[Endpoint]) -> list[_Wanted]:
    """The locks of *endpoints*, in the order in which all take them."""
    wanted = []
    for port in sorted({endpoint.port for endpoint in endpoints}):
        mine = [endpoint for endpoint in endpoints if endpoint.port == port]
        for family in Family:
            here_too = [endpoint for endpoint in mine if family in endpoint.families]
            if here_too:
                alone = any(endpoint.exact_address is None for endpoint in here_too)
                wanted.append(_of_family(folder, port, family, alone=alone))
        addresses = {endpoint.exact_address for endpoint in mine} - {None}
        wanted += sorted(
            (
                _Wanted(
                    path=f"{folder}/port-{port}-{address}.lock",
                    kind=fcntl.LOCK_EX,
                    holder=f"another synplug run has port {port} at {address}",
                )
                for address in addresses
            ),
            key=lambda lock: lock.path,
        )
    return wanted


def _of_family(folder: str, port: int, family: Family, *, alone: bool) -> _Wanted:
    """The lock of a port in one IP version; *alone* for every address."""
    which = "an" if alone else "every"
    return _Wanted(
        path=f"{folder}/port-{port}-ipv{family.value}.lock",
        kind=fcntl.LOCK_EX if alone else fcntl.LOCK_SH,
        holder=f"another synplug run has port {port} at {which} IPv{family.value} address",
    )


def name_lock(name: str) -> str:
    """The path of the lock of a named hold in this network namespace."""
    return f"{here()}/name-{name}.lock"


def socket_beside(lock: str) -> str:
    """The path of the socket that whoever has the lock of a name may have."""
    return lock.removesuffix(".lock") + ".sock"


def _patiently(
    wanted: _Wanted,
    timeout_s: float,
    interrupted: Callable[[], bool],
    pause: Callable[[float], None],
) -> int:
    """Take the lock; retries only when somebody has it, since importing costs."""
    descriptor = _try_lock(wanted.path, wanted.kind)
    if descriptor is None and timeout_s > 0:
        from tenacity import Retrying, retry_if_result, wait_fixed

        end_s = time.monotonic() + timeout_s

        attempts = Retrying(
            stop=lambda _: interrupted() or time.monotonic() >= end_s,
            wait=wait_fixed(_LOCK_POLL_S),
            sleep=pause,
            retry=retry_if_result(lambda found: found is None),
            retry_error_callback=lambda _: None,
        )
        descriptor = attempts(_try_lock, wanted.path, wanted.kind)
    if descriptor is None:
        raise LockError(
            wanted.holder,
            remedy="'synplug status' shows it; --lock-timeout says how long to wait for it",
        )
    return descriptor


def _try_lock(path: str, kind: int) -> int | None:
    """An open, locked file at *path*, or None while another has it."""
    try:
        return _lock(path, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return None


def _lock(path: str, kind: int) -> int:
    """An open, locked file at *path*.

    :raises BlockingIOError: another has it, and *kind* says not to wait.
    """
    while True:
        descriptor = create(path, 0)
        try:
            fcntl.flock(descriptor, kind)
        except BaseException:
            os.close(descriptor)
            raise
        if _is_same(descriptor, path):
            return descriptor
        os.close(descriptor)  # its last holder removed it between our open and our lock


def _is_same(descriptor: int, path: str) -> bool:
    """Whether the locked file is still the one at *path*: its last holder removes it."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def remove_unused_locks() -> None:
    """Remove the lock files of this network namespace that nobody holds, and their sockets.

    They are a dead run's.
    """
    folder = here()
    locks = set(names_in(folder, ".lock"))
    locks |= {f"{name.removesuffix('.sock')}.lock" for name in names_in(folder, ".sock")}
    for name in sorted(locks):
        descriptor = _try_lock(f"{folder}/{name}", fcntl.LOCK_EX)
        if descriptor is not None:
            _remove(f"{folder}/{name}")
            os.close(descriptor)
    tidy(folder)


def _remove(lock: str) -> None:
    """Remove the file of a lock that we have, and the socket that only its holder may have."""
    for path in (socket_beside(lock), lock):
        with suppress(FileNotFoundError):
            os.unlink(path)


class FlushGuard:
    """Keeps a run from removing its table while another run holds packets.

    Unregistering any base chain drops every packet that is held in any queue of the network
    namespace (``net/netfilter/core.c``, nf_queue_nf_hook_drop). Whoever holds has the guard
    shared; whoever removes a table has it alone.
    """

    def __init__(self) -> None:
        self._folder = here()
        self._path = f"{self._folder}/flush.lock"
        self._descriptor: int | None = None

    def check(self) -> None:
        """Wait the moment that a removal takes.

        :raises LockError: somebody does not end it.
        """
        self.share()
        self.leave()

    def share(self) -> None:
        """Take it for a hold; the same wait, and the same error."""
        deadline_s = time.monotonic() + _REMOVAL_S
        while (descriptor := _try_lock(self._path, fcntl.LOCK_SH)) is None:
            if time.monotonic() > deadline_s:
                raise self._is_stuck()
            time.sleep(_REMOVAL_POLL_S)
        self._descriptor = descriptor

    def _is_stuck(self) -> LockError:
        pid = 0
        with suppress(OSError):
            pid = procfs.flock_holder(self._path)
        which = f"pid {pid}" if pid else "of another PID namespace"
        return LockError(
            f"another run's keeper, {which}, does not end the removal of its hold, and nobody else "
            "can hold meanwhile",
            remedy=f"end it, by 'kill -9 {pid or 'PID'}'; "
            "one that does not end is frozen with its control group, or waits in the kernel",
        )

    def try_alone(self) -> bool:
        """Exchange it for a removal; False while another run holds."""
        self.leave()
        self._descriptor = _try_lock(self._path, fcntl.LOCK_EX)
        return self._descriptor is not None

    def leave(self) -> None:
        """Give it back; the last one removes the file."""
        if self._descriptor is None:
            return
        with suppress(BlockingIOError):
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same(self._descriptor, self._path):
                os.unlink(self._path)
        os.close(self._descriptor)
        self._descriptor = None
        tidy(self._folder)
