"""What the configuration, the environment and the command line say together.

    command line  >  SYNPLUG_*  >  [service.NAME]  >  [defaults]  >  built in

The configuration becomes words in front of those that were given, so that one parser judges all.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from synplug.cli.config_files import ConfigFile, Path, config_files
from synplug.cli.config_options import OTHER_VARIABLES, PREFIX
from synplug.cli.options import parser
from synplug.cli.parser import Parser, nearest
from synplug.cli.schema import (
    COMMANDS,
    IDENTITY,
    VERBS,
    Key,
    keys,
    rivals,
    texts_of,
    verb_parser,
    words_of,
)
from synplug.errors import UsageError
from synplug.record import Record

_TOP = ("defaults", "service")
_YES = frozenset({"1", "true", "yes", "on"})
_NO = frozenset({"0", "false", "no", "off"})


class Setting(Record):
    """A value that somebody has set.

    :param texts: as the option would be given them.
    :param origin: says where: a file and line, or a variable.
    """

    key: Key
    texts: tuple[str, ...]
    origin: Callable[[], str]


class Problem(Record):
    """Something that cannot be so."""

    origin: str
    message: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.message}"


#: One place's settings, by key.
Layer = dict[str, Setting]


class Configuration:
    """The files in force, read.

    :param environ: variables that count, too.
    """

    def __init__(self, files: Sequence[ConfigFile], environ: Mapping[str, str]) -> None:
        self._files = files
        self._environ = environ

    def services(self) -> list[str]:
        """The names of all services, in the order of the alphabet."""
        return sorted({name for _, name, _ in self._service_tables()})

    def layers(self, service: str | None) -> tuple[list[Layer], list[Problem]]:
        """What is set for a service, or for all; the later layer has precedence."""
        found: list[Layer] = []
        problems = list(self._top_problems())
        for file in self._files:
            table = file.tables.get("defaults")
            if isinstance(table, dict):
                found.append(self._layer(file, ("defaults",), table, problems))
        for file, name, table in self._service_tables():
            if name == service:
                found.append(self._layer(file, ("service", name), table, problems))
        variables, wrong = environment_layer(self._environ)
        return [*found, variables], problems + wrong

    def require(self, service: str) -> None:
        """See that there is this service.

        :raises UsageError: there is none.
        """
        known = self.services()
        if service in known:
            return
        if near := nearest(service, known):
            raise UsageError(f"no service {service!r} is configured{near}")
        names = ", ".join(known) if known else "none is"
        where = ", ".join(file.name for file in self._files) or "there is no file"
        if not known:
            where += f"; write [service.{service}] in /etc/synplug.toml, or say "
            where += "'synplug wrap -- CMD'"
        raise UsageError(f"no service {service!r} is configured", remedy=f"{names}: {where}")

    def _service_tables(self) -> Iterator[tuple[ConfigFile, str, dict[str, Any]]]:
        for file in self._files:
            services = file.tables.get("service")
            for name, table in services.items() if isinstance(services, dict) else ():
                if isinstance(table, dict):
                    yield file, name, table

    def _top_problems(self) -> Iterator[Problem]:
        """Tables that nobody knows, and what should have been one."""
        for file in self._files:
            for name, value in file.tables.items():
                origin = partial(_place, file, (name,))
                if name not in _TOP:
                    yield Problem(origin=origin(), message=_unknown(name, _TOP, "table"))
                elif not isinstance(value, dict):
                    yield Problem(origin=origin(), message=f"[{name}] must be a table")
                elif name == "service":
                    for service, table in value.items():
                        if not isinstance(table, dict):
                            at = _place(file, (name, service))
                            words = f"[service.NAME] is needed, not {service} in [service]"
                            yield Problem(origin=at, message=words)

    def _layer(
        self, file: ConfigFile, path: Path, table: dict[str, Any], problems: list[Problem]
    ) -> Layer:
        """One table of one file; what is wrong in it is added to *problems*."""
        found: Layer = {}
        for name, value in table.items():
            origin = partial(_place, file, (*path, name))
            key = keys().get(name)
            if key is None:
                problems.append(Problem(origin=origin(), message=_unknown(name, keys(), "key")))
            elif path == ("defaults",) and (name in IDENTITY or name in COMMANDS):
                words = f"{name} belongs to one service: set it in [service.NAME]"
                problems.append(Problem(origin=origin(), message=words))
            else:
                try:
                    found[name] = Setting(key=key, texts=texts_of(key, value), origin=origin)
                except UsageError as error:
                    problems.append(Problem(origin=origin(), message=f"{name}: {error}"))
        return found


def environment_layer(environ: Mapping[str, str]) -> tuple[Layer, list[Problem]]:
    """What the variables SYNPLUG_* say. An empty one says nothing."""
    found: Layer = {}
    problems: list[Problem] = []
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable in OTHER_VARIABLES or not text:
            continue
        name = variable.removeprefix(PREFIX).lower().replace("_", "-")
        known = [one for one in keys() if one not in COMMANDS]
        if name not in known or variable != variable_of(name):
            names = [variable_of(one) for one in known]
            message = _unknown(variable.upper(), names, "variable")
            problems.append(Problem(origin=variable, message=message))
            continue
        key = keys()[name]
        try:
            texts = texts_of(key, _value_of_variable(key, text))
        except (UsageError, ValueError) as error:
            problems.append(Problem(origin=variable, message=str(error)))
            continue
        found[name] = Setting(key=key, texts=texts, origin=partial(str, f"${variable}"))
    return found, problems


def variable_of(name: str) -> str:
    """The variable that stands for a key."""
    return PREFIX + name.upper().replace("-", "_")


def _value_of_variable(key: Key, text: str) -> object:
    if key.is_switch:
        word = text.lower()
        return word in _YES if word in _YES | _NO else text
    if key.is_repeatable and key.parse is None:
        return shlex.split(text)
    return int(text) if text.isdigit() and len(text) < 10 and key.parse else text


def _place(file: ConfigFile, path: Path) -> str:
    return f"{file.name}:{file.line_of(path)}"


def _unknown(name: str, known: Iterable[str], what: str) -> str:
    return f"unknown {what} {name!r}{nearest(name, known)}"


# --- together


def merged(layers: Iterable[Layer], verb: str) -> Layer:
    """What all say to a verb: a later one replaces, and drops what cannot stand beside it."""
    found: Layer = {}
    for layer in layers:
        mine = {name: setting for name, setting in layer.items() if verb in setting.key.verbs}
        for name, setting in mine.items():
            if setting.texts == ("false",):
                continue
            for rival in rivals(name, verb) - mine.keys():
                found.pop(rival, None)
        found.update(mine)
    return found


def words_for(settings: Layer, verb: str, *, service: str | None) -> list[str]:
    """The settings as words of a command line.

    :raises UsageError: a list is more than this verb can take.
    """
    words = [f"--name={service}"] if service and "name" not in settings and _is_named(verb) else []
    for setting in settings.values():
        action = setting.key.actions.get(verb)
        if action is None:
            continue
        if len(setting.texts) > 1 and type(action) is argparse._StoreAction:  # noqa: SLF001
            raise UsageError(
                f"{setting.origin()}: {setting.key.name}: synplug {verb} takes one only"
            )
        words += words_of(setting.key, setting.texts)
    return words


def _is_named(verb: str) -> bool:
    return verb in keys()["name"].verbs


def given_by(words: Sequence[str]) -> dict[str, Any]:
    """What a command line itself says: no defaults.

    :raises UsageError: it cannot be understood.
    """
    top = parser(words[0])
    lenient = verb_parser(top, words[0])
    _forget_defaults(lenient)
    return vars(top.parse_args(list(words)))


def _forget_defaults(verb: Parser) -> None:
    """Of everything, also what is mandatory: the configuration may say it."""
    for action in verb._actions:  # noqa: SLF001 -- argparse has no public list of them
        action.default = argparse.SUPPRESS
        if action.option_strings:
            action.required = False
    for group in verb._mutually_exclusive_groups:  # noqa: SLF001
        group.required = False


class Resolved(Record):
    """What a call comes to.

    :param settings: those of files and variables that it does not override.
    :param name: the service's, where the call does not say another one.
    """

    settings: Layer
    name: str | None
    command: list[str]


def with_settings(
    words: list[str], command: list[str], environ: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """The words and the command, with what the configuration and the environment say.

    :raises UsageError: something of that cannot be so.
    """
    found = resolve(words, command, environ)
    added = words_for(found.settings, words[0], service=found.name)
    return [words[0], *added, *words[1:]], found.command


def resolve(words: list[str], command: list[str], environ: Mapping[str, str]) -> Resolved:
    """What the configuration and the environment add to a call.

    :raises UsageError: something of that cannot be so.
    """
    verb = words[0]
    assert verb in VERBS
    given = given_by(words)
    service: str | None = given.get("service")
    named = given.get("config") or environ.get(f"{PREFIX}CONFIG") or None
    configuration = Configuration(config_files(named), environ)
    if service is not None:
        configuration.require(service)
    layers, problems = configuration.layers(service)
    if problems:
        more = f" (and {len(problems) - 1} more: synplug config check)" if problems[1:] else ""
        raise UsageError(f"{problems[0]}{more}")
    on_line = {
        name: Setting(key=key, texts=("given",), origin=str)
        for name, key in keys().items()
        if verb in key.actions and key.actions[verb].dest in given
    }
    settings = merged([*layers, on_line], verb)
    configured = {name: one for name, one in settings.items() if name not in on_line}
    if not command and service is not None:
        command = _command(configured, verb, service)
    name = None if "name" in on_line else service
    return Resolved(settings=configured, name=name, command=command)


def _command(settings: Layer, verb: str, service: str) -> list[str]:
    """The service's command for a verb that takes one.

    :raises UsageError: it has none.
    """
    for name, verbs in COMMANDS.items():
        if verb in verbs:
            if name not in settings:
                raise UsageError(
                    f"service {service} has no command to {name} it",
                    remedy=f"add {name} = … to [service.{service}], or write it behind --",
                )
            return shlex.split(settings[name].texts[0])
    return []
