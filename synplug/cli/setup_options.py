"""The options of the verbs that prepare things, and hold nothing of the machine's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from synplug.cli import option_groups as groups
from synplug.cli import values
from synplug.cli.config_options import config_option
from synplug.cli.parser import value_of

if TYPE_CHECKING:
    from synplug.cli.options import AddVerb


def _config_verb(add: AddVerb) -> None:
    """The verb config."""
    verb = add(
        "config",
        "check the configuration, or show what is in force and where each value comes from",
        "synplug config check [--config PATH]\n       synplug config show [NAME] [--config PATH]",
    )
    verb.add_argument("deed", choices=["check", "show"], metavar="{check,show}", help="what to do")
    verb.add_argument("service", nargs="?", metavar="NAME", help="only this service")
    config_option(verb)
    verb.add_argument("--json", action="store_true", help="as JSON on standard output")


def _systemd_verb(add: AddVerb) -> None:
    """The verb systemd."""
    verb = add(
        "systemd",
        "print a drop-in with which systemd's own restarts of a unit lose nothing",
        "synplug systemd drop-in UNIT [options]",
    )
    verb.add_argument("deed", choices=["drop-in"], metavar="{drop-in}", help="what to print")
    verb.add_argument("unit", metavar="UNIT", help="a service unit")
    groups.port_option(verb)
    verb.add_argument(
        "--name", default="", metavar="NAME", help="of the hold (default: the unit's)"
    )
    verb.add_argument(
        "--max-hold",
        type=value_of(values.positive_duration),
        default=10.0,
        metavar="TIME",
        help="release at the latest after this long (default 10s)",
    )
    verb.add_argument(
        "--reload", action="store_true", help="for 'systemctl reload', in the place of restart"
    )


_COMPLETION_EPILOG = """\
where each looks for it:
  bash  /etc/bash_completion.d/synplug, with the package bash-completion
  zsh   _synplug in a folder of $fpath, such as /usr/local/share/zsh/site-functions
  fish  /etc/fish/completions/synplug.fish, or below ~/.config/fish/completions
"""


def _completion_verb(add: AddVerb) -> None:
    """The verb completion."""
    verb = add(
        "completion",
        "print what completes synplug's command lines in a shell",
        "synplug completion {bash,zsh,fish}",
    )
    verb.add_argument(
        "shell", choices=["bash", "zsh", "fish"], metavar="{bash,zsh,fish}", help="which shell"
    )
    verb.epilog = _COMPLETION_EPILOG


def _demo_verb(add: AddVerb) -> None:
    """The verb demo."""
    verb = add(
        "demo",
        "restart a small server under load, without and with synplug, in namespaces of its own",
        "synplug demo [options]",
    )
    verb.add_argument(
        "--rate",
        type=value_of(values.count),
        default=200,
        metavar="N",
        help="new connections a second (default 200)",
    )
    verb.add_argument(
        "--restarts",
        type=value_of(values.count),
        default=3,
        metavar="N",
        help="on each side (default 3)",
    )
    verb.add_argument(
        "--plot", metavar="FILE.svg", help="draw how long each connection took, over time"
    )


VERBS: dict[str, Callable[[AddVerb], None]] = {
    "config": _config_verb,
    "systemd": _systemd_verb,
    "completion": _completion_verb,
    "demo": _demo_verb,
}
