"""The options that choose a service of the configuration."""

from __future__ import annotations

import argparse

from synplug.cli.parser import Parser

MAIN_FILE = "/etc/synplug.toml"
DIRECTORY = "/etc/synplug.d"
#: A variable SYNPLUG_MAX_HOLD stands for the key max-hold.
PREFIX = "SYNPLUG_"
#: Those that stand for no key.
OTHER_VARIABLES = frozenset(
    {
        "SYNPLUG_CONFIG",
        "SYNPLUG_GENERATION",
        "SYNPLUG_EVENT",
        "SYNPLUG_RUN_ID",
        "SYNPLUG_EXIT_CODE",
    }
)

RESTART_EPILOG = """\
'synplug restart NAME' is 'synplug wrap -s NAME': the service's endpoints, its command and its
options come from /etc/synplug.toml and /etc/synplug.d/*.toml. Options given here come first.
"""


def service_options(verb: Parser, *, named: bool = False) -> None:
    """Which service of the configuration; by name alone where the verb is about nothing else.

    :param named: the service is an argument, not an option.
    """
    group = verb.add_argument_group("configuration")
    if named:
        group.add_argument("service", metavar="NAME", help="of the service, as configured")
    else:
        group.add_argument(
            "-s",
            "--service",
            metavar="NAME",
            help="take endpoints, command and options from this service's configuration",
        )
    config_option(group)


def config_option(group: argparse._ActionsContainer) -> None:
    """Where the configuration is."""
    group.add_argument(
        "--config",
        metavar="PATH",
        help="a file, or a directory of *.toml files, in the place of /etc/synplug.toml and "
        "/etc/synplug.d",
    )
