"""Whether what configures a service has changed since its last successful restart.

For timers: something writes a configuration every minute, and only a new one is worth a restart.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence

from synplug.errors import LockError, UsageError

DIRECTORY = "/var/lib/synplug"
_POLL_S = 0.05
_CHUNK_BYTES = 1 << 16


class ChangeRecord:
    """What the files were at the last success; nobody else reads or writes it meanwhile.

    :param identity: who asks: the same files mean something else to another restart.
    :param paths: files, and directories with all that is below them.
    :raises UsageError: one is no path, or the record cannot be kept.
    """

    def __init__(
        self, identity: Sequence[str], paths: Sequence[str], *, directory: str = DIRECTORY
    ) -> None:
        self._paths = _whole(paths)
        self._digest = self._before = ""
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            name = _name_of(identity, self._paths, directory)
            self._lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UsageError(
                f"what was there at the last success cannot be kept in {directory}: "
                f"{error.strerror}"
            ) from error

    def take(
        self,
        *,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        """Wait for another run with the same record, so long at the most.

        :raises LockError: it has not ended.
        """
        deadline_s = clock() + timeout_s
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
            else:
                return
            if clock() >= deadline_s:
                raise LockError(
                    "another run for the same files is under way", remedy="add --lock-timeout"
                )
            pause(_POLL_S)

    def is_unchanged(self) -> bool:
        """Whether the files are what they were. What they are now is what :meth:`keep` keeps.

        :raises UsageError: one cannot be read.
        """
        self._digest = digest_of(self._paths)
        os.lseek(self._lock, 0, os.SEEK_SET)
        self._before = _kept(self._lock)
        return self._before == self._digest

    def void(self) -> None:
        """A restart begins: what the files were before counts no more, unless it is put back.

        A service that a restart has broken is not as it was when the old files are back.
        """
        os.ftruncate(self._lock, 0)

    def put_back(self) -> None:
        """Nothing was restarted after all.

        :raises OSError: it cannot be written; then the next run restarts.
        """
        self._write(self._before)

    def keep(self) -> None:
        """The restart was a success with what the files were before it.

        :raises OSError: it cannot be written; then the next run restarts once more.
        """
        self._write(self._digest)

    def _write(self, digest: str) -> None:
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{digest}\n".encode(), 0)

    def close(self) -> None:
        """Let others in."""
        os.close(self._lock)


def would_be_unchanged(
    identity: Sequence[str], paths: Sequence[str], *, directory: str = DIRECTORY
) -> bool:
    """What :meth:`ChangeRecord.is_unchanged` would say now; nothing is made, nor waited for.

    :raises UsageError: a file, or the record, cannot be read.
    """
    whole = _whole(paths)
    digest = digest_of(whole)
    try:
        record = os.open(_name_of(identity, whole, directory), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UsageError(
            f"what was there at the last success cannot be read in {directory}: {error.strerror}"
        ) from error
    try:
        return _kept(record) == digest
    finally:
        os.close(record)


def _whole(paths: Sequence[str]) -> list[str]:
    """Absolute paths. An empty one is a variable that was not set, never the folder we are in."""
    if not all(paths):
        raise UsageError(
            "--only-if-changed needs the path of a file or directory",
            remedy="--no-only-if-changed runs whatever has changed",
        )
    return [os.path.abspath(path) for path in paths]


def _name_of(identity: Sequence[str], paths: Sequence[str], directory: str) -> str:
    word = hashlib.sha256(json.dumps([*identity, *paths]).encode()).hexdigest()[:32]
    return os.path.join(directory, f"unchanged-{word}")


def _kept(record: int) -> str:
    return os.read(record, 4096).decode(errors="replace").strip()


def digest_of(paths: Sequence[str]) -> str:
    """One number for the contents of files, and of all files below directories.

    :raises UsageError: one cannot be read, or is neither.
    """
    digest = hashlib.sha256()
    for path in paths:
        for name in _members(path):
            digest.update(json.dumps(name).encode())
            _add(name, digest.update)
    return digest.hexdigest()


def _members(path: str) -> Iterator[str]:
    """A file, or a directory's links and files, and those of the directories that links name."""
    if not os.path.isdir(path):
        yield path
        return

    def cannot(error: OSError) -> None:
        raise UsageError(f"{error.filename}: {error.strerror}") from error

    if os.path.islink(path):
        yield path
    seen = set()
    for folder, folders, files in os.walk(path, onerror=cannot, followlinks=True):
        found = os.stat(folder)
        if (found.st_dev, found.st_ino) in seen:  # links in a circle, or two to one directory
            folders.clear()
            continue
        seen.add((found.st_dev, found.st_ino))
        folders.sort()
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        yield from (os.path.join(folder, name) for name in sorted([*files, *links]))


def _add(name: str, update: Callable[[bytes], object]) -> None:
    try:
        if os.path.islink(name):
            update(f"-> {json.dumps(os.readlink(name))}:".encode())
            if os.path.isdir(name) or not os.path.exists(name):  # what is below counts by itself
                return
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise UsageError(f"{name} is neither a file nor a directory")
            update(f"{found.st_size}:".encode())
            while chunk := file.read(_CHUNK_BYTES):
                update(chunk)
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror}") from error
