"""Where a run's results go: people, the JSON report, logs, metrics, hooks."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from synplug.cli.json_output import JsonOutput
from synplug.cli.render import complain, plain, report_text
from synplug.errors import SynplugError, UsageError, unforeseen
from synplug.model import HoldSpec, Outcome, Report
from synplug.steps import CommandResult

if TYPE_CHECKING:
    from synplug.cli.telemetry import Telemetry


class Outlets:
    """All that the options ask for, opened before anything is held.

    :raises UsageError: one cannot be opened.
    """

    def __init__(self, options: argparse.Namespace, command: Sequence[str] = ()) -> None:
        self._options = options
        self._json = JsonOutput(getattr(options, "json", None))
        self._telemetry = telemetry_of(options, _label(options, command))
        # A dumb terminal cannot go back in its line, and nobody watches a pipe.
        self._is_watched = (
            not options.quiet
            and sys.stderr is not None
            and sys.stderr.isatty()
            and os.environ.get("TERM", "dumb") != "dumb"
        )

    @property
    def command_stdout(self) -> int | None:
        """What the command gets as its standard output; None: ours."""
        return self._json.diverted

    @contextmanager
    def watching(self, spec: HoldSpec) -> Iterator[Callable[[str], None] | None]:
        """Show a terminal what goes on; gives whom to tell of each step, None: nobody.

        :param spec: of the hold that is to be.
        """
        if not self._is_watched:
            yield None
            return
        from synplug.cli.live import LiveLine

        with LiveLine(spec) as line:
            yield line.observe

    def begin(self, spec: HoldSpec) -> None:
        """Tell those who want to know of the beginning, too."""
        if self._telemetry is not None:
            tell_complaints(self._telemetry.started(spec))

    def end(self, report: Report) -> int:
        """Tell all; returns the exit status."""
        options = self._options
        unwritten = self._json.write(report)
        is_well = not (report.exit_code or report.error or report.warnings or unwritten)
        if not (options.quiet and is_well):
            complain(report_text(report, verbose=options.verbose))
            if self._is_watched and report.hold is not None:
                from synplug.cli.live import timeline

                complain(timeline(report))
        tell_unwritten(unwritten)
        if self._telemetry is not None:
            tell_complaints(self._telemetry.finished(report))
        return report.exit_code or (SynplugError.exit_code if unwritten else 0)


@contextmanager
def planning(options: argparse.Namespace, command: tuple[str, ...]) -> Iterator[None]:
    """Tell others, too, what fails before there is a plan; an older report would stay."""
    try:
        yield
    except Exception as error:
        if not getattr(options, "dry_run", False):
            _tell_failure(options, command, unforeseen(error))
        raise


def _tell_failure(
    options: argparse.Namespace, command: tuple[str, ...], error: SynplugError
) -> None:
    """Tell all who can be told: one of them may be what went wrong."""
    report = Report(
        run_id=os.urandom(4).hex(),
        outcome=Outcome.ERROR,
        exit_code=error.exit_code,
        endpoints=(),
        command=CommandResult(argv=command),
        started_at=time.time(),
        error=error.message,
        remedy=error.remedy,
    )
    with suppress(UsageError):  # it cannot be opened: what went wrong first is said
        JsonOutput(options.json).write(report)
    outlets = [{"log": [name]} for name in options.log]
    for outlet in (*outlets, {"metrics": options.metrics}, {"on_event": options.on_event}):
        with suppress(SynplugError):
            telemetry = telemetry_of(_with_only(options, outlet), _label(options, command))
            if telemetry is not None:
                tell_complaints(telemetry.finished(report))


def tell_of_no_run(options: argparse.Namespace, command: tuple[str, ...]) -> None:
    """Have the metrics know that there was nothing to do. There is no report, nor a hook.

    :raises UsageError: they cannot be written.
    """
    only = _with_only(options, {"metrics": options.metrics})
    telemetry = telemetry_of(only, _label(options, command))
    if telemetry is not None:
        tell_complaints(telemetry.unchanged())


def _with_only(options: argparse.Namespace, outlet: dict[str, Any]) -> argparse.Namespace:
    """The options, with one outlet of all."""
    none: dict[str, Any] = {"log": [], "metrics": None, "on_event": ()}
    return argparse.Namespace(**(vars(options) | none | outlet))


def _label(options: argparse.Namespace, command: Sequence[str]) -> str:
    """What stands for a service without a name; known before its endpoints are found.

    So what fails early, and the next success of the same call, are told of the same one.
    """
    for name in ("endpoints", "units", "pidfiles", "pidfile", "name"):  # a swap's; a release's
        if named := getattr(options, name, ()):
            return plain(named if isinstance(named, str) else ",".join(map(str, named)))
    return plain(shlex.join(command))


def telemetry_of(options: argparse.Namespace, label: str = "") -> Telemetry | None:
    """What is to be told to others; importing it costs, so only if anything is."""
    if not (options.log or options.metrics or options.on_event):
        return None
    from synplug.cli.telemetry import Telemetry

    return Telemetry(options, label)


def tell_unwritten(reason: str) -> None:
    """Say why there is no JSON report; ``""``: there is one."""
    if reason:
        complain(f"synplug: the JSON report could not be written: {plain(reason)}")


def tell_complaints(complaints: list[str]) -> None:
    """Say what could not be told."""
    for complaint in complaints:
        complain(f"synplug: {plain(complaint)}")
