"""``synplug release``."""

from __future__ import annotations

import argparse

from synplug.cli.outlets import Outlets, planning
from synplug.cli.render import complain, plain
from synplug.cli.requests import check_url
from synplug.errors import NoSuchHoldError
from synplug.handover.assembly import real_tools
from synplug.handover.detached import attach, release
from synplug.handover.plan import ReadyPlan
from synplug.handover.process import NoSignals, resolve
from synplug.handover.request import check_far_ready
from synplug.kernel.namespaces import enter_network, network_of


def run(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Run the verb; returns the exit status."""
    with planning(options, command):
        check_url(options.ready_http)
        if options.netns is not None:
            enter_network(network_of(options.netns))
        if options.ready_cmd:
            resolve(options.ready_cmd[0])
        try:
            kept = attach(options.name)
        except NoSuchHoldError as error:
            if not options.if_held:
                raise
            complain(f"synplug: {plain(str(error))}")
            return 0
        ready = ReadyPlan(
            http=options.ready_http,
            command=options.ready_cmd,
            timeout_s=options.ready_timeout,
        )
        if not options.now:
            check_far_ready(kept.spec.hook, ready)
        outlets = Outlets(options)
    tools = real_tools(kept.spec, signals=NoSignals())
    report = release(kept, ready, tools, now=options.now)
    return outlets.end(report)
