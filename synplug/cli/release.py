"""``synplug release``."""

from __future__ import annotations

import argparse

from synplug.cli.json_output import JsonOutput
from synplug.cli.render import complain, plain, report_text
from synplug.cli.requests import check_url
from synplug.errors import SynplugError
from synplug.handover.assembly import real_tools
from synplug.handover.detached import attach, release
from synplug.handover.plan import ReadyPlan
from synplug.handover.process import NoSignals, resolve
from synplug.kernel.namespaces import enter_network, network_of


def run(options: argparse.Namespace, _command: tuple[str, ...]) -> int:
    """Run the verb; returns the exit status."""
    check_url(options.ready_http)
    if options.netns is not None:
        enter_network(network_of(options.netns))
    if options.ready_cmd:
        resolve(options.ready_cmd[0])
    kept = attach(options.name)
    output = JsonOutput(options.json)
    ready = ReadyPlan(
        http=options.ready_http,
        command=options.ready_cmd,
        timeout_s=options.ready_timeout,
    )
    tools = real_tools(kept.spec, signals=NoSignals())
    report = release(kept, ready, tools, now=options.now)
    unwritten = output.write(report)
    if not options.quiet or report.exit_code or report.error or unwritten:
        complain(report_text(report, verbose=options.verbose))
    if unwritten:
        complain(f"synplug: the JSON report could not be written: {plain(unwritten)}")
    return report.exit_code or (SynplugError.exit_code if unwritten else 0)
