"""synplug as its users have it: installed, not linked to the tree that it is developed in."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench.errors import BenchError

_TREE = Path(__file__).resolve().parent.parent
#: What a build reads; it writes beside that, so into a copy.
_SOURCES = ("pyproject.toml", "README.md", "LICENSE", "man", "synplug")


@contextlib.contextmanager
def ordinary_install() -> Iterator[Path]:
    """Install the tree by pip, in a virtual environment that ends with the context; its programs.

    With an editable install each start of Python reads an import finder, which takes longer than
    all else of a bare one. pip may ask PyPI for what the build and synplug need, so this comes
    before the machine's network is left.

    Raises:
        BenchError: it cannot be installed.

    """
    with tempfile.TemporaryDirectory(prefix="bench-install-") as name:
        folder = Path(name)
        source, environment, scratch = folder / "source", folder / "venv", folder / "scratch"
        scratch.mkdir()
        source.mkdir()
        for part in _SOURCES:
            _copy(_TREE / part, source / part)
        settings = {"TMPDIR": str(scratch), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        programs = environment / "bin"
        pip = [str(programs / "python3"), "-m", "pip", "-q", "--no-cache-dir"]
        for argv in (
            [sys.executable, "-m", "venv", str(environment)],
            [*pip, "install", str(source)],
            # Before Python 3.12 it comes with venv, and has each start read a hook of its own.
            [*pip, "uninstall", "-y", "setuptools"],
        ):
            _run(argv, without_paths() | settings)
        shutil.rmtree(scratch)
        yield programs


def without_paths() -> dict[str, str]:
    """The environment without what shows Python other modules than those installed."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def _run(argv: Sequence[str], environment: Mapping[str, str]) -> None:
    said = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    if said.returncode:
        raise BenchError(f"{' '.join(argv)}: {said.stderr.strip()[-1000:]}")


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)
