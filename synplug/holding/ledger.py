"""The ledger: what stands in the kernel, an entry a run in the folder of its network namespace.

An entry is written before the kernel is changed, and removed after the undo was verified.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import Any

from synplug.errors import PrivilegeError, SynplugError
from synplug.holding.life import Life, lives
from synplug.holding.runtime import create, here, names_in, tidy
from synplug.record import Record, as_dict, replace

_FORMAT = 1
#: How the names of files end that are not complete yet.
DRAFT = ".new"
#: Of the names of devices; a run id fills what is left of a name (IFNAMSIZ, 15).
DEVICE_PREFIX = "synplug"
_RUN_ID = re.compile(r"[0-9a-f]{8}")
_DRAFT_S = 5.0
#: To clean up takes less.
_CLAIM_S, _CLAIM_MIN_S, _CLAIM_POLL_S = 5.0, 1.0, 0.01
#: Entries are files, and files can say anything.
_FIELDS: dict[str, tuple[type, ...]] = {
    "run_id": (str,),
    "name": (str,),
    "keeper": (int,),
    "keeper_start": (int,),
    "backend": (str,),
    "state": (str,),
    "endpoints": (list,),
    "deadline_s": (int, float),
    "traces": (dict,),
}
#: What reading a file as an entry may raise.
_NOT_AN_ENTRY = (OSError, ValueError, TypeError, KeyError, RecursionError)
_ENTRY_BYTES = 1 << 24  # more than one with an endpoint for every port has
_PIDS = 1 << 22  # PID_MAX_LIMIT, include/linux/threads.h
_CLOCK_END_S = (1 << 63) / 1e9  # ktime_t counts nanoseconds in 63 bits


class Entry(Record):
    """A hold, as the ledger has it.

    :param name: of a hold that was left to its keeper; may be empty.
    :param keeper: its keeper's pid. :param keeper_start: that process's start time in ticks. Both
        are for people: where another PID namespace shares ours, they name another process, or none.
    :param deadline_s: CLOCK_MONOTONIC of its end; 0 while it is only armed.
    :param traces: what stands in the kernel, by kind and name.
    """

    run_id: str
    keeper: int
    keeper_start: int
    backend: str
    state: str
    endpoints: tuple[str, ...]
    name: str = ""
    deadline_s: float = 0.0
    traces: Mapping[str, str] = MappingProxyType({})

    @property
    def is_live(self) -> bool:
        """Whether its keeper still runs, in whatever PID namespace.

        :raises SynplugError: that cannot be found out, which is not "no".
        """
        return is_live(self.run_id)


def is_live(run_id: str) -> bool:
    """Whether a run's keeper does; errors as of :attr:`Entry.is_live`."""
    if not is_run_id(run_id):
        return False
    try:
        return lives(run_id)
    except OSError as error:
        raise SynplugError(f"cannot see whether run {run_id} lives: {error.strerror}") from error


def is_run_id(text: str) -> bool:
    """Whether it is one, and so a name within the folder."""
    return _RUN_ID.fullmatch(text) is not None


def run_of_device(name: str) -> str:
    """The id of the run whose device has that name; empty: it is none of ours."""
    run_id = name.removeprefix(DEVICE_PREFIX)
    return run_id if run_id != name and is_run_id(run_id) else ""


class Ledger:
    """The entry of one run."""

    def __init__(self, run_id: str) -> None:
        self._life = Life(run_id)
        self._folder = here()
        self._path = f"{self._folder}/{run_id}.json"

    def own(self) -> None:
        """Be the one that the entry tells of, and alive, until it is removed or our process ends.

        :raises SynplugError: that cannot be made known.
        """
        try:
            self._life.begin()
        except OSError as error:
            raise SynplugError(f"cannot lock in {self._folder}: {error.strerror}") from error

    def write(self, entry: Entry) -> None:
        """Write it, for a crash of processes, not of the machine; a failure leaves the old one."""
        draft = self._path + DRAFT
        descriptor = create(draft, os.O_TRUNC)
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump({"format": _FORMAT, **as_dict(entry)}, file)
            os.rename(draft, self._path)
        except OSError as error:
            with suppress(OSError):
                os.unlink(draft)
            raise SynplugError(f"cannot write {self._path}: {error.strerror}") from error

    def remove(self) -> None:
        """Remove it; it may be gone already."""
        try:
            with suppress(FileNotFoundError):
                os.unlink(self._path)
        except OSError as error:
            raise SynplugError(f"cannot remove {self._path}: {error.strerror}") from error
        self._life.end()
        tidy(self._folder)


