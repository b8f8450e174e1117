"""The supervisors of this network namespace, by name: who they are, and how far they have come.

Each has a file in the folder of the namespace, locked for as long as it lives. One that nobody has
locked is a dead one's.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import suppress

from synplug.errors import LockError, NoSuchHoldError
from synplug.holding.runtime import create, here, tidy
from synplug.record import Record, as_dict

#: A name may end with a dot and whatever ends the names of other files here; with this, none does.
_PREFIX, _ENDING = "supervisor-", ".state"
_RECORD_BYTES = 512
_LOOKS = 100


class SupervisorState(Record):
    """What a supervisor says of itself.

    :param start: its start time in ticks. :param generation: the number of the current one.
    :param heard: how many times it was told to reload. :param served: what *heard* was at the
        begin of the last reload that has ended. :param failure: why that failed, or empty.
    """

    pid: int
    start: int
    generation: int = 0
    heard: int = 0
    served: int = 0
    failure: str = ""


class SupervisorFile:
    """A supervisor's own file.

    :raises LockError: another supervisor has that name.
    """

    def __init__(self, name: str) -> None:
        self._path = _path(name)
        descriptor = _take(self._path)
        if descriptor is None:
            raise LockError(
                f"a supervisor named {name!r} runs in this network namespace",
                remedy=f"'synplug reload {name}' has it start a new generation",
            )
        self._descriptor = descriptor

    def write(self, state: SupervisorState) -> None:
        """Replace what stands there: one write, within a page."""
        failure = state.failure[:200]
        while len(data := _record(state, failure)) >= _RECORD_BYTES:
            failure = failure[: len(failure) * 3 // 4]
        os.pwrite(self._descriptor, data.ljust(_RECORD_BYTES - 1) + b"\n", 0)

    def close(self) -> None:
        """Remove it."""
        with suppress(FileNotFoundError):
            os.unlink(self._path)
        os.close(self._descriptor)
        tidy(here())


def read_supervisor(name: str) -> SupervisorState:
    """What the supervisor of that name says.

    :raises NoSuchHoldError: none of that name runs in this network namespace.
    """
    path, flags = _path(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    for _ in range(_LOOKS):
        try:
            descriptor = os.open(path, flags)
        except OSError:
            break
        try:
            if _is_free(descriptor):
                break
            with suppress(ValueError, TypeError):  # it is just writing: look again
                return SupervisorState(**json.loads(os.pread(descriptor, _RECORD_BYTES, 0)))
        finally:
            os.close(descriptor)
    raise NoSuchHoldError(f"no supervisor named {name!r} runs in this network namespace")


def remove_dead_supervisors() -> None:
    """Remove the files that dead ones have left."""
    for path in _paths():
        descriptor = _take(path)
        if descriptor is not None:
            os.unlink(path)
            os.close(descriptor)
    tidy(here())


def _record(state: SupervisorState, failure: str) -> bytes:
    return json.dumps(as_dict(state) | {"failure": failure}).encode()


def _path(name: str) -> str:
    return f"{here()}/{_PREFIX}{name}{_ENDING}"


def _paths() -> Iterator[str]:
    folder = here()
    with suppress(OSError):
        names = [name for name in os.listdir(folder) if name.startswith(_PREFIX)]
        yield from (f"{folder}/{name}" for name in names)


def _take(path: str) -> int | None:
    """The file, locked; None while another has it."""
    while True:
        descriptor = create(path, 0)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # removed between our open and our lock


def _is_free(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
