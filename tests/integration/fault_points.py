"""Where the fault matrix strikes: every step between start and finish, and what can happen there.

The steps of the orchestrator are the members of :class:`Step`; those of the keeper are read from
its source (:mod:`tests.integration.steps_in_code`). A new one has its cases at once, or fails a
test (``test_faults.py``).
"""

from __future__ import annotations

import enum
import errno
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace

from synplug.handover.timeline import Step
from synplug.holding.keeper import Keeper
from synplug.model import BackendName
from tests.integration.steps_in_code import Steps


class Party(enum.Enum):
    """Who is struck."""

    ORCHESTRATOR = "orchestrator"
    KEEPER = "keeper"
    BOTH = "both"
    COMMAND = "command"
    NEW = "new generation"
    OLD = "old generation"


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
    :param owner: ``module:class`` of the method; a base class stands for all that inherit, and no
        class for a function that is called by that name in the module.
    :param nth: strike at this passage.
    :param after: the name of another point: passages before it has been passed do not count.
    :param refused: only these calls are refused, of those that can be; none: all of them.
    :param keeper_lives: whether there is a keeper then; if not, only its own process is struck.
    :param options: of ``synplug wrap``, without which the run does not come here.
    :param needs_dead_keeper: come here only after the keeper was killed.
    :param service_options: of the service that starts, without which the run does not come here.
    :param is_detached: of a hold that is left to its keeper, by ``synplug hold``.
    :param backends: with others nobody comes here; none: with each.
    """

    name: str
    process: Party
    owner: str
    method: str
    nth: int = 1
    after: str = ""
    refused: frozenset[str] = frozenset()
    keeper_lives: bool = True
    options: tuple[str, ...] = ()
    needs_dead_keeper: bool = False
    service_options: tuple[str, ...] = ()
    is_detached: bool = False
    backends: tuple[BackendName, ...] = ()

    @property
    def owners(self) -> list[object]:
        """The classes that have the method, or the module."""
        module, _, name = self.owner.partition(":")
        imported = importlib.import_module(module)
        base = getattr(imported, name) if name else imported
        found = [base, *(base.__subclasses__() if name else ())]
        return [owner for owner in found if self.method in vars(owner)]


#: Stands for the options of a run that looks whether the service answers, through the hold.
HEALTH_CHECK = "health check"

#: From these points on no call is made any more that could be refused so: nothing happens there.
LAST_CALLS: dict[Fault, tuple[str, ...]] = {
    Fault.ENOSPC: ("Backend.obstacle", "Backend.remove", "Ledger.remove", "Backend.close"),
    Fault.EMFILE: ("Ledger.remove", "Backend.close"),
    Fault.ENOBUFS: ("Backend.close",),
    Fault.EPERM: ("Backend.close",),
}

#: The same with a plug besides: what it asks from there on goes through sockets that are open.
LAST_CALLS_OF_A_PLUG: dict[Fault, tuple[str, ...]] = {
    Fault.ENOSPC: ("Audience.detach", "Backend.open", "RunLocks.drop"),
    Fault.EMFILE: ("Backend.open", "Backend.remove", "RunLocks.drop"),
}

#: A run that is killed here may not be gone yet when the keeper ends, and leaves the locks to it.
AFTER_THE_RELEASE = (
    *("Backend.confirm_empty", "Backend.counts", "Backend.obstacle", "Backend.remove"),
    *(
        "Backend.close",
        "Audience.close_door",
        "Deadman.stop",
        "FlushGuard.leave",
        "FlushGuard.try_alone",
    ),
    *("Ledger.remove", "clean-up"),
)

#: The same with a plug, which opens as a whole, soon: on one processor its keeper goes before.
AT_THE_RELEASE_OF_A_PLUG = (
    *("Fitting.hear", "SocketDiagnostics.__init__", "SocketDiagnostics.listeners"),
    *("paced.sysctl", "paced.syn_limit", "Backend.waiting", "Backend.open"),
    *("Deadman.set opening",),
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

#: What the keeper does.
KEPT = Steps(Keeper)

#: Of that, what no case strikes: it asks nothing of the kernel, and nothing is lost in between;
#: whoever is ended there, is ended as at Backend.release_next, which comes next.
WITHOUT_CASES = ("Backend.divide",)
#: What only a hold that is left to its keeper comes to.
_DETACHED = ("Audience.open_door", "Audience.detach", "RunLocks.drop")
#: What the keeper does only where more wait than the new listener has room for at once.
_WHERE_NOT_ALL_FIT = (
    *("SocketDiagnostics.__init__", "SocketDiagnostics.listeners", "Pacer.step"),
    *("Backend.release_next", "paced.sysctl", "paced.syn_limit"),
)
#: Struck once more after the run has gone: each is the first of a part of what is left to do.
_ALONE = ("Audience.admit", "Backend.open", "Backend.remove", "Ledger.remove")
#: Where the last timer is set anew, and to what end.
_DEADMAN = (
    ("Backend.hold", "holding"),
    ("Backend.waiting", "opening"),
    ("Backend.open", "open"),
)


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
    for owner, group, method in _kept():
        name = f"{group}.{method}"
        point = Point(
            name=name,
            process=Party.KEEPER,
            owner=owner,
            method=method,
            is_detached=name in _DETACHED,
        )
        yield _special(point)
        if name in _ALONE:
            yield replace(point, name=f"{name} alone", keeper_lives=False, is_detached=True)
    yield from _later_points()


def _later_points() -> Iterator[Point]:
    """What is come to more than once, with something else at stake."""
    for number, state in enumerate(("armed", "holding"), 2):
        yield Point(
            name=f"Ledger.write {state}",
            process=Party.KEEPER,
            owner="synplug.holding.ledger:Ledger",
            method="write",
            nth=number,
        )
    for after, state in _DEADMAN:
        yield Point(
            name=f"Deadman.set {state}",
            process=Party.KEEPER,
            owner="synplug.kernel.deadman:Deadman",
            method="set",
            after=after,
        )


def _kept() -> Iterator[tuple[str, str, str]]:
    """Where each step of the keeper is, the name of the class or module, and its own."""
    for cls, method in KEPT.methods():
        if f"{cls.__name__}.{method}" not in WITHOUT_CASES:
            yield f"{cls.__module__}:{cls.__name__}", cls.__name__, method
    for module, function in sorted(KEPT.functions):
        yield f"{module}:", module.rpartition(".")[2], function


def _special(point: Point) -> Point:
    """Those that a plain run does not come to."""
    if point.name == "watcher.start":
        return replace(point, backends=(BackendName.NFQUEUE_IPTABLES, BackendName.PLUG))
    if point.name in _WHERE_NOT_ALL_FIT:
        return replace(point, service_options=("--backlog", "12"))
    if point.name in ("FlushGuard.try_alone", "Backend.obstacle"):
        return replace(point, backends=(BackendName.NFQUEUE,))
    if point.name in ("FlushGuard.share", "FlushGuard.leave"):
        return replace(point, nth=2)  # the first is of FlushGuard.check, before anything is made
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
