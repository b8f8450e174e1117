"""``synplug config check`` and ``synplug config show``."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from functools import partial

from synplug.cli.combinations import complaint, places, to_blame
from synplug.cli.config_files import ConfigFile, file_names, read
from synplug.cli.config_options import PREFIX
from synplug.cli.render import complain, plain
from synplug.cli.schema import COMMANDS, Key, keys
from synplug.cli.settings import Configuration, Layer, Problem, merged, words_for
from synplug.errors import UsageError

EXIT_UNFIT = 1
_NO_COMMAND = ("true",)


def run(options: argparse.Namespace, _command: tuple[str, ...]) -> int:
    """Run the verb; 1 if something in the configuration is wrong."""
    named = options.config or os.environ.get(f"{PREFIX}CONFIG") or None
    files, problems = _read_all(named)
    configuration = Configuration(files, os.environ)
    if options.service is not None and not problems:
        configuration.require(options.service)
    services = [options.service] if options.service is not None else configuration.services()
    problems += _problems(configuration, services)
    if options.deed == "check":
        return _check(files, services, problems, as_json=options.json)
    for problem in problems:
        complain(plain(f"synplug: {problem}"))
    shown = {service: _shown(configuration, service) for service in services}
    if not services:
        shown[""] = _shown(configuration, None)
    print(json.dumps(shown) if options.json else plain(_as_text(shown)))
    return EXIT_UNFIT if problems else 0


def _read_all(named: str | None) -> tuple[list[ConfigFile], list[str]]:
    """The files that can be read, and what is wrong with the others."""
    files: list[ConfigFile] = []
    problems: list[str] = []
    for name in file_names(named):
        try:
            files.append(read(name))
        except UsageError as error:
            problems.append(str(error))
    return files, problems


def _check(
    files: list[ConfigFile], services: list[str], problems: list[str], *, as_json: bool
) -> int:
    """Say whether all is well."""
    names = [file.name for file in files]
    if as_json:
        print(json.dumps({"files": names, "services": services, "problems": problems}))
    elif not problems and not names:
        print("there is no configuration, such as /etc/synplug.toml or /etc/synplug.d/*.toml")
    elif not problems:
        number = f"{len(services)} service{'s' if len(services) != 1 else ''}"
        print(plain(f"{number} in {', '.join(names)}: all is well"))
    for problem in problems if not as_json else ():
        complain(plain(f"synplug: {problem}"))
    return EXIT_UNFIT if problems else 0


# --- what is wrong


def _problems(configuration: Configuration, services: list[str]) -> list[str]:
    """Everything, each once."""
    found: list[str] = []
    elsewhere = set(configuration.layers(None)[1])
    for service in (None, *services):
        layers, problems = configuration.layers(service)
        found += map(str, problems)
        if service is not None:
            is_sound = elsewhere.issuperset(problems)
            found += map(str, _impossible(service, layers, is_sound=is_sound))
    return list(dict.fromkeys(found))


def _impossible(service: str, layers: list[Layer], *, is_sound: bool) -> Iterator[Problem]:
    """Values that are right by themselves, and cannot stand together.

    Those are named without which there would be no complaint.

    :param is_sound: the service's own values are all there. Where one is wrong, a complaint of
        another one by itself may be for lack of it.
    """
    for verb in _verbs_of(layers):
        mine = merged(layers, verb)
        says = partial(_complaint, verb=verb, service=service)
        while said := says(mine):
            involved = to_blame(mine, says)
            if is_sound or involved[1:]:
                origin = places(mine, involved) or f"[service.{service}]"
                yield Problem(origin=origin, message=said)
            if not involved:
                break
            for name in involved:
                del mine[name]


def _verbs_of(layers: list[Layer]) -> list[str]:
    """The verbs that the service is made for, by its commands, and by who is meant."""
    has_start = any("start" in layer for layer in layers)
    verbs = ["wrap"] if any("restart" in layer for layer in layers) or not has_start else []
    is_old = any("old-pid" in layer or "new-pidfile" in layer for layer in layers)
    return verbs + ["supervise"] * has_start + ["swap"] * (has_start or is_old)


def _complaint(settings: Layer, *, verb: str, service: str) -> str:
    """What the verb itself would say of these settings."""
    try:
        words = [verb, *words_for(settings, verb, service=service)]
    except UsageError as error:
        return str(error)
    return complaint(words, _NO_COMMAND)


# --- what is in force


def _shown(configuration: Configuration, service: str | None) -> dict[str, dict[str, object]]:
    """Each key's value, and where it comes from."""
    layers, _ = configuration.layers(service)
    found: dict[str, dict[str, object]] = {}
    for name, key in sorted(keys().items()):
        settings = merged(layers, key.verbs[0])
        if name in settings:
            setting = settings[name]
            value: object = list(setting.texts) if setting.texts[1:] else setting.texts[0]
            found[name] = {"value": value, "origin": setting.origin()}
        elif name == "name" and service is not None:
            found[name] = {"value": service, "origin": "the service's own"}
        elif name not in COMMANDS:
            found[name] = {"value": _default(key), "origin": "default"}
    return found


def _default(key: Key) -> object:
    """The built-in value; None: there is none."""
    value = key.action.default if key.action is not None else None
    return value if isinstance(value, bool | int | float | str) and value != "" else None


def _as_text(shown: dict[str, dict[str, dict[str, object]]]) -> str:
    lines = []
    for service, rows in shown.items():
        lines.append(f"[service.{service}]" if service else "[defaults]")
        for name, row in rows.items():
            value = row["value"]
            if value is None:
                continue
            text = ", ".join(value) if isinstance(value, list) else f"{value}"
            text = text.lower() if isinstance(value, bool) else text
            text = f"{value:g}s" if isinstance(value, float) else text  # all of them are durations
            lines.append(f"  {name:<20} {text:<32} {row['origin']}")
        lines.append("")
    return "\n".join(lines).rstrip()
