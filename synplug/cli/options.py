"""The options of every verb, in one place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from synplug import __version__
from synplug.cli import option_groups as groups
from synplug.cli import values
from synplug.cli.config_options import RESTART_EPILOG, service_options
from synplug.cli.hold_options import hold_options, hook_options
from synplug.cli.parser import HelpFormatter, Parser, Switch, value_of

#: Adds a verb: its name, what it does, its usage.
AddVerb = Callable[[str, str, str], Parser]

#: The verbs with a command behind ``--``.
WITH_COMMAND = ("wrap", "swap", "supervise")
_DESCRIPTION = "Restart anything that listens on TCP without losing a connection."
_BEGINNING = """\
'synplug VERB --help' shows the options of a verb.

to begin with:
  synplug doctor                                      does it work here?
  synplug wrap --dry-run -- systemctl restart nginx   what would happen
  synplug wrap -- systemctl restart nginx             do it
  synplug wrap -p 8000 -- ./restart-app               by its port, where CMD does not tell it
"""
_TIMES = "TIME is 500ms, 2s, 1m, 1h, or a number of seconds.\n"
_EPILOG = """\
exit status:
  the command's own, or: 124 the hold's deadline passed before the service was ready;
  125 synplug itself failed (the message says whether the command ran); 126 the command cannot
  be executed; 127 it cannot be found; 128+N ended by signal N

SIGINT, SIGTERM and SIGHUP go to the command, and end the hold.

synplug holds new connections. Those that are established belong to the process that accepted
them, and end with it: synplug can wait for them a moment (--quiesce), it cannot move them.
"""
_HOLD_EPILOG = """\
exit status:
  0 new connections are held, until 'synplug release --name NAME' or --max-hold; 125 nothing is held
"""
_RELEASE_EPILOG = """\
exit status:
  0 the service listens, and what waited was let go; 3 no hold of that name is in force: it ended at
  its deadline, perhaps (0 with --if-held); 124 the deadline passed before the service was ready;
  125 synplug itself failed; 126 a command cannot be executed; 127 it cannot be found
"""
_RELOAD_EPILOG = """\
exit status:
  0 a new generation serves; 3 no supervisor of that name runs; 124 it takes longer than --timeout,
  and goes on; 125 the old generation serves on, or synplug itself failed
