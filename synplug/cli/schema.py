"""The keys of the configuration: they are the options of the verbs, without their dashes.

Derived from the parser, so that there is no key without an option; a test sees to it that there
is no option without a key but those of :data:`NO_KEYS`.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from functools import cache
from typing import Any

from synplug.cli import values
from synplug.cli.options import parser
from synplug.cli.parser import Parser, Switch
from synplug.errors import UsageError
from synplug.record import Record

#: Verbs that take their options from the configuration. The first that has an option says what
#: its values are like.
VERBS = ("wrap", "restart", "hold", "release", "swap", "supervise")
#: Options that are about one call, or about the configuration itself.
NO_KEYS = frozenset({"help", "dry-run", "now", "if-held", "service", "config"})
#: Keys that are no option: what stands behind ``--``, of which verbs.
COMMANDS = {
    "restart": ("wrap", "restart"),
    "start": ("swap", "supervise"),
}
#: Who is meant: keys that only a service can have.
IDENTITY = frozenset({"port", "unit", "pid", "pidfile", "old-pid", "new-pidfile", "name"})
#: Whoever names one of these names the endpoints, and means no other ones. (A swap's are those of
#: its old generation.)
_TARGET = frozenset({"port", "unit", "pid", "pidfile"})

_KINDS: dict[Callable[[str], Any], str] = {
    values.duration: 'a duration is needed, such as "500ms", "2s" or 2.5',
    values.positive_duration: 'a duration of more than 0 is needed, such as "500ms" or "10s"',
    values.count: "a whole number from 1 is needed",
    values.pid: "a process id is needed",
    values.endpoints: 'endpoints are needed, such as 80, "0.0.0.0:80" or a list of them',
    values.argv: "a command is needed: a string, or a list of words",
    values.signal_number: 'a signal is needed, such as "QUIT" or 3',
}
_NUMERIC = (values.duration, values.positive_duration, values.count, values.pid)


class Key(Record):
    """A key of the configuration.

    :param flag: its option; empty for a command behind ``--``.
    :param actions: that option, of each verb that has it.
    """

    name: str
    flag: str
    actions: dict[str, argparse.Action]

    @property
    def verbs(self) -> tuple[str, ...]:
        """The verbs for which it means something."""
        return tuple(self.actions) or COMMANDS[self.name]

    @property
    def action(self) -> argparse.Action | None:
        """The option, of the first verb that has it."""
        return next(iter(self.actions.values()), None)

    @property
    def is_switch(self) -> bool:
        """Whether it is true or false."""
        return isinstance(self.action, Switch)

    @property
    def is_repeatable(self) -> bool:
        """Whether it can be a list, for some verb."""
        return any(not is_single(action) for action in self.actions.values())

    @property
    def parse(self) -> Callable[[str], Any] | None:
        """The parser of its values; None: any text."""
        if self.action is None:
            return values.argv
        return getattr(self.action.type, "parse", None)

    @property
    def needs(self) -> str:
        """What its values are like, in words."""
        if self.is_switch:
            return "true or false is needed"
        if self.action is not None and self.action.choices:
            return "one of " + ", ".join(f'"{choice}"' for choice in self.action.choices)
        many = " or a list of them" if self.is_repeatable else ""
        default = f"a string{many} is needed"
        return _KINDS.get(self.parse, default) if self.parse else default


def is_single(action: argparse.Action) -> bool:
    """Whether an option is given once."""
    return not isinstance(action, argparse._AppendAction | argparse._ExtendAction)  # noqa: SLF001


@cache
def keys() -> dict[str, Key]:
    """All keys, by name."""
    found = {name: Key(name=name, flag="", actions={}) for name in COMMANDS}
    for verb in VERBS:
        for action in verb_parser(parser(verb), verb)._actions:  # noqa: SLF001 -- no public list
            name = key_of(action)
            if name:
                key = found.setdefault(name, Key(name=name, flag=f"--{name}", actions={}))
                key.actions[verb] = action
    return found


def key_of(action: argparse.Action) -> str:
    """The key that stands for an option; empty: none does."""
    long = [flag for flag in action.option_strings if flag.startswith("--")]
    name = long[0][2:] if long else ""
    return "" if name in NO_KEYS else name


def verb_parser(top: Parser, verb: str) -> Parser:
    """The parser of one verb."""
    (verbs,) = (
        action
        for action in top._actions  # noqa: SLF001
        if isinstance(action, argparse._SubParsersAction)  # noqa: SLF001
    )
    found: Parser = verbs.choices[verb]
    return found


@cache
def rivals(name: str, verb: str) -> frozenset[str]:
    """The keys of which a verb can mean only one, if this is one of them; itself included."""
    together = {name}
    if name in _TARGET and verb != "swap":
        together |= _TARGET
    for group in verb_parser(parser(verb), verb)._mutually_exclusive_groups:  # noqa: SLF001
        names = {key_of(action) for action in group._group_actions}  # noqa: SLF001
        if name in names:
            together |= names
    return frozenset(together)


def texts_of(key: Key, value: object) -> tuple[str, ...]:
    """A value of the configuration as the texts that the option would be given.

    :raises UsageError: it is not what the key needs.
    """
    if key.is_switch:
        if not isinstance(value, bool):
            raise _wrong(key, value)
        return ("true",) if value else ("false",)
    if isinstance(value, list):
        if not value or not all(_is_scalar(item, key) for item in value):
            raise _wrong(key, value)
        if key.parse is values.argv:
            return (_checked(key, shlex.join(map(str, value))),)
        if not key.is_repeatable:
            raise _wrong(key, value)
        return tuple(_checked(key, str(item)) for item in value)
    if not _is_scalar(value, key):
        raise _wrong(key, value)
    return (_checked(key, str(value)),)


def _is_scalar(value: object, key: Key) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, int):
        return key.parse in (*_NUMERIC, values.endpoints, values.signal_number)
    if isinstance(value, float):
        return key.parse in (values.duration, values.positive_duration)
    return isinstance(value, str) and "\0" not in value


def _checked(key: Key, text: str) -> str:
    """The text, if the option takes it."""
    choices = key.action.choices if key.action is not None else None
    if choices and text not in choices:
        raise UsageError(f"{text!r}: {key.needs}")
    convert = key.action.type if key.action is not None else values.argv
    if callable(convert):
        try:
            convert(text)
        except (argparse.ArgumentTypeError, UsageError) as error:
            raise UsageError(str(error)) from error
    return text


def _wrong(key: Key, value: object) -> UsageError:
    if isinstance(value, bool):
        shown = f"{value!r}".lower()
    else:
        shown = repr(value) if isinstance(value, str | int | float | list) else type(value).__name__
    return UsageError(f"{shown} will not do: {key.needs}")


def words_of(key: Key, texts: tuple[str, ...]) -> list[str]:
    """The option as words of a command line."""
    if key.is_switch:
        return [key.flag] if texts == ("true",) else []
    return [f"{key.flag}={text}" for text in texts]
