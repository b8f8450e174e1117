"""A restart as it is asked for, by whichever caller, and the plan that follows from it."""

from __future__ import annotations

import os
from contextlib import closing

from synplug.errors import UsageError
from synplug.handover.clues import clue_of
from synplug.handover.plan import DrainPlan, HoldPlan, ReadyPlan, WrapPlan
from synplug.handover.target import Target, TargetRequest, find_target, is_named, without_covered
from synplug.holding.names import check_name
from synplug.kernel import procfs
from synplug.kernel.namespaces import network_inode
from synplug.kernel.sock_diag import SocketDiagnostics
from synplug.model import (
    PACKETS_PER_QUEUE,
    BackendName,
    Endpoint,
    HoldSpec,
    Hook,
    OnFull,
    ReleaseMode,
)
from synplug.record import Record, replace

#: Pacing looks at each port by itself, and each look may walk the kernel's whole hash table.
_MOST_ENDPOINTS = 64
_LONGEST_HOLD_S = 24 * 3600.0
_LARGEST_MAX_HELD = PACKETS_PER_QUEUE * 64


class HoldOptions(Record):
    """How to hold; the one place of these defaults. Each stands for the option of its name."""

    max_hold_s: float = 10.0
    max_held: int = PACKETS_PER_QUEUE
    max_held_per_source: int = 0
    on_full: OnFull = OnFull.DROP
    release: ReleaseMode = ReleaseMode.PACED
    backend: BackendName = BackendName.AUTO
    hook: Hook = Hook.INPUT
    devices: tuple[str, ...] = ()
    loopback_egress: bool = False
    lock_timeout_s: float = 0.0


class WrapRequest(Record):
    """A restart by a command."""

    target: TargetRequest
    hold: HoldOptions = HoldOptions()
    drain: DrainPlan = DrainPlan()
    ready: ReadyPlan = ReadyPlan()
    check: tuple[str, ...] = ()
    best_effort: bool = False


def hold_spec(endpoints: tuple[Endpoint, ...], options: HoldOptions, *, name: str = "") -> HoldSpec:
    """A hold of these endpoints, as a run of its own.

    :raises UsageError: an option is out of its range.
    """
    if not 0 < options.max_hold_s <= _LONGEST_HOLD_S:
        raise UsageError("the longest hold must be more than 0 seconds, and a day at most")
    if not 1 <= options.max_held <= _LARGEST_MAX_HELD:
        raise UsageError(f"the number of held SYNs must be from 1 to {_LARGEST_MAX_HELD}")
    if not 0 <= options.max_held_per_source <= options.max_held:
        raise UsageError("the number of held SYNs of one source must be from 0 to that of all")
    _check_plug(options)
    check_hook(options, endpoints)
    if len(endpoints) > _MOST_ENDPOINTS:
        raise UsageError(f"{len(endpoints)} endpoints are more than {_MOST_ENDPOINTS}")
    return HoldSpec(
        endpoints=endpoints,
        run_id=os.urandom(4).hex(),
        name=name,
        backend=options.backend,
        hook=options.hook,
        max_hold_s=options.max_hold_s,
        max_held_packets=options.max_held,
        max_held_per_source=options.max_held_per_source,
        on_full=options.on_full,
        release=options.release,
        devices=options.devices,
        loopback_egress=options.loopback_egress,
    )


def _check_plug(options: HoldOptions) -> None:
    """See that nothing is asked of a plug that it cannot do, nor of a queue what only a plug can.

    :raises UsageError: it is.
    """
    if options.backend is BackendName.PLUG:
        if options.on_full is OnFull.PASS:
            raise UsageError("a plug drops what does not fit", remedy="leave out --on-full pass")
        if options.max_held_per_source:
            raise UsageError("a plug knows no sources", remedy="leave out --max-held-per-source")
    elif options.devices or options.loopback_egress:
        raise UsageError("only the backend plug goes by device; add --backend plug")
    if options.devices and options.loopback_egress:
        raise UsageError("--loopback-egress is about lo alone; leave out --dev")


def check_hook(options: HoldOptions, endpoints: tuple[Endpoint, ...]) -> None:
    """See that the endpoints can be met where they are to be.

    :raises UsageError: they cannot.
    """
    hook = f"--hook {options.hook.value}"
    if options.hook is Hook.INPUT:
        return
    if options.backend is BackendName.PLUG:
        raise UsageError(
            f"backend plug holds only what is delivered on this host, so {hook} cannot be",
            remedy="leave out --backend",
        )
    if options.hook is Hook.FORWARD and not all(one.exact_address for one in endpoints):
        raise UsageError(
            f"{hook} would hold what this host forwards to anybody's port",
            remedy="name the address that it has after DNAT: -p ADDRESS:PORT",
        )


