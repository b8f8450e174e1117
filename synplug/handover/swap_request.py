"""A swap as it is asked for, and the plan that follows from it."""

from __future__ import annotations

import os
from collections.abc import Iterable

from synplug.errors import PrivilegeError, UsageError
from synplug.handover.plan import DrainPlan, ReadyPlan, RetirePlan, StopMethod, SwapPlan
from synplug.handover.request import HoldOptions, find_here, hold_spec
from synplug.handover.target import Target, TargetRequest
from synplug.kernel import procfs
from synplug.model import Endpoint, HoldSpec
from synplug.record import Record


class SwapRequest(Record):
    """A swap: of the generation with this main process, for the one that *argv* starts."""

    old_pid: int
    argv: tuple[str, ...]
    endpoints: tuple[Endpoint, ...] = ()
    hold: HoldOptions = HoldOptions()
    drain: DrainPlan = DrainPlan()
    ready: ReadyPlan = ReadyPlan()
    stop: StopMethod = StopMethod()
    retire: RetirePlan = RetirePlan()
    check: tuple[str, ...] = ()
    new_pidfile: str = ""
    migrate: bool = False


def spec_of(pids: Iterable[int], endpoints: tuple[Endpoint, ...], hold: HoldOptions) -> HoldSpec:
    """A hold of what these processes serve now; of *endpoints*, if any are named.

    :raises SynplugError: they serve nothing.
    """
    target = find_here(TargetRequest(endpoints=endpoints, pids=tuple(pids)))
    return hold_spec(target.endpoints, hold)


def ends_with_its_parent(argv: tuple[str, ...]) -> bool:
    """Whether it is an Envoy with hot restart, which asks for SIGTERM at its parent's end.

    PR_SET_PDEATHSIG in the constructor of HotRestartImpl (``source/server/hot_restart_impl.cc``);
    found with 1.36.4 and 1.40.0 by their ends.
    """
    return os.path.basename(argv[0]) == "envoy" and "--disable-hot-restart" not in argv


def plan_swap(request: SwapRequest, *, own_pid: int) -> tuple[SwapPlan, Target]:
    """Find the endpoints of the old generation, here and now.

    :raises UsageError: what was asked for cannot be done as it stands.
    :raises TargetError: the endpoints cannot be found out.
    :raises PrivilegeError: the old generation's sockets cannot be seen.
    """
    if not request.argv:
        raise UsageError("no command", remedy="write it behind --: synplug swap … -- NEWCMD")
    if not procfs.is_alive(request.old_pid):
        raise UsageError(f"there is no process {request.old_pid}")
    if procfs.hides_its_sockets(request.old_pid):
        raise PrivilegeError(
            f"the sockets of process {request.old_pid} are not visible to this user",
            capability="CAP_SYS_PTRACE",
            remedy="run it as root, or with CAP_SYS_PTRACE",
        )
    if own_pid in procfs.descendants([request.old_pid]):
        raise UsageError(f"process {request.old_pid} has started synplug itself")
    if ends_with_its_parent(request.argv):
        raise UsageError(
            "Envoy ends with the process that started it, unless its hot restart is off",
            remedy="add --disable-hot-restart, or use 'synplug supervise'",
        )
    named = TargetRequest(endpoints=request.endpoints, pids=(request.old_pid,))
    target = find_here(named)
    plan = SwapPlan(
        argv=request.argv,
        spec=hold_spec(target.endpoints, request.hold),
        check=request.check,
        lock_timeout_s=request.hold.lock_timeout_s,
        drain=request.drain,
        ready=request.ready,
        stop=request.stop,
        retire=request.retire,
        new_pidfile=request.new_pidfile,
        migrate=request.migrate,
    )
    return plan, target
