"""``synplug swap``."""

from __future__ import annotations

import argparse
import os
import shlex

from synplug.cli.outlets import Outlets, planning
from synplug.cli.render import milliseconds, plain, release_words
from synplug.cli.requests import check_url, closing_plans, hold_options
from synplug.handover.assembly import real_tools
from synplug.handover.generation import Generation, Lineage
from synplug.handover.plan import ReadyPlan, SwapPlan
from synplug.handover.process import Signals
from synplug.handover.swap import swap
from synplug.handover.swap_request import SwapRequest, plan_swap
from synplug.handover.target import read_pidfile
from synplug.holding.describe import equivalent_commands
from synplug.kernel import procfs
from synplug.kernel.namespaces import enter_network, network_of
from synplug.kernel.subreaper import adopt_orphans


def run(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Run the verb; returns the exit status."""
    with planning(options, command):
        check_url(options.ready_http)
        if options.netns is not None:
            enter_network(network_of(options.netns))
        if not options.dry_run:
            procfs.require_net_admin()
        request = _request(options, command)
        plan, _ = plan_swap(request, own_pid=os.getpid())
        if options.dry_run:
            print(plain(_dry_run(plan, request.old_pid)))
            return 0
        outlets = Outlets(options, command)
    adopt_orphans()
    with Signals() as signals:
        outlets.begin(plan.spec)
        tools = real_tools(plan.spec, signals=signals, command_stdout=outlets.command_stdout)
        report = swap(
            plan,
            tools,
            old=Generation(request.old_pid, tools=tools),
            lineage=Lineage(procfs, os.getpid()),
        )
    return outlets.end(report)


def _request(options: argparse.Namespace, command: tuple[str, ...]) -> SwapRequest:
    """The options as values."""
    drain, stop, retire = closing_plans(options)
    return SwapRequest(
        old_pid=read_pidfile(options.pidfile) if options.pidfile else options.old_pid,
        argv=command,
        endpoints=tuple(options.endpoints),
        hold=hold_options(options),
        drain=drain,
        ready=ReadyPlan(
            http=options.ready_http,
            command=options.ready_cmd,
            timeout_s=options.ready_timeout,
            settle_s=options.settle,
        ),
        stop=stop,
        retire=retire,
        check=options.check,
        new_pidfile=options.new_pidfile,
        migrate=options.migrate,
    )


def _dry_run(plan: SwapPlan, old_pid: int) -> str:
    """What a run would do, with the commands that would do the same."""
    drain, endpoints = plan.drain, ", ".join(map(str, plan.spec.endpoints))
    steps = [
        f"start: {shlex.join(plan.argv)}",
        f"wait until it listens on {endpoints}, beside process {old_pid}"
        + f", for {milliseconds(plan.ready.settle_s)} without a change"
        + (f", {plan.ready.http} answers" if plan.ready.http else "")
        + (f", {shlex.join(plan.ready.command)} succeeds" if plan.ready.command else ""),
        f"hold new connections to {endpoints}, {milliseconds(plan.spec.max_hold_s)} and "
        f"{plan.spec.max_held_packets} SYNs at the most",
        f"wait for the old queues (at most {milliseconds(drain.timeout_s)}) and requests in "
        f"flight (at most {milliseconds(drain.quiesce_s)})",
        f"stop process {old_pid} by {plan.stop}, and wait until its listeners are gone",
        f"release ({release_words(plan.spec)}), and remove everything",
        f"let process {old_pid} finish for {milliseconds(plan.retire.linger_s)}, then SIGTERM; "
        f"SIGKILL {milliseconds(plan.retire.kill_after_s)} later",
    ]
    if plan.check:
        steps.insert(0, f"check: {shlex.join(plan.check)}")
    lines = ["synplug would, changing nothing now:"]
    lines += [f"  {number}. {step}" for number, step in enumerate(steps, 1)]
    return "\n".join([*lines, "", "the hold by hand:", *equivalent_commands(plan.spec)])