def check_far(target: TargetRequest, hold: HoldOptions, drain: DrainPlan) -> None:
    """See that what is asked of a listener that is not in this network namespace can be.

    :raises UsageError: it cannot.
    """
    if hold.hook is Hook.INPUT:
        if drain.netns:
            raise UsageError("--drain-netns is for --hook forward and prerouting")
        return
    check_hook(hold, target.endpoints)
    if not target.endpoints or target.units or target.pids or target.pidfiles:
        raise UsageError(
            f"with --hook {hold.hook.value} the listeners are not here to be found",
            remedy="name the endpoints, with -p alone",
        )


def check_far_ready(hook: Hook, ready: ReadyPlan) -> None:
    """See that there is something to tell when a listener is ready that cannot be seen.

    :raises UsageError: there is not.
    """
    if hook is Hook.INPUT:
        return
    if not (ready.http or ready.command):
        raise UsageError(
            f"with --hook {hook.value} the new listener cannot be seen: only a probe can tell",
            remedy="add --ready-http URL or --ready-cmd CMD",
        )
    if ready.require_new:
        raise UsageError(f"--require-new needs listeners that can be seen: not --hook {hook.value}")


class HoldRequest(Record):
    """A hold that is left to its keeper, under this name."""

    name: str
    target: TargetRequest
    hold: HoldOptions = HoldOptions()
    drain: DrainPlan = DrainPlan()


def find_here(request: TargetRequest, hook: Hook = Hook.INPUT) -> Target:
    """The target, as it stands in this network namespace now; of another hook, as it is named."""
    if hook is not Hook.INPUT:
        return Target(endpoints=without_covered(request.endpoints))
    with closing(SocketDiagnostics()) as sockets:
        return find_target(request, sockets=sockets, processes=procfs, here=network_inode())


def plan_hold(request: HoldRequest) -> tuple[HoldPlan, Target]:
    """Find the endpoints, here and now.

    :raises UsageError: what was asked for cannot be done as it stands.
    :raises TargetError: the endpoints cannot be found out.
    """
    check_name(request.name)
    check_far(request.target, request.hold, request.drain)
    target = find_here(request.target, request.hold.hook)
    plan = HoldPlan(
        spec=hold_spec(target.endpoints, request.hold, name=request.name),
        lock_timeout_s=request.hold.lock_timeout_s,
        drain=request.drain,
    )
    return plan, target


def check_wrap(request: WrapRequest) -> None:
    """See that a restart could be as it was asked for, wherever it is.

    :raises UsageError: it makes no sense.
    """
    if not request.target.argv:
        raise UsageError("no restart command", remedy="write it behind --: synplug wrap -- CMD")
    check_far(request.target, request.hold, request.drain)
    check_far_ready(request.hold.hook, request.ready)
    longest_s = request.hold.max_hold_s
    for name, wait_s in (("settle", request.ready.settle_s), ("ready", request.ready.timeout_s)):
        if wait_s is not None and wait_s > longest_s:
            raise UsageError(
                f"the {name} time, {wait_s:g} s, is beyond the longest hold, {longest_s:g} s",
                remedy="raise --max-hold",
            )
    words = (*request.target.argv, *request.ready.command, *request.check)
    if not all(isinstance(word, str) and "\0" not in word for word in words):
        raise UsageError("a command is made of words, without NUL bytes")
    for name, wait_s in (
        ("drain", request.drain.timeout_s),
        ("quiesce", request.drain.quiesce_s),
        ("settle", request.ready.settle_s),
        ("ready", request.ready.timeout_s or 0.0),
        ("lock", request.hold.lock_timeout_s),
    ):
        if not 0 <= wait_s <= _LONGEST_HOLD_S:
            raise UsageError(f"the {name} time must be from 0 seconds to a day")
    if request.ready.http:
        from synplug.handover.probes import parse_url

        parse_url(request.ready.http)


def plan_wrap(request: WrapRequest) -> tuple[WrapPlan, Target]:
    """Find the endpoints, here and now, and lay out the run.

    :raises UsageError: what was asked for cannot be done as it stands.
    :raises TargetError: the endpoints cannot be found out.
    """
    check_wrap(request)
    try:
        target, unheld = find_here(request.target, request.hold.hook), ""
    except UsageError as error:
        if not request.best_effort or not is_named(request.target):
            raise
        target, unheld = Target(endpoints=()), str(error)
    ready = replace(
        request.ready,
        require_new=request.ready.require_new or target.returns_early,
        must_last=bool(target.unit or clue_of(request.target.argv).units),
    )
    plan = WrapPlan(
        argv=request.target.argv,
        unheld=unheld,
        spec=hold_spec(target.endpoints, request.hold),
        service_pids=target.pids,
        unit=target.unit,
        check=request.check,
        best_effort=request.best_effort,
        lock_timeout_s=request.hold.lock_timeout_s,
        drain=request.drain,
        ready=ready,
    )
    return plan, target
