"""Which backend a keeper takes: the first that this kernel has."""

from __future__ import annotations

import os
from collections.abc import Callable

from synplug.errors import PrivilegeError, ReleaseError, SynplugError, UnsupportedError
from synplug.holding import watcher
from synplug.holding.audience import Audience
from synplug.holding.base import Backend
from synplug.holding.ledger import Entry, Ledger
from synplug.holding.locks import FlushGuard
from synplug.holding.remarks import unwatched_remark
from synplug.kernel import procfs
from synplug.model import HoldSpec


def entry_of(spec: HoldSpec, backend: Backend, state: str, *, deadline_s: float = 0.0) -> Entry:
    """The ledger's entry of the calling keeper."""
    return Entry(
        run_id=spec.run_id,
        name=spec.name,
        keeper=os.getpid(),
        keeper_start=procfs.start_time(os.getpid()),
        backend=backend.name,
        state=state,
        endpoints=tuple(map(str, spec.endpoints)),
        deadline_s=deadline_s,
        traces=backend.traces(),
    )


def arm_first(
    makers: tuple[Callable[[HoldSpec], Backend], ...],
    spec: HoldSpec,
    ledger: Ledger,
    guard: FlushGuard,
    audience: Audience,
) -> tuple[Backend, list[str]]:
    """The first backend that could be armed, and what there is to say about that.

    :raises SynplugError: none could; nothing of them is left. :raises LockError: nobody can hold,
        since somebody does not end his removal; nothing was made.
    """
    passed_over: list[str] = []
    remedy = ""  # of the last one: whoever it cannot be is told what would help
    for make in makers:
        try:
            backend = make(spec)
        except ImportError as error:  # of a module that only this backend needs
            passed_over.append(f"a backend cannot be loaded: {error}")
            continue
        if backend.uses_queues:
            guard.check()
        is_safe = True
        backend.load_libraries()
        if backend.outlives_its_keeper:
            is_safe = watcher.start(spec.run_id, backend.capabilities)
        try:
            ledger.own()
            ledger.write(entry_of(spec, backend, "arming"))
            if spec.name:
                audience.open_door(spec.name)
            backend.arm()
        except BaseException as error:
            audience.close_door()
            _give_up(backend, ledger, error)
            if not isinstance(error, SynplugError) or isinstance(error, PrivilegeError):
                raise
            if len(makers) == 1:
                raise
            passed_over.append(f"backend {backend.name} is not available: {error.message}")
            remedy = error.remedy or remedy
        else:
            return backend, passed_over + ([] if is_safe else [unwatched_remark(backend)])
    raise UnsupportedError(
        "; ".join(passed_over),
        remedy="; ".join(filter(None, (remedy, "'synplug doctor' says what each would need"))),
    )


def _give_up(backend: Backend, ledger: Ledger, error: BaseException) -> None:
    """Undo what a backend has made that could not be armed.

    :raises ReleaseError: something is left; the ledger keeps it.
    """
    try:
        backend.close()
    except SynplugError as failure:
        raise ReleaseError(
            f"{error}; and this could not be undone: {failure}", remedy="run 'synplug recover'"
        ) from error
    ledger.remove()
