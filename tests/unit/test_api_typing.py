"""The public interface has the types that its users are told."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import synplug

USE = Path(__file__).with_name("api_typing.py")
PROJECT = Path(__file__).parents[2]


def test_the_interface_type_checks_as_it_is_used() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", str(USE)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("", 0), done.stdout + done.stderr


def test_every_public_name_is_used_there() -> None:
    used = {
        name
        for node in ast.walk(ast.parse(USE.read_text()))
        for name in (
            [node.id]
            if isinstance(node, ast.Name)
            else [node.attr]
            if isinstance(node, ast.Attribute)
            else []
        )
    }
    assert set(synplug.__all__) - used == set()


def test_what_an_older_python_lacks_is_found_by_make_lint(tmp_path: Path) -> None:
    """Both mypy and ruff look for the oldest that is promised, in its syntax and library."""
    text = (PROJECT / "pyproject.toml").read_text()
    (oldest,) = re.findall(r'^requires-python = ">=3\.(\d+)"', text, re.MULTILINE)
    assert f'\npython_version = "3.{oldest}"\n' in text
    assert f'\ntarget-version = "py3{oldest}"\n' in text
    assert re.search(r'^files = \["synplug"', text, re.MULTILINE)
    for number, newer in enumerate(("import tomllib\n", "try: ...\nexcept* OSError: ...\n")):
        program = tmp_path / f"newer_{number}.py"
        program.write_text(newer)
        argv = [sys.executable, "-m", "mypy", "--strict", "--python-version", f"3.{oldest}"]
        done = subprocess.run(
            [*argv, str(program)], cwd=PROJECT, capture_output=True, text=True, check=False
        )
        assert done.returncode != 0, done.stdout
