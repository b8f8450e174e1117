"""The options of ``synplug swap`` and ``synplug supervise``."""

from __future__ import annotations

import argparse

from synplug.cli import option_groups as groups
from synplug.cli import values
from synplug.cli.config_options import service_options
from synplug.cli.hold_options import hold_options
from synplug.cli.parser import Parser, Switch, value_of
from synplug.handover.plan import ReadyPlan, RetirePlan, StopMethod
from synplug.handover.post import check_post_url

_STOP = StopMethod()
_RETIRE = RetirePlan()
_READY = ReadyPlan()
_READY_S = 60.0

_SWAP_EPILOG = """\
NEWCMD starts the new generation, in the foreground or as a daemon; it outlives synplug. Both
generations listen on the same port by SO_REUSEPORT. New connections are held while the old
listeners close, and no longer. Until then any failure, or SIGINT, SIGTERM or SIGHUP, ends the new
generation, and the old one serves on. After it a signal means: do not linger.

exit status:
  0 swapped; 124 the new generation was not ready in time; 125 synplug itself failed; 126 NEWCMD
  cannot be executed; 127 it cannot be found; 128+N ended by signal N; else the status with which
  the new generation ended by itself
"""


_SUPERVISE_EPILOG = """\
{generation} in CMD and in the options' commands and URLs is the number of the generation, which has
it as SYNPLUG_GENERATION in its environment. In --stop-cmd and --stop-post it is the old one's.

SIGHUP, or 'synplug reload NAME': swap to a new generation of CMD. One that does not become ready is
ended, and the old one serves on. SIGTERM, SIGINT and SIGQUIT go to all generations, and synplug
ends with them; SIGUSR1 just goes to all. Speaks sd_notify(3): READY, RELOADING, STATUS, STOPPING,
WATCHDOG.

exit status:
  that of the current generation, when it ends by itself (of a daemon its main process's; 125
  where nobody saw it); after such a signal 0, or what it then ends with by itself; 124 the first
  one was not ready in time; 125, 126, 127 as of the other verbs
"""


def supervise_options(verb: Parser) -> None:
    """The verb supervise."""
    verb.epilog = _SUPERVISE_EPILOG
    service_options(verb)
    group = verb.add_argument_group("the service")
    group.add_argument(
        "--name",
        type=value_of(values.hold_name),
        required=True,
        metavar="NAME",
        help="what the supervisor is called, such as edge",
    )
    groups.port_option(group)
    groups.netns_option(group, has_command=True)
    generation_options(verb)
    group = verb.add_argument_group("safety")
    groups.check_option(group)
    groups.lock_option(group)
    group = verb.add_argument_group("report")
    groups.json_option(group, "write the report as JSON, that of the newest swap in FILE")
    group.add_argument(
        "-q", "--quiet", action=Switch, help="no report of a success without warnings"
    )
    group.add_argument("-v", "--verbose", action=Switch, help="phases and listeners, too")
    groups.telemetry_options(group)


def swap_options(verb: Parser) -> None:
    """The verb swap."""
    verb.epilog = _SWAP_EPILOG
    service_options(verb)
    group = verb.add_argument_group("the old generation")
    which = group.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--old-pid",
        type=value_of(values.pid),
        metavar="PID",
        help="the main process of the old generation",
    )
    which.add_argument("--pidfile", metavar="FILE", help="the same, with the pid from a file")
    groups.port_option(group)
    groups.netns_option(group, has_command=True)
    generation_options(verb)
    group = verb.add_argument_group("safety")
    groups.check_option(group)
    groups.lock_option(group)
    group.add_argument(
        "-n", "--dry-run", action="store_true", help="print what would be done; change nothing"
    )
    group = verb.add_argument_group("the new generation")
    group.add_argument(
        "--new-pidfile",
        default="",
        metavar="FILE",
        help="write its pid there once it has taken over; may be the old one's",
    )
    groups.output_options(verb)


def generation_options(verb: Parser) -> None:
    """How one generation follows another."""
    ready = groups.probe_options(verb, limit_s=_READY_S, otherwise="60s")
    ready.add_argument(
        "--settle",
        type=value_of(values.duration),
        default=_READY.settle_s,
        metavar="TIME",
        help="a new generation counts once its listeners, and its processes that have them open, "
        "have not changed for so long (default 300ms)",
    )
    hold_options(verb)
    drain = groups.drain_options(verb, before="before it is stopped")
    drain.add_argument(
        "--quiesce",
        type=value_of(values.duration),
        metavar="TIME",
        help="wait so long at the most for its requests in flight, and half a second for the first "
        "one of a new connection (default 1s; 0 with any --stop-… of these)",
    )
    _stop_options(verb)


def _stop_options(verb: Parser) -> None:
    group = verb.add_argument_group("stopping the old generation")
    how = group.add_mutually_exclusive_group()
    how.add_argument(
        "--stop-signal",
        type=value_of(values.signal_number),
        metavar="SIG",
        help="how it closes its listeners: this signal to its main process (default TERM)",
    )
    how.add_argument(
        "--stop-cmd",
        type=value_of(values.argv),
        default=(),
        metavar="CMD",
        help="or this command, split like a shell does, run without one; {pid} is its pid",
    )
    how.add_argument(
        "--stop-post",
        type=value_of(check_post_url),
        metavar="URL",
        help="or POST to unix:/SOCKET:/PATH or http://ADDRESS:PORT/PATH",
    )
    group.add_argument(
        "--stop-timeout",
        type=value_of(values.positive_duration),
        default=_STOP.timeout_s,
        metavar="TIME",
        help="until its listeners are gone; then SIGTERM, and after as long again SIGKILL "
        f"(default {_STOP.timeout_s:g}s)",
    )
    _retire_options(group)


def _retire_options(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--linger",
        type=value_of(values.duration),
        default=_RETIRE.linger_s,
        metavar="TIME",
        help="let it finish established connections for so long; then SIGTERM "
        f"(default {_RETIRE.linger_s:g}s)",
    )
    group.add_argument(
        "--kill-after",
        type=value_of(values.positive_duration),
        default=_RETIRE.kill_after_s,
        metavar="TIME",
        help=f"from there to SIGKILL (default {_RETIRE.kill_after_s:g}s)",
    )
    group.add_argument(
        "--migrate",
        action=Switch,
        help="besides, set net.ipv4.tcp_migrate_req for the swap, where the kernel has it",
    )