def entries() -> Iterator[Entry]:
    """The entries of this network namespace; what cannot be read as one is passed over.

    :raises PrivilegeError: the folder is another user's.
    """
    for path in _paths():
        with suppress(*_NOT_AN_ENTRY):
            yield _entry(path)


def note_traces(run_id: str, traces: dict[str, str]) -> None:
    """Have a run's entry, if there is one, tell of other traces than before."""
    for entry in entries():
        if entry.run_id == run_id and entry.traces != traces:
            Ledger(run_id).write(replace(entry, traces=traces))


def illegible() -> Iterator[tuple[str, str, str]]:
    """What lies among the entries, is no live run's, and cannot be read as one.

    :returns: the run's id as the file's name has it, the path, and why.
    """
    for path in _paths():
        run_id = os.path.basename(path).removesuffix(".json")
        try:
            _entry(path)
        except FileNotFoundError:
            continue  # it has gone just now
        except _NOT_AN_ENTRY as error:
            if not is_live(run_id):  # it may be of another version
                yield run_id, path, str(error) or type(error).__name__


def _paths() -> list[str]:
    folder = here()
    try:
        names = names_in(folder, ".json")
    except PermissionError as error:
        raise PrivilegeError(
            f"{folder} cannot be read",
            capability="CAP_DAC_READ_SEARCH",
            remedy="ask as root, or as the user that holds",
        ) from error
    return [f"{folder}/{name}" for name in names]


def _entry(path: str) -> Entry:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        data: Any = json.loads(os.read(descriptor, _ENTRY_BYTES))
    finally:
        os.close(descriptor)
    if not isinstance(data, dict) or data.pop("format") != _FORMAT:
        raise ValueError("another version's ledger entry")
    if not all(type(data[name]) in kinds for name, kinds in _FIELDS.items()):
        raise TypeError("a field of another type")
    if not all(type(word) is str for word in (*data["endpoints"], *data["traces"].values())):
        raise TypeError("a part of a field of another type")
    if f"{data['run_id']}.json" != os.path.basename(path):
        raise ValueError(f"an entry of another run, {data['run_id']!r}")
    if not 0 < data["keeper"] < _PIDS or data["keeper_start"] < 0:
        raise ValueError("no process that can be")
    if not 0 <= data["deadline_s"] < _CLOCK_END_S:  # and no NaN
        raise ValueError("no time that can be")
    return Entry(**data | {"endpoints": tuple(data["endpoints"])})


@contextmanager
def claim(run_id: str, deadline_s: float = 0.0) -> Iterator[bool]:
    """Be the only one that cleans up after a dead run; False: somebody else has done it.

    Nobody waits long for somebody else who is at it, nor past the hold's deadline: he may be
    stopped, and connections may still be held. Twice does no harm.

    :param deadline_s: as the run's entry has it.
    """
    path = f"{here()}/{run_id}.json"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        yield True  # nobody can be at what has no entry of its name; and twice does no harm
        return
    try:
        _wait_for(descriptor, deadline_s)
        yield os.path.lexists(path)
    finally:
        os.close(descriptor)


def _wait_for(descriptor: int, deadline_s: float) -> None:
    now_s = time.monotonic()
    give_up_s = min(now_s + _CLAIM_S, max(now_s + _CLAIM_MIN_S, deadline_s))
    while time.monotonic() < give_up_s:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_CLAIM_POLL_S)
        else:
            return


def remove_drafts() -> None:
    """Remove drafts: who died while it wrote one left it. Who lives writes another."""
    folder = here()
    for name in names_in(folder, DRAFT):
        path = f"{folder}/{name}"
        with suppress(OSError):
            if time.time() - os.stat(path).st_mtime >= _DRAFT_S:  # a live run may be writing it
                os.unlink(path)
    tidy(folder)
