"""What a supervisor says of itself, for those that ask by its name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from synplug.holding import runtime
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
