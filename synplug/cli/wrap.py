"""``synplug wrap``."""

from __future__ import annotations

import argparse
import shlex
import time
from typing import TYPE_CHECKING

from synplug.cli.outlets import Outlets, planning, tell_of_no_run
from synplug.cli.render import complain, milliseconds, plain, release_words
from synplug.cli.requests import check_url, drain_plan, far_hold_options, target_request
from synplug.handover.assembly import real_tools
from synplug.handover.plan import ReadyPlan, WrapPlan
from synplug.handover.process import Signals
from synplug.handover.request import WrapRequest, plan_wrap
from synplug.handover.target import Target
from synplug.handover.wrap import wrap
from synplug.kernel import procfs
from synplug.kernel.namespaces import enter_network, network_of
from synplug.model import Hook

if TYPE_CHECKING:
    from synplug.handover.changed import ChangeRecord

_UNCHANGED = "nothing has changed since the last successful run"


def run(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Run the verb; returns the exit status."""
    with planning(options, command):
        check_url(options.ready_http)
        if options.netns is not None:
            enter_network(network_of(options.netns))
        if options.dry_run:
            print(plain(_forecast(options, command)))
            return 0
        if not options.best_effort:
            procfs.require_net_admin()
    if options.jitter:
        _wait_some_of(options.jitter)
    if options.only_if_changed:
        return _restart_if_changed(options, command)
    return _restart(options, command)


def _restart(
    options: argparse.Namespace, command: tuple[str, ...], record: ChangeRecord | None = None
) -> int:
    """One restart, and what there is to say of it; *record* is void from before it to its success.

    It is written while nobody waits.
    """
    with planning(options, command):
        plan, target = plan_wrap(request_of(options, command))
        outlets = Outlets(options, command)
    if not options.quiet:
        for endpoint in target.unserved:
            complain(f"synplug: nobody listens on {endpoint} so far")
    with Signals() as signals:
        outlets.begin(plan.spec)
        with outlets.watching(plan.spec) as observe:
            stdout = outlets.command_stdout
            tools = real_tools(plan.spec, signals=signals, command_stdout=stdout, observe=observe)
            if record is not None:
                record.void()
            report = wrap(plan, tools)
        status = outlets.end(report)  # a signal now does not take the account with it
        if record is not None and not report.command.ran:
            record.put_back()
        elif record is not None and not status:
            record.keep()
        return status


def _wait_some_of(longest_s: float) -> None:
    """Wait for a random time. Nothing has begun: a signal ends it all."""
    import random

    time.sleep(random.uniform(0.0, longest_s))  # noqa: S311 -- no secret


def _restart_if_changed(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Restart, unless the files are what they were at the last success."""
    from synplug.handover.changed import ChangeRecord

    with planning(options, command):
        record = ChangeRecord(_identity(options, command), options.only_if_changed)
    try:
        with planning(options, command):
            record.take(timeout_s=options.lock_timeout)
            if record.is_unchanged():
                tell_of_no_run(options, command)
                if not options.quiet:
                    complain(f"synplug: {_UNCHANGED}: not run")
                return 0
        return _restart(options, command, record)
    finally:
        record.close()


def _identity(options: argparse.Namespace, command: tuple[str, ...]) -> tuple[str, ...]:
    """Whose record of what has changed it is."""
    return (options.service or "", options.netns or "", *command)


def request_of(options: argparse.Namespace, command: tuple[str, ...]) -> WrapRequest:
    """The options as values."""
    return WrapRequest(
        target=target_request(options, command),
        hold=far_hold_options(options),
        drain=drain_plan(options),
        ready=ReadyPlan(
            http=options.ready_http,
            command=options.ready_cmd,
            timeout_s=options.ready_timeout,
            settle_s=options.settle,
            require_new=options.require_new,
        ),
        check=options.check,
        best_effort=options.best_effort,
    )


def _forecast(options: argparse.Namespace, command: tuple[str, ...]) -> str:
    """What a run would do now."""
    if options.only_if_changed:
        from synplug.handover.changed import would_be_unchanged

        if would_be_unchanged(_identity(options, command), options.only_if_changed):
            return f"{_UNCHANGED}: would do nothing"
    return _dry_run(*plan_wrap(request_of(options, command)))


def _dry_run(plan: WrapPlan, target: Target) -> str:
    """What a run would do, with the commands that would do the same."""
    from synplug.holding.describe import equivalent_commands

    drain = plan.drain
    is_here = plan.spec.hook is Hook.INPUT
    steps = [
        f"hold new connections to {', '.join(map(str, plan.spec.endpoints))} ({target.how}), "
        f"{milliseconds(plan.spec.max_hold_s)} and {plan.spec.max_held_packets} SYNs at the most",
        f"wait for the old listener's queues (at most {milliseconds(drain.timeout_s)}) and "
        f"requests in flight (at most {milliseconds(drain.quiesce_s)})"
        if is_here or drain.netns
        else "not look at the old listener's queues, which are not here (see --drain-netns)",
        f"run: {shlex.join(plan.argv)}",
        f"wait until the {'new listener is there' if is_here else 'command has succeeded'}"
        + (f", {plan.ready.http} answers" if plan.ready.http else "")
        + (f", {shlex.join(plan.ready.command)} succeeds" if plan.ready.command else ""),
        f"release ({release_words(plan.spec)}), and remove everything",
    ]
    if plan.check:
        steps.insert(0, f"check: {shlex.join(plan.check)}")
    lines = [f"nobody listens on {endpoint} so far" for endpoint in target.unserved]
    lines.append("synplug would, changing nothing now:")
    lines += [f"  {number}. {step}" for number, step in enumerate(steps, 1)]
    return "\n".join([*lines, "", "the same by hand:", *equivalent_commands(plan.spec)])
