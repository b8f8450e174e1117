"""Logs, metrics and hooks: who is told of a run besides who called for it.

They are tried before anything is held. What fails afterwards is said, and changes no status: the
restart is what it was.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import time
from collections.abc import Callable, Sequence

from synplug.cli.journal import Log, finished, open_log, started
from synplug.cli.prometheus import add_to_file, note_unchanged
from synplug.cli.report_json import report_json
from synplug.errors import UsageError
from synplug.handover.process import resolve
from synplug.model import Endpoint, HoldSpec, Report

_HOOK_S = 10.0


class Telemetry:
    """What the options ask for.

    :param label: what stands for a service that has no name; empty: its endpoints.
    :raises UsageError: something of it cannot be, as can be seen now.
    :raises CommandError: the hook cannot be executed.
    """

    def __init__(self, options: argparse.Namespace, label: str = "") -> None:
        self._label = label
        self._service: str = options.service or ""
        self._metrics: str | None = options.metrics
        self._hook: Sequence[str] = options.on_event
        if self._metrics is not None:
            folder = os.path.dirname(self._metrics) or "."
            if not os.access(folder, os.W_OK):
                raise UsageError(f"--metrics {self._metrics}: {folder} cannot be written to")
        if self._hook:
            resolve(self._hook[0])
        self._logs: dict[str, Log] = {name: open_log(name) for name in options.log}

    def started(self, spec: HoldSpec) -> list[str]:
        """Tell of the beginning; what could not be told, in words."""
        endpoints = [str(endpoint) for endpoint in spec.endpoints]
        event = started(spec.run_id, self._service, endpoints, time_s=time.time())
        return self._write_logs(event)

    def finished(self, report: Report) -> list[str]:
        """Tell of the end; what could not be told, in words."""
        complaints = self._write_logs(finished(report, self._service, time_s=time.time()))
        service = self._service or self._label or _ports(report.endpoints)
        complaints += self._measure(lambda path: add_to_file(path, service, report))
        if self._hook:
            complaints += self._call(report)
        return complaints

    def unchanged(self) -> list[str]:
        """Tell the metrics that there was nothing to do; what could not be told, in words."""
        service, now_s = self._service or self._label, time.time()
        return self._measure(lambda path: note_unchanged(path, service, time_s=now_s))

    def close(self) -> None:
        """Be done with it."""
        for log in self._logs.values():
            log.close()

    def _measure(self, add: Callable[[str], None]) -> list[str]:
        if self._metrics is None:
            return []
        try:
            add(self._metrics)
        except OSError as error:
            return [f"--metrics {self._metrics}: {error.strerror or error}"]
        return []

    def _write_logs(self, event: dict[str, object]) -> list[str]:
        complaints = []
        for name, log in self._logs.items():
            try:
                log.write(event)
            except OSError as error:
                complaints.append(f"--log {name}: {error.strerror or error}")
        return complaints

    def _call(self, report: Report) -> list[str]:
        """Run the hook, with the report on its standard input."""
        variables = {
            "SYNPLUG_EVENT": report.outcome.value,
            "SYNPLUG_RUN_ID": report.run_id,
            "SYNPLUG_EXIT_CODE": str(report.exit_code),
        }
        try:
            done = subprocess.run(
                list(self._hook),
                input=report_json(report).encode(),
                env={**os.environ, **variables},
                timeout=_HOOK_S,
                stdout=2,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return [f"--on-event: not done within {_HOOK_S:g} s, and killed"]
        except OSError as error:
            return [f"--on-event: {error.strerror or error}"]
        return [f"--on-event: ended with status {done.returncode}"] if done.returncode else []


def _ports(endpoints: Sequence[Endpoint]) -> str:
    """What stands for a service that has no name."""
    return ",".join(map(str, endpoints))