"""
_EPILOGS = {
    "wrap": _EPILOG,
    "restart": RESTART_EPILOG + "\n" + _EPILOG,
    "hold": _HOLD_EPILOG,
    "release": _RELEASE_EPILOG,
    "reload": _RELOAD_EPILOG,
}


def _wrap(add: AddVerb) -> None:
    verb = add(
        "wrap",
        "run a restart command while new connections wait in the kernel",
        "synplug wrap [options] -- CMD [ARG...]\n       synplug wrap -s NAME [options]",
    )
    service_options(verb)
    _wrap_options(verb)


def _restart(add: AddVerb) -> None:
    verb = add(
        "restart",
        "restart a configured service by its configured command",
        "synplug restart NAME [options]",
    )
    service_options(verb, named=True)
    _wrap_options(verb)


def _wrap_options(verb: Parser) -> None:
    groups.target_options(verb)
    hold_options(verb)
    hook_options(verb)
    groups.quiesce_option(groups.drain_options(verb))
    groups.ready_options(verb)
    groups.safety_options(verb)
    groups.timer_options(verb)
    groups.output_options(verb)


def _hold(add: AddVerb) -> None:
    verb = add(
        "hold",
        "hold new connections until 'synplug release', for restarts that are not one command",
        "synplug hold --name NAME --max-hold TIME [options]",
    )
    _name_option(verb)
    service_options(verb)
    groups.target_options(verb, has_command=False)
    hold_options(verb, deadline="mandatory: nobody may be there to release it")
    hook_options(verb)
    groups.quiesce_option(groups.drain_options(verb, before="before it returns"))
    groups.lock_option(verb)
    verb.add_argument("-q", "--quiet", action=Switch, help="say nothing where all went well")


def _release(add: AddVerb) -> None:
    verb = add(
        "release",
        "wait until the service listens again, and end a hold that 'synplug hold' began",
        "synplug release --name NAME [options]",
    )
    _name_option(verb)
    verb.source = "'synplug status' shows the holds by their names"
    service_options(verb)
    groups.netns_option(verb)
    verb.add_argument(
        "--now", action="store_true", help="do not wait for a listener; who waits may be refused"
    )
    verb.add_argument(
        "--if-held",
        action="store_true",
        help="where no hold of that name is in force, say so, and nothing else: no failure",
    )
    groups.probe_options(verb)
    groups.output_options(verb)


def _swap(add: AddVerb) -> None:
    from synplug.cli.swap_options import swap_options

    swap_options(
        add(
            "swap",
            "replace a running service by a new generation beside it, on the same port",
            "synplug swap {--pidfile OLD | --old-pid PID} [options] -- NEWCMD [ARG...]",
        )
    )


def _supervise(add: AddVerb) -> None:
    from synplug.cli.swap_options import supervise_options

    supervise_options(
        add(
            "supervise",
            "run a service as changing generations, each swapped for the one before on SIGHUP",
            "synplug supervise --name NAME [options] -- CMD [ARG...]",
        )
    )


def _reload(add: AddVerb) -> None:
    verb = add(
        "reload",
        "have a supervisor swap to a new generation, and wait for that",
        "synplug reload NAME [options]",
    )
    verb.add_argument("name", metavar="NAME", help="of the supervisor")
    groups.netns_option(verb)
    verb.add_argument(
        "--timeout",
        type=value_of(values.positive_duration),
        default=120.0,
        metavar="TIME",
        help="wait no longer than this (default 120s)",
    )


def _name_option(verb: Parser) -> None:
    verb.add_argument(
        "--name",
        type=value_of(values.hold_name),
        required=True,
        metavar="NAME",
        help="what the hold is called, such as web",
    )


def _doctor(add: AddVerb) -> None:
    verb = add("doctor", "say what this kernel and user can do, and try it", "synplug doctor")
    verb.add_argument("--json", action="store_true", help="as JSON on standard output")


def _status(add: AddVerb) -> None:
    verb = add("status", "show the holds in force", "synplug status [--netns NAME]")
    groups.netns_option(verb)
    verb.add_argument("--json", action="store_true", help="as JSON on standard output")


def _recover(add: AddVerb) -> None:
    verb = add(
        "recover",
        "undo what runs that died left behind; never touches a live one",
        "synplug recover [--netns NAME] [--run ID]",
    )
    groups.netns_option(verb)
    verb.add_argument(
        "--run",
        metavar="ID",
        help="clean up after that run by its id alone, though its file in /run/synplug is lost or "
        "cannot be read; only you can know that it is dead",
    )
    verb.add_argument("--json", action="store_true", help="as JSON on standard output")


def _setup(verb: str, add: AddVerb) -> None:
    """A verb that prepares things."""
    from synplug.cli.setup_options import VERBS

    VERBS[verb](add)


#: Each adds its verb, and imports what that alone needs: of a start, one verb is asked for.
_VERBS: dict[str, Callable[[AddVerb], None]] = {
    "wrap": _wrap,
    "restart": _restart,
    "hold": _hold,
    "release": _release,
    "swap": _swap,
    "supervise": _supervise,
    "reload": _reload,
    "doctor": _doctor,
    "status": _status,
    "recover": _recover,
    **{name: partial(_setup, name) for name in ("config", "systemd", "completion", "demo")},
}


#: While options are added: argparse makes one for each, to check its words; to ask how wide the
#: terminal is, it would import shutil and four compressors.
_FORMATTER = partial(HelpFormatter, width=80)


def parser(verb: str = "", *, has_command: bool = False) -> Parser:
    """The parser of the whole command line but the restart command.

    :param verb: the only one that it has to know; if there is none of that name, it knows all.
    :param has_command: whether there is one: what is wrong before it is no part of it.
    """
    top = Parser(
        prog="synplug",
        description=_DESCRIPTION,
        epilog=f"{_BEGINNING}\n{_EPILOG}",
        formatter_class=_FORMATTER,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"synplug {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)

    def add(name: str, words: str, usage: str) -> Parser:
        return verbs.add_parser(
            name,
            help=words,
            description=words[0].upper() + words[1:] + ".",
            usage=usage,
            epilog=_EPILOGS.get(name),
            formatter_class=_FORMATTER,
            allow_abbrev=False,
        )

    for name in [verb] if verb in _VERBS else _VERBS:
        _VERBS[name](add)
        found = verbs.choices[name]
        found.takes_command, found.has_command = name in WITH_COMMAND, has_command
        if any(action.metavar == "TIME" for action in found._actions):  # noqa: SLF001
            found.epilog = "\n".join(filter(None, [_TIMES, found.epilog]))
        found.formatter_class = HelpFormatter
    top.formatter_class = HelpFormatter
    return top
