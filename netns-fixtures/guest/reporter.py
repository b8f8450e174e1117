"""The pytest plugin inside a guest: every report as a line of JSON, at once.

Its counterpart is `guest.bridge`.
"""

from __future__ import annotations

import json
import os
from typing import TextIO

import pytest

#: Where the reports go: a file of the folder that guest and host share.
ENVIRONMENT_RESULTS = "GUEST_RESULTS"


def pytest_configure(config: pytest.Config) -> None:
    """Open the file before the first test."""
    file = open(os.environ[ENVIRONMENT_RESULTS], "w", encoding="utf-8")  # noqa: SIM115
    config.add_cleanup(file.close)
    config.pluginmanager.register(_Reporter(config, file), "guest-reporter")


class _Reporter:
    def __init__(self, config: pytest.Config, file: TextIO) -> None:
        self._config = config
        self._file = file

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._write({"report": data})

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._write({"finished": nodeid})

    def _write(self, record: dict[str, object]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        # hostfs keeps what is written until it is asked
        os.fsync(self._file.fileno())
