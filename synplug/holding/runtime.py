"""/run/synplug: the ledger of what stands in the kernel, and the locks.

One folder a network namespace (its inode number), root's alone. A ledger entry is written
before the kernel is changed and removed after the undo was verified; a lock is a file that
exists while it is held. At rest the folders are gone.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from synplug.errors import LockError, PrivilegeError, SynplugError
from synplug.kernel import procfs
from synplug.kernel.namespaces import network_inode

ROOT = "/run/synplug"
_FORMAT = 1
_CREATE = os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_WRONLY
_LOCK_POLL_S, _DRAFT_S = 0.01, 5.0
_GRACE_S = 0.05  # a run that tidies up has each lock for a moment; that is no other run
#: Entries are files, and files can say anything.
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "run_id": str,
    "keeper": int,
    "keeper_start": int,
    "backend": str,
    "state": str,
    "deadline_s": (int, float),
    "traces": dict,
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A hold, as the ledger has it.

    :param keeper: its keeper's pid. :param keeper_start: that process's start time in ticks.
    :param deadline_s: CLOCK_MONOTONIC of its end; 0 while it is only armed.
    :param traces: what stands in the kernel, by kind and name.
    """

    run_id: str
    keeper: int
    keeper_start: int
    backend: str
    state: str
    endpoints: tuple[str, ...]
    deadline_s: float = 0.0
    traces: dict[str, str] = field(default_factory=dict)

    @property
    def is_live(self) -> bool:
        """Whether its keeper still runs; a zombie, or another process of its pid, does not."""
        return (
            self.keeper_start != 0
            and procfs.start_time(self.keeper) == self.keeper_start
            and procfs.is_alive(self.keeper)
        )


def _folder(path: str) -> None:
    """Make the folder, or check that it is ours alone.

    :raises SynplugError: it is a link, another's, or writable by others.
    """
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except PermissionError as error:
        raise PrivilegeError(
            f"cannot make {path}",
            capability="CAP_DAC_OVERRIDE",
            remedy="run it as root, or have the folder made for your user (RuntimeDirectory=)",
        ) from error
    except FileNotFoundError:
        raise  # its parent has gone just now: the caller tries again
    except OSError as error:
        raise SynplugError(f"cannot make {path}: {error.strerror}") from error
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise SynplugError(
            f"{path} is not a folder that only its owner can write to",
            remedy="look who made it, and remove it",
        )


def check_root() -> None:
    """Make sure that /run/synplug can be used; leaves it as it was.

    :raises SynplugError: it cannot.
    """
    _folder(ROOT)
    _tidy(ROOT)


def _here() -> str:
    return f"{ROOT}/{network_inode()}"


def _tidy(folder: str) -> None:
    """Remove the folders if nothing is in them any more."""
    for path in (folder, ROOT):
        with suppress(OSError):
            os.rmdir(path)


def _create(path: str, flags: int) -> int:
    """Open a file below a folder that another run may be removing just now."""
    for _ in range(100):
        try:
            _folder(ROOT)
            _folder(os.path.dirname(path))
            return os.open(path, flags | _CREATE, 0o600)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise SynplugError(f"cannot create {path}: {error.strerror}") from error
    raise SynplugError(f"cannot create {path}: its folder keeps vanishing")


class Ledger:
    """The entry of one run."""

    def __init__(self, run_id: str) -> None:
        self._folder = _here()
        self._path = f"{self._folder}/{run_id}.json"

    def write(self, entry: Entry) -> None:
        """Write it durably enough for what it is for: a crash of processes, not of the machine."""
        draft = self._path + ".new"
        descriptor = _create(draft, os.O_TRUNC)
        with os.fdopen(descriptor, "w") as file:
            json.dump({"format": _FORMAT, **entry.__dict__}, file)
        os.rename(draft, self._path)

    def remove(self) -> None:
        """Remove it; it may be gone already."""
        with suppress(FileNotFoundError):
            os.unlink(self._path)
        _tidy(self._folder)


def entries() -> Iterator[Entry]:
    """The entries of this network namespace; what cannot be read as one is passed over."""
    folder = _here()
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return  # none, or a place that no run could have written to
    for name in names:
        if not name.endswith(".json"):
            continue
        with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            yield _entry(f"{folder}/{name}")


