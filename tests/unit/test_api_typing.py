"""The public interface has the types that its users are told."""

from __future__ import annotations

import ast
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
