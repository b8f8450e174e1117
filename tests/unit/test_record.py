"""Records are what frozen, keyword-only dataclasses would be."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from dataclasses import replace as dataclass_replace
from types import MappingProxyType
from typing import Any

import pytest

from synplug.record import Record, as_dict, replace


class Inner(Record):
    """A part."""

    name: str
    sizes: tuple[int, ...] = ()


class Outer(Record):
    """With a part, and a property."""

    number: int
    inner: Inner = Inner(name="default")
    traces: Mapping[str, Inner] = MappingProxyType({})

    @property
    def double(self) -> int:
        """Twice the number."""
        return 2 * self.number


class Wider(Outer):
    """With another field."""

    more: str = ""


@dataclass(frozen=True, kw_only=True)
class InnerTwin:
    """The part, as a dataclass."""

    name: str
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OuterTwin:
    """The whole."""

    number: int
    inner: InnerTwin


def pair(number: int = 1, name: str = "a", sizes: tuple[int, ...] = (1,)) -> tuple[Outer, Any]:
    """The same by both."""
    twin = OuterTwin(number=number, inner=InnerTwin(name=name, sizes=sizes))
    return Outer(number=number, inner=Inner(name=name, sizes=sizes)), twin


@pytest.mark.parametrize("other", [pair(2), pair(1, "b"), pair(1, "a", ()), pair()])
def test_equal_where_a_dataclass_is(other: tuple[Outer, Any]) -> None:
    record, twin = pair()
    assert (record == other[0]) == (twin == other[1])
    hashes = hash(record.inner), hash(other[0].inner)
    assert (hashes[0] == hashes[1]) == (record.inner == other[0].inner)


def test_a_record_of_another_class_is_never_equal() -> None:
    assert Outer(number=1) != Wider(number=1)
    assert Inner(name="a") != "a"


def test_the_order_in_which_fields_are_given_is_nothing() -> None:
    one, other = Inner(name="a", sizes=(1,)), Inner(sizes=(1,), name="a")
    assert one == other
    assert hash(one) == hash(other)
    assert repr(one) == repr(other) == "Inner(name='a', sizes=(1,))"


def test_defaults_and_fields_are_inherited() -> None:
    assert Wider(number=3).inner == Inner(name="default")
    assert Wider(number=3, more="x").double == 6
    assert list(as_dict(Wider(number=3))) == ["number", "inner", "traces", "more"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Inner, "missing: name; unknown: -"),
        (lambda: Inner(name="a", size=1), "missing: -; unknown: size"),  # type: ignore[call-arg]
        (lambda: Inner(size=1), "missing: name; unknown: size"),  # type: ignore[call-arg]
        (lambda: replace(Inner(name="a"), size=1), "missing: -; unknown: size"),
        (lambda: Inner("a"), "positional"),  # type: ignore[call-arg]
    ],
)
def test_fields_that_are_missing_or_unknown(make: Callable[[], object], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        make()


def test_it_is_frozen() -> None:
    record = Inner(name="a")
    with pytest.raises(AttributeError, match="Inner is frozen: 'name' cannot be set"):
        record.name = "b"  # type: ignore[misc]
    with pytest.raises(AttributeError, match="Inner is frozen: 'other' cannot be set"):
        record.other = "b"
    with pytest.raises(AttributeError, match="Inner is frozen: 'name' cannot be deleted"):
        del record.name
    assert record == Inner(name="a")


def test_one_that_differs_leaves_the_first_as_it_was() -> None:
    record, twin = pair()
    changed = replace(record, number=5)
    assert (record.number, changed.number) == (1, 5)
    assert changed.inner is record.inner
    assert as_dict(changed) | {"traces": None} == asdict(dataclass_replace(twin, number=5)) | {
        "traces": None
    }


def test_as_json_it_is_what_a_dataclass_is() -> None:
    record, twin = pair()
    found = as_dict(record)
    assert found.pop("traces") == {}
    assert json.dumps(found) == json.dumps(asdict(twin))
    traces = MappingProxyType({"x": Inner(name="b")})
    assert json.loads(json.dumps(as_dict(Outer(number=1, traces=traces))))["traces"] == {
        "x": {"name": "b", "sizes": []}
    }


def pickled(one: Inner) -> Inner:
    found: Inner = pickle.loads(pickle.dumps(one))
    return found


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled])
def test_copies_are_equal(copied: Callable[[Inner], Inner]) -> None:
    assert copied(Inner(name="a", sizes=(1,))) == Inner(name="a", sizes=(1,))
