"""Four floors, imports go down only; what may be used where."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import synplug

ROOT = Path(synplug.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
#: "About 300 lines": a little more is no reason to cut a room in two.
LINES = 340
FUNCTION_LINES = 40

#: From the top to the ground. A module may import from its own floor and those below.
FLOORS = [
    "__main__",
    "cli",
    "api",
    "handover",
    "holding",
    "kernel",
    "errors",
    "model",
    "fate",
    "steps",
    "record",
]
FUTURE = "from __future__ import annotations"
#: Only below synplug/kernel/.
LINUX = {"ctypes", "pyroute2", "iptc"}
#: What the restart of a service must not wait for.
DEAR = {
    *("pyroute2", "iptc", "tenacity", "asyncio", "subprocess", "logging", "importlib.metadata"),
    *("pathlib", "urllib", "random", "shutil", "tempfile", "threading", "ctypes", "difflib"),
    *("dataclasses", "inspect", "copy", "locale"),
}
#: Nor for what other verbs, and rare options, are made of.
OTHERS = {
    *("swap_options", "setup_options", "completion", "schema", "settings", "telemetry", "live"),
    *("hold", "release", "swap", "supervise", "reload", "doctor", "status", "config", "demo"),
}


def title(path: Path) -> str:
    return str(path.relative_to(ROOT))


def floor_of(module: str) -> int | None:
    """The floor of a dotted name in synplug; None for the package itself."""
    parts = module.split(".")
    return FLOORS.index(parts[1]) if len(parts) > 1 and parts[1] in FLOORS else None


def module_of(path: Path) -> str:
    parts = ["synplug", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Every module that is imported anywhere in the file, in functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{title(path)}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node.value.startswith("synplug.")
            and node.value.replace(".", "").replace("_", "").isalnum()
        ):
            yield node.value  # for importlib


@pytest.mark.parametrize("path", MODULES, ids=title)
def test_imports_go_down_only(path: Path) -> None:
    own = floor_of(module_of(path))
    if own is None:  # the package: it hands out names of every floor when they are asked for
        assert path.name == "__init__.py"
        assert path.parent == ROOT
        return
    upwards = [
        name
        for name in imports(path)
        if name.startswith("synplug.") and (floor := floor_of(name)) is not None and floor < own
    ]
    assert upwards == []


def test_every_module_has_a_floor() -> None:
    assert [title(path) for path in MODULES if floor_of(module_of(path)) is None] == ["__init__.py"]


@pytest.mark.parametrize("path", MODULES, ids=title)
def test_linux_is_spoken_on_the_kernel_floor_only(path: Path) -> None:
    if path.is_relative_to(ROOT / "kernel"):
        return
    assert {name.split(".")[0] for name in imports(path)} & LINUX == set()


@pytest.mark.parametrize("path", MODULES, ids=title)
def test_proc_is_read_on_the_kernel_floor_only(path: Path) -> None:
    """A docstring may speak of /proc; any other text that begins with it is a path."""
    if path.is_relative_to(ROOT / "kernel"):
        return
    tree = ast.parse(path.read_text())
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    paths = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.startswith("/proc")
        and id(node) not in prose
    ]
    assert paths == []


@pytest.mark.parametrize("path", MODULES, ids=title)
def test_only_the_command_line_prints(path: Path) -> None:
    if path.is_relative_to(ROOT / "cli"):
        return
    calls = [
        ast.unparse(node.func)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    ]
    assert "print" not in calls
    assert not [name for name in calls if name.startswith(("sys.stdout", "sys.stderr"))]


@pytest.mark.parametrize("path", MODULES, ids=title)
def test_modules_stay_readable(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= LINES


@pytest.mark.parametrize("path", MODULES, ids=title)
def test_functions_stay_readable(path: Path) -> None:
    """What they do, that is: behind the parameters and the docstring."""
    long = [
        f"{node.name}: {lines}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := lines_of_code(node)) > FUNCTION_LINES
    ]
    assert long == []


def lines_of_code(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """From the first statement behind the docstring to the last one."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (function.end_lineno or 0) - body[0].lineno + 1 if body else 0


def fresh(program: str) -> list[str]:
    """The words that a program prints in a fresh interpreter, with this very package."""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT.parent, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_the_top_of_wrap_imports_nothing_dear() -> None:
    program = (
        "import sys, synplug.cli.main, synplug.cli.wrap\n"
        "synplug.cli.options.parser('wrap').parse_args(['wrap', '-p', '80'])\n"
        "print(*sys.modules)\n"
    )
    before = set(fresh("import sys; print(*sys.modules)"))  # what an editable install is found by
    loaded = set(fresh(program)) - before
    assert "synplug.handover.wrap" in loaded
    assert loaded & DEAR == set()
    assert loaded & {f"synplug.cli.{name}" for name in OTHERS} == set()
    assert loaded & {"synplug.handover.post", "synplug.holding.describe"} == set()
    tuples = [
        path for path in MODULES if module_of(path) in loaded and "(NamedTuple)" in path.read_text()
    ]
    assert {"nfqueue", "room"} <= {path.stem for path in tuples}
    for path in tuples:  # with it each field's type is a string, to be compiled: 3 ms
        assert FUTURE not in path.read_text(), path


def test_the_package_itself_imports_nothing() -> None:
    loaded = fresh("import sys, synplug; print(*sys.modules)")
    assert [name for name in loaded if name.startswith("synplug.")] == []


def test_every_public_name_is_there() -> None:
    for name in synplug.__all__:
        assert getattr(synplug, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        synplug.nonsense  # noqa: B018


def test_public_functions_stay_functions_whatever_is_imported() -> None:
    """A subpackage of the same name would take the place of the function."""
    program = (
        "import pkgutil, importlib, synplug\n"
        "for found in pkgutil.walk_packages(synplug.__path__, 'synplug.'):\n"
        "    if not found.name.endswith('__main__'): importlib.import_module(found.name)\n"
        "assert callable(synplug.hold), synplug.hold\n"
        "assert callable(synplug.wrap), synplug.wrap\n"
    )
    fresh(program)
