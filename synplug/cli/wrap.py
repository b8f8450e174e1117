"""``synplug wrap``."""

from __future__ import annotations

import argparse
import os
import shlex

from synplug.cli.render import complain, milliseconds, plain, report_text
from synplug.errors import SynplugError, UsageError
from synplug.handover.assembly import real_tools
from synplug.handover.plan import DrainPlan, ReadyPlan, WrapPlan
from synplug.handover.process import Signals
from synplug.handover.request import HoldOptions, WrapRequest, plan_wrap
from synplug.handover.target import Target, TargetRequest
from synplug.handover.wrap import wrap
from synplug.holding.describe import equivalent_commands
from synplug.kernel import procfs
from synplug.kernel.namespaces import enter_network, network_of
from synplug.model import BackendName, OnDrainTimeout, OnFull, ReleaseMode, Report


def run(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Run the verb; returns the exit status."""
    if options.ready_http:
        from synplug.handover.probes import parse_url

        parse_url(options.ready_http)
    if options.netns is not None:
        enter_network(network_of(options.netns))
    if not (options.dry_run or options.best_effort):
        procfs.require_net_admin()
    plan, target = plan_wrap(_request(options, command))
    if options.dry_run:
        print(plain(_dry_run(plan, target)))
        return 0
    if not options.quiet:
        for endpoint in target.unserved:
            complain(f"synplug: nobody listens on {endpoint} so far")
    output = _JsonOutput(options.json)
    with Signals() as signals:
        report = wrap(plan, real_tools(plan.spec, signals=signals, command_stdout=output.diverted))
    unwritten = output.write(report)
    if not options.quiet or report.exit_code or report.error or unwritten:
        complain(report_text(report, verbose=options.verbose))
    if unwritten:
        complain(f"synplug: the JSON report could not be written: {plain(unwritten)}")
    return report.exit_code or (SynplugError.exit_code if unwritten else 0)


def _request(options: argparse.Namespace, command: tuple[str, ...]) -> WrapRequest:
    """The options as values."""
    return WrapRequest(
        target=TargetRequest(
            endpoints=tuple(options.endpoints),
            units=tuple(options.units),
            pids=tuple(options.pids),
            pidfiles=tuple(options.pidfiles),
            argv=command,
        ),
        hold=HoldOptions(
            max_hold_s=options.max_hold,
            max_held=options.max_held,
            on_full=OnFull(options.on_full),
            release=ReleaseMode(options.release),
            backend=BackendName(options.backend),
            lock_timeout_s=options.lock_timeout,
        ),
        drain=DrainPlan(
            timeout_s=options.drain_timeout,
            on_timeout=OnDrainTimeout(options.on_drain_timeout),
            quiesce_s=options.quiesce,
        ),
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


def _dry_run(plan: WrapPlan, target: Target) -> str:
    """What a run would do, with the commands that would do the same."""
    drain = plan.drain
    steps = [
        f"hold new connections to {', '.join(map(str, plan.spec.endpoints))} ({target.how}), "
        f"{milliseconds(plan.spec.max_hold_s)} and {plan.spec.max_held_packets} SYNs at the most",
        f"wait for the old listener's queues (at most {milliseconds(drain.timeout_s)}) and "
        f"requests in flight (at most {milliseconds(drain.quiesce_s)})",
        f"run: {shlex.join(plan.argv)}",
        "wait until the new listener is there"
        + (f", {plan.ready.http} answers" if plan.ready.http else "")
        + (f", {shlex.join(plan.ready.command)} succeeds" if plan.ready.command else ""),
        f"release ({plan.spec.release.value}), and remove everything",
    ]
    if plan.check:
        steps.insert(0, f"check: {shlex.join(plan.check)}")
    lines = [f"nobody listens on {endpoint} so far" for endpoint in target.unserved]
    lines.append("synplug would, changing nothing now:")
    lines += [f"  {number}. {step}" for number, step in enumerate(steps, 1)]
    return "\n".join([*lines, "", "the same by hand:", *equivalent_commands(plan.spec)])


class _JsonOutput:
    """Where the JSON report goes: opened before anything is held, so that it can fail early.

    :param name: a path, or ``-`` for standard output; None: nowhere.
    """

    def __init__(self, name: str | None) -> None:
        #: What the command gets as its standard output instead of ours; None: ours.
        self.diverted = 2 if name == "-" else None
        self._descriptor: int | None = None
        if name == "-":
            self._descriptor = os.dup(1)
        elif name is not None:
            # A FIFO that nobody reads is an error now, rather than a wait without end.
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
            try:
                self._descriptor = os.open(name, flags, 0o644)
            except OSError as error:
                raise UsageError(f"--json {name}: {error.strerror}") from error
            os.set_blocking(self._descriptor, True)

    def write(self, report: Report) -> str:
        """Write the report, replacing what a regular file had; why it could not, or ``""``."""
        if self._descriptor is None:
            return ""
        from synplug.cli.report_json import report_json

        try:
            if os.path.isfile(f"/proc/self/fd/{self._descriptor}") and self.diverted is None:
                os.ftruncate(self._descriptor, 0)
            with os.fdopen(self._descriptor, "w") as file:
                file.write(report_json(report))
        except OSError as error:
            return error.strerror or str(error)
        return ""
