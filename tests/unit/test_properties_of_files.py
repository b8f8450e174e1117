"""What files and restart commands may say: nothing is taken over that is not plainly there."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from synplug.cli import main as command_line
from synplug.errors import UsageError
from synplug.handover import clues
from synplug.handover.clues import clue_of
from synplug.handover.target import read_pidfile
from synplug.holding import recover as recover_module
from synplug.holding import runtime
from synplug.holding.ledger import Entry, entries
from synplug.holding.recover import recover
from synplug.kernel import procfs
from synplug.model import HoldSpec
from tests.unit import oracles

WORDS = st.text(max_size=12)


@contextmanager
def folder() -> Iterator[Path]:
    """A new one, for one case."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


# --- the ledger

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
RUN_IDS = st.sampled_from(
    ["0123abcd", "../../x", "..", "", "0123ABCD", "0123abcd\n", "a/b", "/etc/passwd", "٣٣٣٣٣٣٣٣"]
)
GOOD: dict[str, Any] = {
    "format": 1,
    "run_id": "0123abcd",
    "name": "web",
    "keeper": 4_194_303,
    "keeper_start": 1,
    "backend": "nfqueue",
    "state": "holding",
    "endpoints": ["*:80"],
    "deadline_s": 12.5,
    "traces": {"queues": "20000"},
}
STRANGE: tuple[Any, ...] = (
    *(10**400, -(10**400), 1e400, math.nan, -1, 0, True),
    *([[]], ["*:1", 5], {"a": 1}, ""),
)


@st.composite
def documents(draw: st.DrawFn, entry: dict[str, Any] = GOOD) -> Any:
    """An entry of which some fields are of a wrong type, out of range, missing or too many."""
    document = dict(entry)
    for name in draw(st.lists(st.sampled_from(sorted(GOOD)), max_size=3)):
        document[name] = draw(st.sampled_from(STRANGE) | RUN_IDS | JUNK)
    for name in draw(st.lists(st.sampled_from(sorted(GOOD)), max_size=1)):
        del document[name]
    return document | draw(st.dictionaries(WORDS, JUNK, max_size=1))


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """A ledger file: an entry, perhaps cut off or with other bytes in it; or anything."""
    data = bytearray(json.dumps(draw(documents() | JUNK)).encode())
    if draw(st.booleans()):
        del data[draw(st.integers(0, len(data))) :]
    for _ in range(draw(st.integers(0, 2)) if data else 0):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


@contextmanager
def ledger(content: bytes) -> Iterator[Path]:
    """A ledger with this entry, and a neighbour of its folder that must stay."""
    with folder() as parent, pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "ROOT", str(parent / "synplug"))
        here = Path(runtime.here())
        here.mkdir(parents=True, mode=0o700)
        (here / "0123abcd.json").write_bytes(content)
        (parent / "x.json").touch()
        yield parent


def is_proper(entry: Entry) -> bool:
    """Whether every field is what a run may have written."""
    texts = (entry.run_id, entry.name, entry.backend, entry.state, *entry.endpoints)
    return (
        all(type(text) is str for text in texts)
        and all(type(part) is str for pair in entry.traces.items() for part in pair)
        and type(entry.endpoints) is tuple
        and type(entry.keeper) is type(entry.keeper_start) is int
        and 0 < entry.keeper < 1 << 22
        and entry.keeper_start >= 0
        and type(entry.deadline_s) in (int, float)
        and math.isfinite(entry.deadline_s)
        and entry.deadline_s >= 0
    )


@given(documents().map(json.dumps).map(str.encode) | contents())
def test_an_entry_that_is_accepted_has_proper_fields(content: bytes) -> None:
    with ledger(content):
        before = len(os.listdir("/proc/self/fd"))
        found = list(entries())
        assert len(os.listdir("/proc/self/fd")) == before
    assert all(map(is_proper, found))
    for entry in found:
        document = json.loads(content)
        assert document.pop("format") == 1
        assert entry.__dict__ == document | {"endpoints": tuple(document["endpoints"])}


def test_what_the_cases_begin_with_is_accepted() -> None:
    """The control: or the properties would be true of nothing at all."""
    with ledger(json.dumps(GOOD).encode()):
        (entry,) = entries()
    assert is_proper(entry)


@given(documents().map(json.dumps).map(str.encode) | contents())
def test_recover_never_leaves_its_folder(content: bytes) -> None:
    cleaned: list[str] = []

    class Remains:
        def __init__(self, spec: HoldSpec) -> None:
            self._run_id = spec.run_id

        def clean_up_after_death(self, traces: object) -> list[str]:
            cleaned.append(self._run_id)
            return []

    with ledger(content) as parent, pytest.MonkeyPatch.context() as patch:
        patch.setattr(recover_module, "backends_for", lambda name: (Remains,))
        recover()
        assert (parent / "x.json").exists()
        assert {path.name for path in parent.iterdir()} <= {"x.json", "synplug"}
    assert set(cleaned) <= {"0123abcd"}


LIVE = {"keeper": os.getpid(), "keeper_start": procfs.start_time(os.getpid())}


@example(json.dumps(GOOD | LIVE | {"deadline_s": 10**400}).encode())
@given(documents(GOOD | LIVE).map(json.dumps).map(str.encode))
def test_status_prints_whatever_the_ledger_says(content: bytes) -> None:
    with ledger(content), pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda *words, **_: printed.extend(map(str, words)))
        assert command_line.main(["status"]) == 0
        assert command_line.main(["status", "--json"]) == 0
    assert all(letter.isprintable() or letter == "\n" for text in printed for letter in text)


