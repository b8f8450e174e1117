"""The fault matrix finds the keeper's steps in its source: one that is added is found, too."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from synplug.holding import keeper
from synplug.kernel.deadman import Deadman
from tests.integration.fault_points import POINTS, WITHOUT_CASES
from tests.integration.steps_in_code import Steps

Changed = Callable[[str, str], set[str]]


def names(steps: Steps) -> set[str]:
    """As the points of the matrix are called."""
    found = {f"{cls.__name__}.{method}" for cls, method in steps.methods()}
    found |= {f"{module.rpartition('.')[2]}.{name}" for module, name in steps.functions}
    return found - set(WITHOUT_CASES)


@pytest.fixture
def changed(tmp_path: Path) -> Iterator[Changed]:
    """The steps of a keeper that, as the first thing when it holds, does something more."""
    name = "synplug.holding.keeper_changed"

    def steps(imported: str, line: str) -> set[str]:
        source = Path(keeper.__file__).read_text()
        begin = "    def _hold(self) -> None:\n"
        assert begin in source
        source = source.replace(begin, f"{begin}        {line}\n")
        path = tmp_path / "keeper_changed.py"
        path.write_text(source.replace("import os\n", f"import os\n{imported}\n", 1))
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return names(Steps(module.Keeper))

    yield steps
    sys.modules.pop(name, None)


def test_as_it_is_all_have_their_cases(changed: Changed) -> None:
    """The control; limit() is called by the keeper's module, whatever that is called."""
    here = {step.replace("keeper_changed.", "keeper.") for step in changed("", "pass")}
    assert here == names(Steps(keeper.Keeper)) <= set(POINTS)


@pytest.mark.parametrize(
    ("imported", "line", "step"),
    [
        ("from synplug.kernel import procfs", "procfs.set_name('x')", "procfs.set_name"),
        ("from synplug.holding import runtime", "runtime.tidy('/')", "runtime.tidy"),
        (
            "from synplug.kernel.nfqueue import PacketQueues",
            "self._more = PacketQueues(count=1, length_packets=1, fail_open=False)",
            "PacketQueues.__init__",
        ),
        (
            "from synplug.holding.watcher import clean_up as swept",
            "swept(self._spec.run_id)",
            "keeper.swept",
        ),
    ],
)
def test_a_step_more_is_found(changed: Changed, imported: str, line: str, step: str) -> None:
    more = {name.replace("keeper_changed.", "keeper.") for name in changed(imported, line)}
    assert more - set(POINTS) == {step}


def test_a_method_more_of_a_part_is_found(
    changed: Changed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the keeper calls it."""
    monkeypatch.setattr(Deadman, "restart", lambda self: None, raising=False)
    assert "Deadman.restart" not in names(Steps(keeper.Keeper))
    assert "Deadman.restart" in changed("", "self._deadman.restart()")
