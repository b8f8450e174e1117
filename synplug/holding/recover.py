"""Undo what dead runs left behind: the ledger says what that may be.

A run is dead when its keeper is: nobody has its lock (:mod:`synplug.holding.life`). What lives
is left alone, and so is everything that the ledger does not name. Of a run that no entry tells of
its id does (:func:`recover_by_id`), where somebody says that it is dead.
"""

from __future__ import annotations

import socket

from synplug.errors import ReleaseError, SynplugError, UsageError
from synplug.holding.backends import backends_for
from synplug.holding.ledger import (
    Entry,
    Ledger,
    claim,
    entries,
    illegible,
    is_live,
    is_run_id,
    remove_drafts,
    run_of_device,
)
from synplug.holding.locks import remove_unused_locks
from synplug.holding.migration import restore_unless_wanted
from synplug.holding.supervisors import remove_dead_supervisors
from synplug.model import BackendName, Endpoint, HoldSpec
from synplug.record import Record


class Recovered(Record):
    """A dead run that was cleaned up after.

    :param error: what could not be. :param removed: what was, in words; its files are not named.
    """

    run_id: str
    backend: str
    endpoints: tuple[str, ...]
    error: str = ""
    removed: tuple[str, ...] = ()


def recover() -> list[Recovered]:
    """Clean up after every dead run of this network namespace. Does nothing the second time."""
    found = [_recover(entry) for entry in entries() if not entry.is_live]
    found += _recover_migration()
    found += [*_illegible(), *_strays()]
    remove_unused_locks()
    remove_drafts()
    remove_dead_supervisors()
    return [dead for dead in found if dead is not None]


def recover_run(run_id: str) -> None:
    """Clean up after that run, if it is dead and left something.

    :raises ReleaseError: that failed.
    """
    for entry in entries():
        if entry.run_id == run_id and not entry.is_live:
            dead = _recover(entry)
            if dead is not None and dead.error:
                raise ReleaseError(dead.error)
    remove_unused_locks()


def recover_by_id(run_id: str) -> Recovered:
    """Clean up after that run, though no entry may tell of it, or none that can be read.

    What an id does not tell stays: a clsact that the run made, with no filter of its own.

    :raises UsageError: it is no run's id, or the run lives, or nothing of it is here.
    """
    if not is_run_id(run_id):
        remedy = "eight hexadecimal digits, as in the name of its device, synplug0123abcd"
        raise UsageError(f"{run_id!r} is no run's id", remedy=remedy)
    if is_live(run_id):
        raise UsageError(f"run {run_id} lives", remedy="'synplug status' shows it")
    for entry in entries():
        if entry.run_id == run_id and (dead := _recover(entry)) is not None:
            return dead
    errors, removed = [], []
    has_file = run_id in {name for name, _, _ in illegible()}
    with claim(run_id):
        for make in backends_for(BackendName.AUTO):
            try:
                removed += make(_spec(run_id, BackendName.AUTO)).clean_up_after_death({})
            except SynplugError as failure:
                errors.append(str(failure))
        if not errors:
            Ledger(run_id).remove()
    remove_unused_locks()
    if not (errors or removed or has_file):
        remedy = "'synplug recover' names what is; --netns says in which network namespace"
        raise UsageError(f"nothing of a run {run_id} is here", remedy=remedy)
    return Recovered(
        run_id=run_id,
        backend="",
        endpoints=(),
        error="; ".join(errors),
        removed=tuple(removed),
    )


def _illegible() -> list[Recovered]:
    """Entries that nobody can clean up by: they stay, and are told."""
    return [
        _untold(
            run_id,
            f"{path} cannot be read as a ledger entry: {why} (run 'synplug recover' of the "
            "version that wrote it, or "
            + (f"'synplug recover --run {run_id}')" if is_run_id(run_id) else "remove the file)"),
        )
        for run_id, path, why in illegible()
    ]


def _strays() -> list[Recovered]:
    """Devices of runs that no file tells of: nobody can say whether these live."""
    named = {run_id: name for _, name in socket.if_nameindex() if (run_id := run_of_device(name))}
    if not named:
        return []
    told = {entry.run_id for entry in entries()} | {run_id for run_id, _, _ in illegible()}
    there = {name for _, name in socket.if_nameindex()}  # whose run has not ended meanwhile
    return [
        _untold(
            run_id,
            f"no file tells of the run of the device {name}: if it is dead, connections may wait "
            f"until 'synplug recover --run {run_id}'; it may be alive, and of another /run/synplug",
        )
        for run_id, name in named.items()
        if run_id not in told and name in there and not is_live(run_id)
    ]


def _untold(run_id: str, error: str) -> Recovered:
    return Recovered(run_id=run_id, backend="", endpoints=(), error=error)


def _recover_migration() -> list[Recovered]:
    """The kernel parameter that a killed swap has left set."""
    run_id = error = ""
    try:
        run_id = restore_unless_wanted()
    except SynplugError as failure:
        error = str(failure)
    if not (run_id or error):
        return []
    removed = () if error else ("what it had set net.ipv4.tcp_migrate_req to",)
    return [
        Recovered(
            run_id=run_id, backend="tcp_migrate_req", endpoints=(), error=error, removed=removed
        )
    ]


def _recover(entry: Entry) -> Recovered | None:
    """Clean up after one; None if somebody else has done that just now."""
    error, removed = "", []
    try:
        _check_run_id(entry.run_id)
        with claim(entry.run_id, entry.deadline_s) as is_left:
            if not is_left:
                return None
            removed = _clean_up(entry)
            Ledger(entry.run_id).remove()
    except SynplugError as failure:
        error = str(failure)
    return Recovered(
        run_id=entry.run_id,
        backend=entry.backend,
        endpoints=entry.endpoints,
        error=error,
        removed=tuple(removed),
    )


def _check_run_id(run_id: str) -> None:
    if not is_run_id(run_id):
        raise SynplugError(f"ledger entry with an impossible run id: {run_id!r}")


def _clean_up(entry: Entry) -> list[str]:
    try:
        name = BackendName(entry.backend)
    except ValueError:
        raise SynplugError(f"run {entry.run_id}: unknown backend {entry.backend!r}") from None
    spec = _spec(entry.run_id, name)
    return [
        words
        for make in backends_for(name)
        for words in make(spec).clean_up_after_death(entry.traces)
    ]


def _spec(run_id: str, backend: BackendName) -> HoldSpec:
    """Any endpoint will do: what a run created is found by its run id."""
    return HoldSpec(endpoints=(Endpoint(port=1),), run_id=run_id, backend=backend)
