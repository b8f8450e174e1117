"""Frozen, keyword-only values, which cost next to nothing to define.

A dataclass compiles five functions of its own for each class, and imports what reads source code to
do so. That was a third of the time from the program's start to its hold
(docs/adr/0015-records-in-place-of-dataclasses.md). Records share theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_said: bool) -> Any:
        """What type checkers alone need; Python has it from 3.11 on."""
        return lambda kind: kind


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Record:
    """What a subclass annotates are its fields; what it sets one to there is its default.

    Records of a class are equal if their fields are, and hash by them. All of a class share a
    default, so it is nothing that changes.

    :raises TypeError: a field without a default is missing, or one is given that there is not.
    """

    _fields: ClassVar[tuple[str, ...]] = ()
    _defaults: ClassVar[Mapping[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        own = cls.__annotations__
        cls._fields += tuple(own)
        cls._defaults = {**cls._defaults, **{n: cls.__dict__[n] for n in own if n in cls.__dict__}}

    def __init__(self, **values: Any) -> None:
        fields = {**self._defaults, **values}
        if len(fields) != len(self._fields) or not all(map(fields.__contains__, self._fields)):
            missing = [name for name in self._fields if name not in fields]
            unknown = [name for name in fields if name not in self._fields]
            words = f"missing: {', '.join(missing) or '-'}; unknown: {', '.join(unknown) or '-'}"
            raise TypeError(f"fields of {type(self).__name__}: {words}")
        self.__dict__.update(fields)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: {name!r} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: {name!r} cannot be deleted")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return _values_of(self) == _values_of(other)

    def __hash__(self) -> int:
        return hash((type(self), *_values_of(self).values()))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in _values_of(self).items())
        return f"{type(self).__name__}({fields})"


_R = TypeVar("_R", bound=Record)  # not by its name: text would be compiled


def _values_of(record: Record) -> dict[str, Any]:
    """Its fields by name, in the order of their definition."""
    return {name: getattr(record, name) for name in record._fields}


def replace(record: _R, /, **changes: Any) -> _R:
    """The same but for these fields.

    :raises TypeError: it has no such field.
    """
    return type(record)(**{**_values_of(record), **changes})


def as_dict(record: Record) -> dict[str, Any]:
    """Its fields by name, for JSON: each record within it is a dict, too."""
    return {name: _plain(value) for name, value in _values_of(record).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return as_dict(value)
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if type(value) in (tuple, list):
        return type(value)(map(_plain, value))
    return value
