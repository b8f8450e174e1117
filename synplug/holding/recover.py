"""Undo what dead runs left behind: the ledger says what that may be.

A run is dead when its keeper is: nobody has its lock (:mod:`synplug.holding.life`). What lives
is left alone, and so is everything that the ledger does not name.
"""

from __future__ import annotations

from dataclasses import dataclass

from synplug.errors import ReleaseError, SynplugError
from synplug.holding.backends import backends_for
from synplug.holding.ledger import (
    Entry,
    Ledger,
    claim,
    entries,
    illegible,
    is_run_id,
    remove_drafts,
)
from synplug.holding.locks import remove_unused_locks
from synplug.holding.migration import restore_unless_wanted
from synplug.holding.supervisors import remove_dead_supervisors
from synplug.model import BackendName, Endpoint, HoldSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Recovered:
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
    found += _illegible()
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


def _illegible() -> list[Recovered]:
    """Entries that nobody can clean up by: they stay, and are told."""
    return [
        Recovered(
            run_id=run_id,
            backend="",
            endpoints=(),
            error=f"{path} cannot be read as a ledger entry: {why} (run 'synplug recover' of the "
            f"version that wrote it; or look for synplug-{run_id} in iptables-legacy -t mangle -S, "
            f"and for a device synplug{run_id}, remove them, then remove the file)",
        )
        for run_id, path, why in illegible()
    ]


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
        with claim(entry) as is_left:
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
    # Any endpoint will do: what a run created is found by its run id.
    spec = HoldSpec(endpoints=(Endpoint(port=1),), run_id=entry.run_id, backend=name)
    return [
        words
        for make in backends_for(name)
        for words in make(spec).clean_up_after_death(entry.traces)
    ]
