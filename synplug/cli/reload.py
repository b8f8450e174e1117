"""``synplug reload``."""

from __future__ import annotations

import argparse
import signal
import time

from synplug.cli.render import complain, plain
from synplug.errors import NoSuchHoldError, SynplugError
from synplug.handover.account import EXIT_DEADLINE
from synplug.handover.process import NoSignals, send_to
from synplug.holding.names import check_name
from synplug.holding.supervisors import read_supervisor
from synplug.kernel.namespaces import enter_network, network_of

_POLL_S = 0.02


def run(options: argparse.Namespace, _command: tuple[str, ...]) -> int:
    """Run the verb; 0 if a new generation serves."""
    if options.netns is not None:
        enter_network(network_of(options.netns))
    before = read_supervisor(check_name(options.name))
    send_to(before.pid, before.start, signal.SIGHUP)
    deadline_s = time.monotonic() + options.timeout
    while time.monotonic() < deadline_s:
        try:
            state = read_supervisor(options.name)
        except NoSuchHoldError as error:
            raise SynplugError("the supervisor has ended meanwhile") from error
        if state.served > before.heard:
            if state.failure:
                complain(
                    f"synplug: generation {state.generation} serves on: {plain(state.failure)}"
                )
                return SynplugError.exit_code
            return 0
        NoSignals().pause(_POLL_S)
    complain(f"synplug: the reload has not ended within {options.timeout:g} s; it goes on")
    return EXIT_DEADLINE
