"""The options of every verb, in one place."""

from __future__ import annotations

import argparse

from synplug import __version__
from synplug.cli import values
from synplug.cli.hold_options import hold_options
from synplug.cli.parser import Parser, value_of
from synplug.model import OnDrainTimeout

_DESCRIPTION = "Restart anything that listens on TCP without losing a connection."
_EPILOG = """\
exit status:
  the command's own, or: 124 the hold's deadline passed before the service was ready;
  125 synplug itself failed (the message says whether the command ran); 126 the command cannot
  be executed; 127 it cannot be found; 128+N ended by signal N

SIGINT, SIGTERM and SIGHUP go to the command, and end the hold.

synplug holds new connections. Those that are established belong to the process that accepted
them, and end with it: synplug can wait for them a moment (--quiesce), it cannot move them.
"""


def parser() -> Parser:
    """The parser of the whole command line but the restart command."""
    top = Parser(
        prog="synplug",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"synplug {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    _wrap(verbs)
    _hold(verbs)
    _release(verbs)
    _doctor(verbs)
    _status(verbs)
    _recover(verbs)
    return top


def _verb(verbs: argparse._SubParsersAction[Parser], name: str, words: str, usage: str) -> Parser:
    return verbs.add_parser(
        name,
        help=words,
        description=words[0].upper() + words[1:] + ".",
        usage=usage,
        epilog=_EPILOG if name == "wrap" else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _wrap(verbs: argparse._SubParsersAction[Parser]) -> None:
    verb = _verb(
        verbs,
        "wrap",
        "run a restart command while new connections wait in the kernel",
        "synplug wrap [options] -- CMD [ARG...]",
    )
    _target_options(verb)
    hold_options(verb)
    _drain_options(verb)
    _ready_options(verb)
    _safety_options(verb)
    _output_options(verb)


def _hold(verbs: argparse._SubParsersAction[Parser]) -> None:
    verb = _verb(
        verbs,
        "hold",
        "hold new connections until 'synplug release', for restarts that are not one command",
        "synplug hold --name NAME --max-hold TIME [options]",
    )
    _name_option(verb)
    _target_options(verb)
    hold_options(verb, deadline="mandatory: nobody may be there to release it")
    _drain_options(verb)
    _lock_option(verb)
    verb.add_argument("-q", "--quiet", action="store_true", help="say nothing where all went well")


def _release(verbs: argparse._SubParsersAction[Parser]) -> None:
    verb = _verb(
        verbs,
        "release",
        "wait until the service listens again, and end a hold that 'synplug hold' began",
        "synplug release --name NAME [options]",
    )
    _name_option(verb)
    _netns_option(verb)
    verb.add_argument(
        "--now", action="store_true", help="do not wait for a listener; who waits may be refused"
    )
    _probe_options(verb)
    _output_options(verb)


def _name_option(verb: Parser) -> None:
    verb.add_argument(
        "--name", required=True, metavar="NAME", help="what the hold is called, such as web"
    )


def _target_options(verb: Parser) -> None:
    group = verb.add_argument_group("endpoints (wrap infers them from CMD where none is named)")
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
    group.add_argument(
        "--unit",
        dest="units",
        action="append",
        default=[],
        metavar="UNIT",
        help="what this systemd unit's processes listen on",
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
    _netns_option(group)


def _netns_option(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--netns",
        metavar="NAME|PATH|PID",
        help="do everything, CMD included, in that network namespace",
    )


def _drain_options(verb: Parser) -> None:
    group = verb.add_argument_group("draining the old listener, before CMD")
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
        help="run CMD all the same (default), or release and do not",
    )
    group.add_argument(
        "--quiesce",
        type=value_of(values.duration),
        default=1.0,
        metavar="TIME",
        help="wait so long at the most for requests in flight on established connections; "
        "0 does not wait (default 1s)",
    )


def _probe_options(verb: Parser) -> argparse._ArgumentGroup:
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
        metavar="TIME",
        help="wait no longer than this, and release (default: until the hold's deadline)",
    )
    return group


def _ready_options(verb: Parser) -> None:
    group = _probe_options(verb)
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
        action="store_true",
        help="never take unchanged listeners for a finished reload: CMD returns early",
    )


def _safety_options(verb: Parser) -> None:
    group = verb.add_argument_group("safety")
    group.add_argument(
        "--check",
        type=value_of(values.argv),
        default=(),
        metavar="CMD",
        help="run this before anything is held; if it fails, so does the run, without CMD",
    )
    group.add_argument(
        "--best-effort", action="store_true", help="run CMD even where nothing can be held"
    )
    _lock_option(group)
    group.add_argument(
        "-n", "--dry-run", action="store_true", help="print what would be done; change nothing"
    )


def _lock_option(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--lock-timeout",
        type=value_of(values.duration),
        default=0.0,
        metavar="TIME",
        help="wait so long for another run on the same ports (default 0)",
    )


def _output_options(verb: Parser) -> None:
    group = verb.add_argument_group("report")
    group.add_argument(
        "--json",
        metavar="FILE|-",
        help="write the report as JSON; with - CMD's standard output goes to standard error",
    )
    volume = group.add_mutually_exclusive_group()
    volume.add_argument("-q", "--quiet", action="store_true", help="no report where all went well")
    volume.add_argument("-v", "--verbose", action="store_true", help="phases and listeners, too")


def _doctor(verbs: argparse._SubParsersAction[Parser]) -> None:
    verb = _verb(
        verbs, "doctor", "say what this kernel and user can do, and try it", "synplug doctor"
    )
    verb.add_argument("--json", action="store_true", help="as JSON on standard output")


def _status(verbs: argparse._SubParsersAction[Parser]) -> None:
    verb = _verb(verbs, "status", "show the holds in force", "synplug status [--netns NAME]")
    _netns_option(verb)
    verb.add_argument("--json", action="store_true", help="as JSON on standard output")


def _recover(verbs: argparse._SubParsersAction[Parser]) -> None:
    verb = _verb(
        verbs,
        "recover",
        "undo what runs that died left behind; never touches a live one",
        "synplug recover [--netns NAME]",
    )
    _netns_option(verb)
    verb.add_argument("--json", action="store_true", help="as JSON on standard output")