def _entry(path: str) -> Entry:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor) as file:
        data: Any = json.load(file)
    if not isinstance(data, dict) or data.pop("format") != _FORMAT:
        raise ValueError("another version's ledger entry")
    data["endpoints"] = tuple(map(str, data["endpoints"]))
    entry = Entry(**data)
    if not all(isinstance(getattr(entry, name), kind) for name, kind in _FIELDS.items()):
        raise TypeError("a field of another type")
    return entry


def remove_drafts() -> None:
    """Remove drafts of entries: a keeper died while it wrote one. A live one writes another."""
    folder = _here()
    with suppress(OSError):
        for name in os.listdir(folder):
            if name.endswith(".json.new") and not _is_recent(f"{folder}/{name}"):
                os.unlink(f"{folder}/{name}")
    _tidy(folder)


def _is_recent(path: str) -> bool:
    """Whether a live run may be writing it just now."""
    return time.time() - os.stat(path).st_mtime < _DRAFT_S


class PortLocks:
    """The locks of a run's ports in this network namespace.

    A lock is on its file's open description: a forked keeper has it, too, for as long as it
    lives. Ports are taken in ascending order, so two runs cannot wait for each other.
    """

    def __init__(self, ports: Iterable[int]) -> None:
        self._folder = _here()
        self._paths = {port: f"{self._folder}/port-{port}.lock" for port in sorted(set(ports))}
        self._taken: list[int] = []

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The open files that carry the locks."""
        return tuple(self._taken)

    def take(self, *, timeout_s: float, interrupted: Callable[[], bool] = lambda: False) -> None:
        """Take them all, waiting up to *timeout_s* seconds for another run.

        :param interrupted: says that the wait has lost its point.
        :raises LockError: it took longer, or was interrupted.
        """
        deadline_s = time.monotonic() + timeout_s
        try:
            for port, path in self._paths.items():
                left_s = max(deadline_s - time.monotonic(), _GRACE_S)
                self._taken.append(_patiently(path, port, left_s, interrupted))
        except BaseException:
            self.drop()
            raise

    def drop(self) -> None:
        """Give them back, and remove their files while that is still ours to do."""
        for descriptor, path in zip(self._taken, self._paths.values(), strict=False):
            if _is_same(descriptor, path):
                os.unlink(path)
            os.close(descriptor)
        self._taken.clear()
        _tidy(self._folder)


def _patiently(path: str, port: int, timeout_s: float, interrupted: Callable[[], bool]) -> int:
    """Lock the file at *path*; retries only when somebody has it, since importing costs."""
    descriptor = _try_lock(path, fcntl.LOCK_EX)
    if descriptor is None and timeout_s > 0:
        from tenacity import Retrying, retry_if_result, wait_fixed

        end_s = time.monotonic() + timeout_s

        attempts = Retrying(
            stop=lambda _: interrupted() or time.monotonic() >= end_s,
            wait=wait_fixed(_LOCK_POLL_S),
            retry=retry_if_result(lambda found: found is None),
            retry_error_callback=lambda _: None,
        )
        descriptor = attempts(_try_lock, path, fcntl.LOCK_EX)
    if descriptor is None:
        raise LockError(
            f"another synplug run has port {port}",
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
        descriptor = _create(path, 0)
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
    """Remove the lock files of this network namespace that nobody holds: a dead run's."""
    folder = _here()
    try:
        names = [name for name in os.listdir(folder) if name.endswith(".lock")]
    except OSError:
        return  # none, or a place that no run could have written to
    for name in names:
        descriptor = _try_lock(f"{folder}/{name}", fcntl.LOCK_EX)
        if descriptor is not None:
            os.unlink(f"{folder}/{name}")
            os.close(descriptor)
    _tidy(folder)


class FlushGuard:
    """Keeps a run from removing its table while another run holds packets.

    Unregistering any base chain drops every packet that is held in any queue of the network
    namespace (``net/netfilter/core.c``, nf_queue_nf_hook_drop). Whoever holds has the guard
    shared; whoever removes a table has it alone.
    """

    def __init__(self) -> None:
        self._folder = _here()
        self._path = f"{self._folder}/flush.lock"
        self._descriptor: int | None = None

    def share(self) -> None:
        """Take it for a hold; waits the moment that a removal takes."""
        self._descriptor = _lock(self._path, fcntl.LOCK_SH)

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
        _tidy(self._folder)
