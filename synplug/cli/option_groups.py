"""Groups of options that verbs share."""

from __future__ import annotations

import argparse

from synplug.cli import values
from synplug.cli.parser import Parser, Switch, add_list, value_of
from synplug.model import OnDrainTimeout


def target_options(verb: Parser, *, has_command: bool = True) -> None:
    """What is restarted."""
    words = " (inferred from CMD where none is named)" if has_command else ""
    group = verb.add_argument_group(f"endpoints{words}")
    port_option(group)
    group.add_argument(
        "--unit",
        dest="units",
        action="append",
        default=[],
        metavar="UNIT",
        help="what this systemd unit's processes listen on; repeatable, as the next two",
    )
    group.add_argument(
        "--pid",
        dest="pids",
        action="append",
        type=value_of(values.pid),
        default=[],
        metavar="PID",
        help="what this process and its children listen on",
    )
    group.add_argument(
        "--pidfile",
        dest="pidfiles",
        action="append",
        default=[],
        metavar="FILE",
        help="the same, with the pid from a file",
    )
    netns_option(group, has_command=has_command)


def port_option(group: argparse._ActionsContainer) -> None:
    """The endpoints by name."""
    group.add_argument(
        "-p",
        "--port",
        dest="endpoints",
        action="extend",
        type=value_of(values.endpoints),
        default=[],
        metavar="ENDPOINT[,…]",
        help="80, 80,443, 0.0.0.0:80 or [::1]:80; repeatable",
    )


def netns_option(group: argparse._ActionsContainer, *, has_command: bool = False) -> None:
    """Where it is done."""
    group.add_argument(
        "--netns",
        metavar="NAME|PATH|PID",
        help=f"do everything{', CMD included,' if has_command else ''} in that network namespace",
    )


def drain_options(verb: Parser, *, before: str = "before CMD") -> argparse._ArgumentGroup:
    """How long to wait for the old listener."""
    group = verb.add_argument_group(f"draining the old listener, {before}")
    group.add_argument(
        "--drain-timeout",
        type=value_of(values.duration),
        default=1.0,
        metavar="TIME",
        help="wait so long for its accept queues and handshakes (default 1s)",
    )
    group.add_argument(
        "--on-drain-timeout",
        choices=[choice.value for choice in OnDrainTimeout],
        default=OnDrainTimeout.PROCEED.value,
        help="go on all the same (default), or release and do not",
    )
    return group


def quiesce_option(group: argparse._ArgumentGroup) -> None:
    """How long to wait for its requests."""
    group.add_argument(
        "--quiesce",
        type=value_of(values.duration),
        default=1.0,
        metavar="TIME",
        help="wait so long at the most for requests in flight on established connections, and half "
        "a second for the first one of a new connection; 0 does not wait (default 1s)",
    )


def probe_options(
    verb: Parser, *, limit_s: float | None = None, otherwise: str = "until the hold's deadline"
) -> argparse._ArgumentGroup:
    """What is asked, besides, before the service counts as ready.

    :param limit_s: how long is waited by default; *otherwise* says so.
    """
    group = verb.add_argument_group("readiness, besides a listener on each endpoint")
    group.add_argument(
        "--ready-http", default="", metavar="URL", help="this URL, too, must answer 2xx or 3xx"
    )
    group.add_argument(
        "--ready-cmd",
        type=value_of(values.argv),
        default=(),
        metavar="CMD",
        help="this command, too, must succeed; split like a shell does, run without one",
    )
    group.add_argument(
        "--ready-timeout",
        type=value_of(values.positive_duration),
        default=limit_s,
        metavar="TIME",
        help=f"wait no longer than this (default: {otherwise})",
    )
    return group


def ready_options(verb: Parser) -> None:
    """When the service counts as restarted."""
    group = probe_options(verb)
    group.add_argument(
        "--settle",
        type=value_of(values.duration),
        default=0.3,
        metavar="TIME",
        help="where CMD keeps the listeners (a reload): release when they and the service's "
        "processes have not changed for so long after its success (default 300ms)",
    )
    group.add_argument(
        "--require-new",
        action=Switch,
        help="never take unchanged listeners for a finished reload: CMD returns early",
    )


def safety_options(verb: Parser) -> None:
    """What is done before anything is held, or instead."""
    group = verb.add_argument_group("safety")
    check_option(group)
    group.add_argument(
        "--best-effort", action=Switch, help="run CMD even where nothing can be held"
    )
    lock_option(group)
    group.add_argument(
        "-n", "--dry-run", action="store_true", help="print what would be done; change nothing"
    )


def timer_options(verb: Parser) -> None:
    """For calls by cron and its like."""
    group = verb.add_argument_group("timers")
    group.add_argument(
        "--jitter",
        type=value_of(values.duration),
        default=0.0,
        metavar="TIME",
        help="first wait for a random time, so long at the most: not all hosts at once (default 0)",
    )
    add_list(
        group,
        "--only-if-changed",
        metavar="FILE",
        help="do nothing where this file, or directory, is what it was at the last successful "
        "run; repeatable",
    )


def check_option(group: argparse._ActionsContainer) -> None:
    """A test of the configuration."""
    group.add_argument(
        "--check",
        type=value_of(values.argv),
        default=(),
        metavar="CMD",
        help="run this before anything is held; if it fails, so does the run, without CMD",
    )


def lock_option(group: argparse._ActionsContainer) -> None:
    """How long to wait for another run."""
    group.add_argument(
        "--lock-timeout",
        type=value_of(values.duration),
        default=0.0,
        metavar="TIME",
        help="wait so long for another run on the same endpoints (default 0)",
    )


def output_options(verb: Parser) -> None:
    """Where the report goes."""
    group = verb.add_argument_group("report")
    json_option(group, "write the report as JSON")
    volume = group.add_mutually_exclusive_group()
    volume.add_argument(
        "-q", "--quiet", action=Switch, help="no report of a success without warnings"
    )
    volume.add_argument("-v", "--verbose", action=Switch, help="phases and listeners, too")
    telemetry_options(group)


def json_option(group: argparse._ActionsContainer, what: str) -> None:
    """The report for machines."""
    group.add_argument(
        "--json",
        metavar="FILE|-",
        help=f"{what}; with - CMD's standard output goes to standard error",
    )


def telemetry_options(group: argparse._ActionsContainer) -> None:
    """Who else is told."""
    add_list(
        group,
        "--log",
        metavar="FILE|journal|syslog",
        help="append what happens to this file as JSON lines, or tell the log; repeatable",
    )
    group.add_argument(
        "--metrics",
        metavar="FILE",
        help="add the run to this file for Prometheus (textfile collector)",
    )
    group.add_argument(
        "--on-event",
        type=value_of(values.argv),
        default=(),
        metavar="CMD",
        help="run this at the end, with the JSON report on its standard input; split like a shell "
        "does, run without one",
    )
