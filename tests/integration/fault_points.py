"""Where the fault matrix strikes: every step between start and finish, and what can happen there.

The steps of the orchestrator are the members of :class:`Step`; those of the keeper are the methods
of what it works with. Both are enumerated from the code, so that a new one without a place here
fails a test (``test_faults.py``).
"""

from __future__ import annotations

import enum
import errno
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace

from synplug.handover.timeline import Step
from synplug.holding.audience import Audience
from synplug.holding.base import Backend
from synplug.holding.ledger import Ledger
from synplug.holding.locks import FlushGuard
from synplug.kernel.deadman import Deadman


class Party(enum.Enum):
    """Who is struck."""

    ORCHESTRATOR = "orchestrator"
    KEEPER = "keeper"
    BOTH = "both"
    COMMAND = "command"


class Fault(enum.Enum):
    """What happens."""

    SIGKILL = "SIGKILL"
    SIGTERM = "SIGTERM"
    SIGSTOP = "SIGSTOP"
    EXCEPTION = "exception"
    ENOSPC = "ENOSPC"
    EMFILE = "EMFILE"
    ENOBUFS = "ENOBUFS"
    EPERM = "EPERM"

    @property
    def is_signal(self) -> bool:
        """Whether it comes from outside, and can strike any process."""
        return self.value.startswith("SIG")

    @property
    def errno(self) -> int:
        """What the kernel answers; 0 where it is something else."""
        return int(getattr(errno, self.value, 0))


@dataclass(frozen=True, kw_only=True)
class Point:
    """A place in the code.

    :param process: who passes it.
    :param owner: ``module:class`` of the method; a base class stands for all that inherit.
    :param nth: strike at this passage.
    :param keeper_lives: whether there is a keeper then; if not, only its own process is struck.
    :param options: of ``synplug wrap``, without which the run does not come here.
    :param needs_dead_keeper: come here only after the keeper was killed.
    :param service_options: of the service that starts, without which the run does not come here.
    :param is_detached: of a hold that is left to its keeper, by ``synplug hold``.
    """

    name: str
    process: Party
    owner: str
    method: str
    nth: int = 1
    keeper_lives: bool = True
    options: tuple[str, ...] = ()
    needs_dead_keeper: bool = False
    service_options: tuple[str, ...] = ()
    is_detached: bool = False

    @property
    def classes(self) -> list[type]:
        """Those that have the method."""
        module, _, name = self.owner.partition(":")
        base = getattr(importlib.import_module(module), name)
        found = [base, *base.__subclasses__()]
        return [cls for cls in found if self.method in vars(cls)]


#: Stands for the options of a run that looks whether the service answers, through the hold.
HEALTH_CHECK = "health check"

#: From these points on no call is made any more that could be refused so: nothing happens there.
LAST_CALLS: dict[Fault, tuple[str, ...]] = {
    Fault.ENOSPC: ("Backend.obstacle", "Backend.remove", "Ledger.remove", "Backend.close"),
    Fault.EMFILE: ("Ledger.remove", "Backend.close"),
    Fault.ENOBUFS: ("Backend.close",),
    Fault.EPERM: ("Backend.close",),
}

#: A run that is killed here may not be gone yet when the keeper ends, and leaves the locks to it.
AFTER_THE_RELEASE = (
    *("Backend.confirm_empty", "Backend.counts", "Backend.obstacle", "Backend.remove"),
    *("Backend.close", "Deadman.stop", "FlushGuard.leave", "FlushGuard.try_alone"),
    *("Ledger.remove", "clean-up"),
)

_RUN = "synplug.handover.wrap:_Run"
_RUN_HOLD = "synplug.handover.run_hold:RunHold"

#: The method that a step begins with.
STEPS: dict[Step, tuple[str, str]] = {
    Step.CHECK: (_RUN, "check"),
    Step.ARM: (_RUN_HOLD, "arm"),
    Step.LOOK_AHEAD: ("synplug.handover.drain:Drain", "look_ahead"),
    Step.HOLD: (_RUN_HOLD, "begin"),
    Step.DRAIN: ("synplug.handover.drain:Drain", "wait"),
    Step.COMMAND: ("synplug.handover.process:SpawnedCommand", "__init__"),
    Step.READY: ("synplug.handover.ready_wait:ReadyWait", "until_ready"),
    Step.RELEASE: (_RUN_HOLD, "release"),
    Step.CLEAN_UP: ("synplug.holding.handle:KeptHold", "finish"),
}
_BEFORE_THE_KEEPER = (Step.CHECK, Step.ARM)

#: What the keeper works with; all their methods are its steps.
KEPT: tuple[type, ...] = (Backend, Ledger, FlushGuard, Deadman, Audience)

#: Of these, what only a hold that is left to its keeper comes to.
_DETACHED = ("Audience.open_door", "Audience.detach")
#: Struck once more after the run has gone: each is the first of a part of what is left to do.
_ALONE = ("Audience.admit", "Backend.open", "Backend.remove", "Ledger.remove")


def _orchestrator_points() -> Iterator[Point]:
    for step, (owner, method) in STEPS.items():
        yield Point(
            name=step.value,
            process=Party.ORCHESTRATOR,
            owner=owner,
            method=method,
            keeper_lives=step not in _BEFORE_THE_KEEPER,
            options=("--check", "true") if step is Step.CHECK else (),
        )
    for name, owner, method in (
        ("lock", "synplug.holding.locks:RunLocks", "take"),
        ("report", _RUN, "report"),
    ):
        yield Point(
            name=name,
            process=Party.ORCHESTRATOR,
            owner=owner,
            method=method,
            keeper_lives=False,
        )


def methods_of(cls: type) -> list[str]:
    """The public methods of *cls*, of an interface the abstract ones."""
    return [
        name
        for name, _ in inspect.getmembers(cls, inspect.isfunction)
        if not name.startswith("_") and name in vars(cls)
    ]


def _keeper_points() -> Iterator[Point]:
    for cls in KEPT:
        for method in methods_of(cls):
            name = f"{cls.__name__}.{method}"
            point = Point(
                name=name,
                process=Party.KEEPER,
                owner=f"{cls.__module__}:{cls.__name__}",
                method=method,
                is_detached=name in _DETACHED,
            )
            yield _special(point)
            if name in _ALONE:
                yield replace(point, name=f"{name} alone", keeper_lives=False, is_detached=True)
    for number, state in enumerate(("armed", "holding"), 2):
        yield Point(
            name=f"Ledger.write {state}",
            process=Party.KEEPER,
            owner="synplug.holding.ledger:Ledger",
            method="write",
            nth=number,
        )


def _special(point: Point) -> Point:
    """Those that a plain run does not come to."""
    if point.name == "Backend.release_next":
        return replace(point, service_options=("--backlog", "12"))
    if point.name == "Backend.let_through":
        return replace(point, options=(HEALTH_CHECK,))
    if point.name == "Backend.clean_up_after_death":
        return replace(
            point, process=Party.ORCHESTRATOR, needs_dead_keeper=True, keeper_lives=False
        )
    return point


#: All of them, by name.
POINTS: dict[str, Point] = {
    point.name: point for point in (*_orchestrator_points(), *_keeper_points())
}
