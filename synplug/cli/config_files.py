"""The configuration's files: which there are, whether they can be trusted, what stands where."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from synplug.cli.config_options import DIRECTORY, MAIN_FILE
from synplug.errors import UsageError
from synplug.record import Record

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_LARGEST_BYTES = 1 << 20
#: Where a value stands: its keys from the top of the file.
Path = tuple[str, ...]


class ConfigFile(Record):
    """A file of the configuration."""

    name: str
    text: str
    tables: dict[str, Any]

    def line_of(self, path: Path) -> int:
        """The line, from 1, with which a value or its table begins."""
        return self._lines.get(path, 1)

    @cached_property
    def _lines(self) -> dict[Path, int]:
        return _lines(self.text)


def config_files(named: str | None) -> list[ConfigFile]:
    """The files in force; a later one has precedence.

    :param named: a file or a directory in the place of those in /etc.
    :raises UsageError: one cannot be read, must not be trusted, or is not TOML.
    """
    return [read(name) for name in file_names(named)]


def file_names(named: str | None) -> list[str]:
    """Their names, in their order.

    :raises UsageError: a directory cannot be read, or must not be trusted.
    """
    if named == os.devnull:
        return []
    if named is not None:
        return _members(named) if os.path.isdir(named) else [named]
    main = [MAIN_FILE] if os.path.lexists(MAIN_FILE) else []
    return main + (_members(DIRECTORY) if os.path.isdir(DIRECTORY) else [])


def _members(directory: str) -> list[str]:
    try:
        _require_trust(directory, os.stat(directory))
        names = sorted(os.listdir(directory))
    except OSError as error:
        raise UsageError(f"{directory}: {error.strerror}") from error
    found = [name for name in names if name.endswith(".toml") and not name.startswith(".")]
    return [os.path.join(directory, name) for name in found]


def read(name: str) -> ConfigFile:
    """One file.

    :raises UsageError: it cannot be read, must not be trusted, or is not TOML.
    """
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise UsageError(f"{name} is no plain file")
            _require_trust(name, found)
            content = file.read(_LARGEST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror}") from error
    if len(content) > _LARGEST_BYTES:
        raise UsageError(f"{name} is larger than {_LARGEST_BYTES} bytes")
    try:
        text = content.decode()
        return ConfigFile(name=name, text=text, tables=tomllib.loads(text))
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UsageError(f"{name}:{line}: not UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{name}: {error}") from error
    except RecursionError as error:
        raise UsageError(f"{name}: nested too deeply") from error


def _require_trust(name: str, found: os.stat_result) -> None:
    """What stands there is run with our rights: nobody else may have written it.

    :raises UsageError: somebody else may have.
    """
    if found.st_uid not in (0, os.geteuid()):
        raise UsageError(
            f"{name} belongs to user {found.st_uid}: it is not read", remedy=f"chown root {name}"
        )
    others = stat.S_IWOTH if found.st_gid == 0 else stat.S_IWOTH | stat.S_IWGRP
    if found.st_mode & others:
        raise UsageError(
            f"{name} can be written by others: it is not read", remedy=f"chmod go-w {name}"
        )


def _lines(text: str) -> dict[Path, int]:
    """The line of each value: the first one with which the file, up to there, has it.

    The parser itself tells, whatever the notation is: a beginning of the file that ends within a
    value is no TOML.
    """
    found: dict[Path, int] = {}
    lines = [f"{line}\n" for line in text.split("\n")]  # to TOML nothing else ends a line
    begun = 0
    for number in range(1, len(lines) + 1):
        try:
            tables = tomllib.loads("".join(lines[:number]))
        except tomllib.TOMLDecodeError:
            continue
        first = next(
            (at for at in range(begun, number) if lines[at].split("#")[0].strip()), number - 1
        )
        for path in _paths(tables):
            found.setdefault(path, first + 1)
        begun = number
    return found


def _paths(table: dict[str, Any], above: Path = ()) -> Iterator[Path]:
    for name, value in table.items():
        yield (*above, name)
        if isinstance(value, dict):
            yield from _paths(value, (*above, name))