# --- pidfiles


@given(st.binary(max_size=80) | st.integers(-5, 5_000_000).map(lambda pid: b"%d\n" % pid))
def test_a_pidfile_that_is_accepted_begins_with_that_pid(content: bytes) -> None:
    with folder() as here:
        path = here / "pid"
        path.write_bytes(content)
        try:
            pid = read_pidfile(str(path))
        except UsageError:
            return
    assert 0 < pid < 1 << 22
    assert Path(f"/proc/{pid}").is_dir()
    assert int(content.split()[0]) == pid


# --- commands

NUMBERS = ["12", "4711", "0", "1", "-12", "%1", "²", "٣", "1_0", "9" * 5000]
FILES = ["CONFIG", "PIDFILE", "FIFO", "LINK", "/", ".", "/nonexistent"]
#: Programs, their words, and what these may be about.
SPOKEN = {
    "systemctl": (
        ["restart", "stop", "--no-block", "-H", "-s", "--signal=HUP"],
        ["app", "a.slice"],
    ),
    "service": (["restart", "--status-all"], ["app", "a.service"]),
    "kill": (["-9", "-s", "HUP", "-n", "--"], NUMBERS),
    "haproxy": (["-sf", "-st", "-p", "-D"], [*NUMBERS, *FILES]),
    "nginx": (["-c", "-g", "-p", "-s"], ["reload", "pid PIDFILE;", *FILES]),
    "gunicorn": (["-p", "--pid", "--pidfile", "--pid=PIDFILE"], FILES),
    "uwsgi": (["--reload", "--stop", "--stop=PIDFILE"], FILES),
    "start-stop-daemon": (["-p", "--pidfile", "--pid-file=PIDFILE"], FILES),
}


@st.composite
def commands(draw: st.DrawFn) -> list[str]:
    """Commands as operators write them, and nearly so."""
    name = draw(st.sampled_from(sorted(SPOKEN)))
    flags, values = (st.sampled_from(words) for words in SPOKEN[name])
    phrase = st.tuples(flags, values) | st.tuples(flags) | st.tuples(values | WORDS)
    before = st.lists(st.sampled_from(["sudo", "env", "A=1", "nice", "/usr/bin/env"]), max_size=2)
    program = draw(st.sampled_from([name, name, f"/opt/x/{name}"]) | WORDS)
    phrases = draw(st.lists(phrase, max_size=4))
    return [*draw(before), program, *(word for phrase in phrases for word in phrase)]


LINES = st.sampled_from(
    [
        *("pid PIDFILE;", 'pid "PIDFILE";', "# pid PIDFILE;", "'a; pid PIDFILE;'"),
        *("pid /nonexistent;", "pid", ";", "pid ;", "pid a b;", "user x;", "http {", "}"),
        *("\n", "\0", '"', "'", "\\", "\udcff"),
    ]
)


@example(["nginx", "-c", "FIFO"], [], b"")
@example(["kill", "²"], [], b"")
@example(["haproxy", "-sf", "9" * 5000], [], b"")
@given(commands(), st.lists(LINES | WORDS, max_size=8), st.binary(max_size=20))
def test_a_command_tells_of_nothing_that_does_not_stand_there(
    words: list[str], lines: list[str], noise: bytes
) -> None:
    with folder() as here, pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            clues, "output_of", lambda argv: f"--conf-path={here}/CONFIG --pid-path={here}/BUILT_IN"
        )
        places = {
            name: str(here / name) for name in ("CONFIG", "PIDFILE", "FIFO", "LINK", "BUILT_IN")
        }
        text = " ".join(lines)
        for name, place in places.items():
            words = [word.replace(name, place) for word in words]
            text = text.replace(name, place)
        (here / "CONFIG").write_bytes(text.encode(errors="surrogateescape") + noise)
        (here / "PIDFILE").write_text("1\n")
        (here / "BUILT_IN").write_text("1\n")
        os.mkfifo(here / "FIFO")
        (here / "LINK").symlink_to("CONFIG")
        clue = clue_of(words)
        numbers = {int(word) for word in words if oracles.is_number(word) and len(word) < 10}
        assert set(clue.pids) <= numbers
        assert set(clue.units) <= set(words)
        for path in clue.pidfiles:
            named = any(path in word for word in words)
            assert named or path in text or path == places["BUILT_IN"]
            assert named or words_name_nginx(words)
            assert os.path.exists(path)


def words_name_nginx(words: list[str]) -> bool:
    """Whether the command is nginx, whose configuration may name a pidfile."""
    return any(os.path.basename(word) == "nginx" for word in words)


@given(st.lists(LINES | WORDS, max_size=12))
def test_nginxs_pidfile_is_a_directive_of_its_own(lines: list[str]) -> None:
    """What stands in quotes, comments and blocks is none: taken out, the same is found."""
    text = "\n".join(lines)
    found = clues._nginx_pidfile(text)
    if found:
        assert "pid" in text
        assert found in text
    # A comment, a block and a quoted text in front change nothing.
    harmless = "# pid /no;\nhttp { pid /no; } log_format x 'a; pid /no;';\n"
    assert clues._nginx_pidfile(harmless + text) == found
