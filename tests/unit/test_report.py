"""The report: for machines as its schema says, for people without anything to obey."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from synplug.cli.render import milliseconds, plain, release_words, report_text
from synplug.cli.report_json import report_dict, report_json
from synplug.handover.wrap import wrap
from synplug.model import (
    BackendName,
    HoldCounts,
    HoldSpec,
    Outcome,
    OwnedListener,
    Process,
    ReleaseMode,
    ReleaseReason,
    Report,
)
from synplug.record import replace
from synplug.steps import CommandResult
from tests.unit.examples import example_report
from tests.unit.fakes import Restart, listener

DOCS = Path(__file__).parents[2] / "docs"
SCHEMA: dict[str, Any] = json.loads((DOCS / "report-v1.schema.json").read_text())
PAGE = (DOCS / "report.md").read_text()


def complaints(document: object) -> list[str]:
    return [
        f"{error.json_path}: {error.message}"
        for error in Draft202012Validator(SCHEMA).iter_errors(document)
    ]


# --- the schema


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def objects(schema: Any) -> Iterator[dict[str, Any]]:
    """Every object in it that is described by properties."""
    if isinstance(schema, dict):
        if "properties" in schema:
            yield schema
        for inner in schema.values():
            yield from objects(inner)


def test_the_schema_is_closed_complete_and_described() -> None:
    for found in objects(SCHEMA):
        assert found["additionalProperties"] is False
        assert found["required"] == list(found["properties"])
        for name, inner in found["properties"].items():
            assert "description" in inner, name
            if name.endswith("_s"):
                assert "econds" in inner["description"], name


def test_the_example_validates() -> None:
    assert complaints(report_dict(example_report())) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"hold": None, "drain": None, "gap_s": None, "old_listeners": (), "phases": ()},
        {"command": CommandResult(argv=("x",)), "outcome": Outcome.ERROR, "error": "no"},
        *({"outcome": outcome} for outcome in Outcome),
        *({"exit_code": code} for code in (0, 1, 124, 125, 126, 127, 143, 255)),
    ],
)
def test_other_reports_validate(changes: dict[str, Any]) -> None:
    assert complaints(report_dict(replace(example_report(), **changes))) == []


@pytest.mark.parametrize("reason", list(ReleaseReason))
def test_every_reason_validates(reason: ReleaseReason) -> None:
    report = example_report()
    assert report.hold is not None
    report = replace(report, hold=replace(report.hold, reason=reason, counts=HoldCounts()))
    assert complaints(report_dict(report)) == []


def failing(restart: Restart) -> None:
    restart.script = lambda command: command.end(7)


def never_ready(restart: Restart) -> None:
    restart.script = restart.nobody_listens


def not_found(restart: Restart) -> None:
    restart.missing = {"restart"}


def usual(restart: Restart) -> None:
    pass


@pytest.mark.parametrize("happens", [usual, failing, never_ready, not_found])
@pytest.mark.parametrize("check", [(), ("app", "--check")])
def test_reports_of_runs_validate(happens: Any, check: tuple[str, ...]) -> None:
    restart = Restart()
    happens(restart)
    report = wrap(restart.plan(check=check), restart.tools())
    assert complaints(report_dict(report)) == []


@pytest.mark.parametrize(
    "breaks",
    [
        {"surprise": 1},
        {"schema": "synplug.report/2"},
        {"run_id": "xyz"},
        {"outcome": "fine"},
        {"gap_s": -1},
        {"endpoints": ["80"]},
        {"exit_code": 256},
        {"hold": {}},
        {"phases": [{"name": "nap", "start_s": 0, "duration_s": 0}]},
    ],
)
def test_the_schema_refuses(breaks: dict[str, Any]) -> None:
    assert complaints(report_dict(example_report()) | breaks)


def test_the_json_is_one_line_and_keeps_bytes_that_are_no_text() -> None:
    report = replace(example_report(), command=CommandResult(argv=("\udcff", "ü", "a\nb")))
    text = report_json(report)
    assert text.count("\n") == 1
    assert text.isascii()
    assert json.loads(text)["command"]["argv"] == ["\udcff", "ü", "a\nb"]


# --- the page


def test_the_example_of_the_page_is_what_the_code_writes() -> None:
    (block,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    example = json.loads(block)
    assert complaints(example) == []
    assert example == report_dict(example_report())


def test_the_page_explains_every_field() -> None:
    for found in objects(SCHEMA):
        for name in found["properties"]:
            assert re.search(rf"`[^`]*\b{name}\b[^`]*`", PAGE), name


def test_the_page_names_every_value_of_a_choice() -> None:
    for found in objects(SCHEMA):
        for inner in found["properties"].values():
            for value in filter(None, inner.get("enum", ())):
                assert f"`{value}`" in PAGE


# --- for people


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain ünïcode 接続", "plain ünïcode 接続"),
        ("two\nlines", "two\nlines"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("back\x08space\r", "back\\x08space\\x0d"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202egnp.exe", "\\x202egnp.exe"),
        ("\udcff", "\\xdcff"),
        ("tab\t", "tab\\x09"),
        ("\x00\x7f", "\\x00\\x7f"),
    ],
)
def test_plain(text: str, expected: str) -> None:
    assert plain(text) == expected


@given(st.text(max_size=60))
def test_plain_text_has_nothing_that_a_terminal_obeys(text: str) -> None:
    found = plain(text)
    assert all(letter.isprintable() or letter == "\n" for letter in found)
    if all(letter.isprintable() for letter in text):
        assert found == text


def hostile() -> Report:
    owner = OwnedListener(listener=listener(1), owners=(Process(pid=5, name="\x1b[2Jevil"),))
    return replace(
        example_report(),
        command=CommandResult(argv=("\x1b]52;c;x\x07",), ran=True, status=0),
        old_listeners=(owner,),
        warnings=("\x1b[1mwarning",),
        error="\x9berror",
        remedy="\rremedy",
    )


@pytest.mark.parametrize("verbose", [True, False])
def test_hostile_names_are_escaped_in_the_report(verbose: bool) -> None:
    text = report_text(hostile(), verbose=verbose)
    assert all(letter.isprintable() or letter == "\n" for letter in text)


def test_a_name_with_a_line_break_makes_no_line_of_its_own() -> None:
    owner = Process(pid=5, name="x\n  error     everything is lost")
    old = (OwnedListener(listener=listener(1), owners=(owner,)),)
    text = report_text(replace(example_report(), old_listeners=old), verbose=True)
    assert "\n  error  " not in text


def rows(report: Report, *, verbose: bool = False) -> dict[str, str]:
    lines = report_text(report, verbose=verbose).splitlines()
    return {line[2:12].strip(): line[12:] for line in lines[1:]}


def test_a_first_start_is_no_restart() -> None:
    first = replace(example_report(), old_listeners=(), readiness="replaced", gap_s=None)
    assert report_text(first, verbose=False).startswith("synplug: started, exit 0 ")


def test_the_report_for_people() -> None:
    text = report_text(example_report(), verbose=False)
    assert text.splitlines()[0] == "synplug: restarted, exit 0 (run 4afe7dc5)"
    found = rows(example_report())
    assert found["endpoints"] == "*:8080"
    assert found["held"].startswith("891 connections waited, 891 released, 3 retransmits dropped")
    assert found["held"].endswith("for 31 ms by nfqueue")
    assert found["release"] == "in 2 steps: backlog of 511"
    assert found["drain"] == "1 left in the old queues, nothing in flight"
    assert found["gap"] == "13 ms without a listener"
    assert found["command"].endswith("systemctl restart app")
    assert found["warning"] == "1 connections were still in the old listener's queues"
    assert "old" not in found
    verbose = rows(example_report(), verbose=True)
    assert verbose["old"] == "0.0.0.0:8080 nginx[4600]"
    assert verbose["new"] == "0.0.0.0:8080 nginx[4720]"


@pytest.mark.parametrize(
    ("backend", "words"), [("nfqueue", "send their SYN again"), ("plug", "let go by whoever")]
)
def test_what_became_of_those_that_waited_for_a_lost_keeper(backend: str, words: str) -> None:
    """The kernel drops what a queue holds; a plug outlives its keeper."""
    report = example_report()
    assert report.hold is not None
    lost = replace(report.hold, reason=ReleaseReason.KEEPER_LOST, backend=backend)
    assert words in rows(replace(report, hold=lost))["held"]


def test_a_command_that_did_not_run_is_said_to_have_not() -> None:
    report = replace(example_report(), command=CommandResult(argv=("a b", "c")), hold=None)
    assert rows(report)["command"].startswith("not run: ")
    assert rows(report)["held"] == "nothing"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0004, "0 ms"), (0.031, "31 ms"), (0.999, "999 ms"), (90.0, "90 s")]
)
def test_milliseconds(seconds: float, text: str) -> None:
    assert milliseconds(seconds) == text


@pytest.mark.parametrize(
    ("backend", "mode", "words"),
    [
        (BackendName.AUTO, ReleaseMode.PACED, "paced"),
        (BackendName.NFQUEUE, ReleaseMode.BURST, "burst"),
        (BackendName.PLUG, ReleaseMode.PACED, "at once"),
    ],
)
def test_a_plan_says_how_it_will_let_go(
    backend: BackendName, mode: ReleaseMode, words: str
) -> None:
    spec = HoldSpec(endpoints=(), run_id="0123abcd", backend=backend, release=mode)
    assert release_words(spec) == words
