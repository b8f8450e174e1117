"""What a supervisor says of itself, for those that ask by its name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from synplug.holding import runtime
from synplug.holding.recover import recover
from synplug.holding.supervisors import SupervisorFile, SupervisorState, read_supervisor


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SupervisorFile]:
    monkeypatch.setattr(runtime, "ROOT", str(tmp_path / "synplug"))
    file = SupervisorFile("app")
    yield file
    file.close()


@pytest.mark.parametrize("letter", ["x", "я", "\x1b", '"', "\U0001f40d"])
def test_a_failure_of_whatever_letters_can_be_read(mine: SupervisorFile, letter: str) -> None:
    mine.write(SupervisorState(pid=1 << 22, start=1 << 62, generation=10**9, failure=letter * 500))
    found = read_supervisor("app")
    assert found.generation == 10**9
    assert found.failure
    assert set(found.failure) == {letter}


@pytest.mark.parametrize(
    "name", ["app", "app.new", "app.json", "app.lock", "app.sock", "app.state"]
)
def test_recover_leaves_a_live_one_alone_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Names are the operator's, and other files here are known by their endings."""
    monkeypatch.setattr(runtime, "ROOT", str(tmp_path / "synplug"))
    file = SupervisorFile(name)
    file.write(SupervisorState(pid=1, start=1, generation=3))
    for path in (tmp_path / "synplug").rglob("*"):
        os.utime(path, (1, 1))
    assert recover() == []
    assert read_supervisor(name).generation == 3
    file.close()
    assert not (tmp_path / "synplug").exists()


def test_recover_removes_what_a_dead_one_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control; one without the ending is an older version's."""
    monkeypatch.setattr(runtime, "ROOT", str(tmp_path / "synplug"))
    folder = Path(runtime.here())
    folder.mkdir(parents=True, mode=0o700)
    for name in ("supervisor-app.new.state", "supervisor-app"):
        (folder / name).touch()
    assert recover() == []
    assert not folder.exists()
