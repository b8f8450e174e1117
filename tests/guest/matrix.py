"""The tables of docs/kernels.md, from what the tests recorded.

`make kernels` names the file in $KERNELS_TABLES; without that nothing is written.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

_BEGIN, _END = "<!-- kernels: begin -->\n", "<!-- kernels: end -->\n"
_FILE = "test_backends.py"
_STAGES = ("held", "released", "clean")


class Matrix:
    """What was recorded, kernel by kernel; a pytest plugin."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._releases: dict[str, str] = {}
        self._features: dict[str, dict[str, bool]] = {}
        self._backends: dict[tuple[str, str], dict[str, Any]] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Every kernel and backend that is asked for has its place, if its guest dies, too."""
        for item in session.items:
            if item.path.name == _FILE and isinstance(item, pytest.Function):
                kernel, backend = map(item.callspec.params.get, ("kernel", "backend"))
                self._features.setdefault(str(kernel), {})
                if backend is not None:
                    self._backends.setdefault((str(kernel), str(backend)), {})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the properties of a finished test: what it came to before it failed, if it did.

        Fixtures look at what is left behind; if they complain, nothing of it counts.
        """
        found = dict(report.user_properties)
        if report.when != "teardown" or "kernel" not in found:
            return
        kernel = str(found["kernel"])
        if isinstance(features := found.get("features"), dict):
            self._features[kernel] = features
            self._releases[kernel] = ".".join(str(found["release"]).split(".")[:2])
        if "backend" in found:
            row = self._backends.setdefault((kernel, str(found["backend"])), {})
            if report.passed:
                row |= {stage: found[stage] for stage in _STAGES if stage in found}

    def pytest_sessionfinish(self) -> None:
        """Write the tables between their marks."""
        if not any(self._features.values()):
            return
        before, _, rest = self._path.read_text(encoding="utf-8").partition(_BEGIN)
        _, _, after = rest.partition(_END)
        tables = "\n".join(("", *self._feature_table(), "", *self._backend_table(), "", ""))
        self._path.write_text(before + _BEGIN + tables + _END + after, encoding="utf-8")

    def _feature_table(self) -> list[str]:
        kernels = sorted(self._features, key=lambda kernel: (self._age(kernel), kernel))
        names = max(map(list, self._features.values()), key=len)
        lines = [_row("feature", *map(self._title, kernels)), "|---" * (len(kernels) + 1) + "|"]
        for name in names:
            there = (self._features[kernel].get(name) for kernel in kernels)
            lines.append(_row(name, *("yes" if yes else "–" for yes in there)))
        return lines

    def _backend_table(self) -> list[str]:
        titles = ("kernel", "backend", "held", "released", "clean after SIGKILL of the keeper")
        lines = [_row(*titles), "|---" * len(titles) + "|"]
        for kernel, backend in sorted(self._backends, key=lambda key: (self._age(key[0]), *key)):
            found = self._backends[kernel, backend]
            cells = ["–"] * 3 if found.get("held") == "cannot" else list(map(found.get, _STAGES))
            words = (
                "–" if cell == "–" else "yes" if cell else "**failed**"
                for cell in cells
            )  # fmt: skip
            lines.append(_row(self._title(kernel), f"`{backend}`", *words))
        return lines

    def _age(self, kernel: str) -> tuple[int, ...]:
        return tuple(int(part) for part in self._releases.get(kernel, "0").split("."))

    def _title(self, kernel: str) -> str:
        return f"{self._releases.get(kernel, '?')} ({kernel})"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def pytest_configure(config: pytest.Config) -> None:
    """Register it where it is wanted."""
    if path := os.environ.get("KERNELS_TABLES"):
        config.pluginmanager.register(Matrix(Path(path)), "kernel-matrix")
