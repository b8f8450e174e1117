"""``synplug supervise``."""

from __future__ import annotations

import argparse
import os
import signal
import time
from contextlib import closing

from synplug.cli.json_output import JsonOutput
from synplug.cli.outlets import telemetry_of, tell_complaints, tell_unwritten
from synplug.cli.render import complain, one_line, report_text
from synplug.cli.requests import check_url, closing_plans, hold_options
from synplug.errors import UsageError
from synplug.handover.assembly import real_tools
from synplug.handover.generation import Generation
from synplug.handover.notify import OWN_VARIABLES, Notifier
from synplug.handover.plan import ReadyPlan, SwapPlan
from synplug.handover.process import Signals
from synplug.handover.request import hold_spec
from synplug.handover.supervise import SupervisePlan, Surroundings, supervise
from synplug.handover.supervisor_signals import ENDING, PASSED_ON
from synplug.handover.swap_request import spec_of
from synplug.handover.tools import Tools
from synplug.holding.names import check_name
from synplug.holding.supervisors import SupervisorFile
from synplug.kernel import procfs
from synplug.kernel.namespaces import enter_network, network_of
from synplug.kernel.sock_diag import SocketDiagnostics
from synplug.kernel.subreaper import adopt_orphans
from synplug.model import HoldSpec, Report
from synplug.record import replace


def run(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Run the verb; returns the exit status."""
    check_url(options.ready_http.replace("{generation}", "1"))
    check_name(options.name)
    if options.netns is not None:
        enter_network(network_of(options.netns))
    procfs.require_net_admin()
    plan = _plan(options, command)
    hold, endpoints = hold_options(options), tuple(options.endpoints)
    outlets = _Outlets(options)
    adopt_orphans()
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup(1); reloads come by it
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    file = SupervisorFile(options.name)
    try:
        with Signals(*ENDING, *PASSED_ON) as signals, closing(SocketDiagnostics()) as sockets:

            def tools(spec: HoldSpec | None) -> Tools:
                return real_tools(
                    spec or plan.generation.spec,
                    signals=signals,
                    sockets=sockets,
                    command_stdout=outlets.command_stdout,
                )

            def spec(generation: Generation) -> HoldSpec:
                return spec_of(generation.look(), endpoints, hold)

            around = Surroundings(
                tools=tools,
                spec=spec,
                notifier=Notifier(os.environ, clock=time.monotonic, own_pid=os.getpid()),
                publish=file.write,
                tell=outlets.tell,
                complain=_complain,
            )
            return supervise(plan, around, own_pid=os.getpid())
    finally:
        file.close()


def _complain(text: str) -> None:
    """In one line: what checks say, and stop commands, is of unknown origin."""
    complain(one_line(text))


class _Outlets:
    """Where each swap's report goes, opened before anything is started."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._json = JsonOutput(options.json, again=True)
        self._telemetry = telemetry_of(options)
        #: What the generations get as their standard output; None: ours.
        self.command_stdout = self._json.diverted

    def tell(self, report: Report) -> None:
        """Tell all."""
        tell_unwritten(self._json.write(report))
        if not self._options.quiet or report.exit_code or report.warnings:
            complain(report_text(report, verbose=self._options.verbose))
        if self._telemetry is not None:
            tell_complaints(self._telemetry.finished(report))


def _plan(options: argparse.Namespace, command: tuple[str, ...]) -> SupervisePlan:
    """The options as values."""
    if not command:
        raise UsageError("no command", remedy="write it behind --: synplug supervise … -- CMD")
    drain, stop, retire = closing_plans(options)
    placeholder = replace(hold_spec((), hold_options(options)), name="")
    generation = SwapPlan(
        argv=command,
        spec=placeholder,
        check=options.check,
        lock_timeout_s=options.lock_timeout,
        drain=drain,
        ready=ReadyPlan(
            http=options.ready_http,
            command=options.ready_cmd,
            timeout_s=options.ready_timeout,
            settle_s=options.settle,
        ),
        stop=stop,
        retire=retire,
        migrate=options.migrate,
    )
    environment = {name: word for name, word in os.environ.items() if name not in OWN_VARIABLES}
    return SupervisePlan(
        generation=generation, environment=environment, endpoints=tuple(options.endpoints)
    )
