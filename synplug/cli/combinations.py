"""Values that are right by themselves, and cannot stand together: what a verb would say of them.

Whatever the run refuses before it looks at the machine, it refuses here, by the same code.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

from synplug.cli.options import parser
from synplug.cli.requests import (
    check_url,
    closing_plans,
    drain_plan,
    far_hold_options,
    hold_options,
    target_request,
)
from synplug.cli.schema import verb_parser
from synplug.cli.settings import Layer, resolve, words_for
from synplug.errors import UsageError
from synplug.handover.request import check_far, check_wrap, hold_spec

#: What a verb says of some settings; empty: nothing.
Says = Callable[[Layer], str]


def complaint(words: list[str], command: tuple[str, ...]) -> str:
    """What a verb would say of its words, before it looks at the machine; empty: nothing.

    What is mandatory, and not there, is no matter: more words may be to come.
    """
    top = parser(words[0])
    _demand_nothing(verb_parser(top, words[0]))
    try:
        _check(top.parse_args(words), command)
    except UsageError as error:
        return str(error)
    return ""


def _check(options: argparse.Namespace, command: tuple[str, ...]) -> None:
    """Look at what one verb has been given, in the order of its run.

    :raises UsageError: it cannot be done.
    """
    verb = options.verb
    if verb in ("wrap", "restart"):
        from synplug.cli.wrap import request_of

        check_url(options.ready_http)
        check_wrap(request_of(options, command))
    elif verb == "hold":
        check_far(target_request(options), far_hold_options(options), drain_plan(options))
    else:
        check_url(options.ready_http.replace("{generation}", "1"))
    if verb in ("swap", "supervise"):
        closing_plans(options)
    if verb != "release":
        hook_and_all = far_hold_options if hasattr(options, "hook") else hold_options
        hold_spec(tuple(options.endpoints), hook_and_all(options))


def _demand_nothing(verb: argparse.ArgumentParser) -> None:
    for action in verb._actions:  # noqa: SLF001 -- argparse has no public list of them
        action.required = action.required and not action.option_strings
    for group in verb._mutually_exclusive_groups:  # noqa: SLF001
        group.required = False


def to_blame(settings: Layer, says: Says) -> list[str]:
    """The keys without which this would not be said."""
    said = says(settings)
    return [
        name
        for name in settings
        if says({other: one for other, one in settings.items() if other != name}) != said
    ]


def places(settings: Layer, names: list[str]) -> str:
    """Where these are set, in words; empty: there are none."""
    return ", ".join(f"{settings[name].origin()} ({name})" for name in names)


def places_of(
    error: UsageError, words: list[str], command: list[str], environ: Mapping[str, str]
) -> str:
    """Where that stands in files and variables which made a run refuse; empty: not there.

    :param words: those that were given, and *command*, too.
    """
    resolved = resolve(words, command, environ)

    def says(settings: Layer) -> str:
        added = words_for(settings, words[0], service=resolved.name)
        return complaint([words[0], *added, *words[1:]], tuple(resolved.command))

    if says(resolved.settings) != str(error):
        return ""
    return places(resolved.settings, to_blame(resolved.settings, says))
