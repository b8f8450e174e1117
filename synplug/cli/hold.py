"""``synplug hold``."""

from __future__ import annotations

import argparse

from synplug.cli.render import complain, milliseconds, plain
from synplug.cli.requests import drain_plan, far_hold_options, target_request
from synplug.handover.assembly import real_tools
from synplug.handover.detached import hold
from synplug.handover.process import NoSignals
from synplug.handover.request import HoldRequest, plan_hold
from synplug.kernel import procfs
from synplug.kernel.namespaces import enter_network, network_of


def run(options: argparse.Namespace, _command: tuple[str, ...]) -> int:
    """Run the verb; returns the exit status."""
    if options.netns is not None:
        enter_network(network_of(options.netns))
    procfs.require_net_admin()
    request = HoldRequest(
        name=options.name,
        target=target_request(options),
        hold=far_hold_options(options),
        drain=drain_plan(options),
    )
    plan, target = plan_hold(request)
    begun = hold(plan, real_tools(plan.spec, signals=NoSignals()))
    for warning in begun.warnings:
        complain(f"synplug: {plain(warning)}")
    if not options.quiet:
        for endpoint in target.unserved:
            complain(f"synplug: nobody listens on {endpoint} so far")
        complain(
            f"synplug: {', '.join(map(str, begun.spec.endpoints))} held as {begun.spec.name!r} by "
            f"{begun.backend}, {milliseconds(begun.spec.max_hold_s)} at the most "
            f"(run {begun.spec.run_id}, keeper {begun.keeper})"
        )
    return 0
