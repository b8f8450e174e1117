"""A file for Prometheus: what all runs so far came to, a set of series a service.

The text format of version 0.0.4, for node_exporter's textfile collector. Each run adds to what
stands there; the file is replaced whole, so that nobody reads half of one.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Iterable

from synplug.model import Outcome, Report
from synplug.record import Record

#: A series: its name, and its labels as they are written.
Series = tuple[str, str]

_LINE = re.compile(r"(synplug_[a-z_]+)\{(.*)\} (\S+)")
_LARGEST_BYTES = 1 << 22


class Metric(Record):
    """A family of series."""

    name: str
    kind: str
    help: str


_METRICS = (
    Metric(name="synplug_runs_total", kind="counter", help="Runs, by how they ended."),
    Metric(
        name="synplug_failures_total",
        kind="counter",
        help="Runs that ended with another status than 0.",
    ),
    Metric(
        name="synplug_held_connections_total", kind="counter", help="Connections whose SYN waited."
    ),
    Metric(
        name="synplug_released_connections_total",
        kind="counter",
        help="Connections that waited and were let go.",
    ),
    Metric(
        name="synplug_lost_syns_total",
        kind="counter",
        help="SYNs dropped or passed since there was no room, or dropped by others.",
    ),
    Metric(
        name="synplug_hold_seconds_total",
        kind="counter",
        help="Time for which new connections waited.",
    ),
    Metric(name="synplug_last_hold_seconds", kind="gauge", help="The same, of the last run."),
    Metric(
        name="synplug_last_gap_seconds",
        kind="gauge",
        help="Time without a listener, of the last run; 0 if there always was one.",
    ),
    Metric(name="synplug_last_exit_code", kind="gauge", help="Exit code of the last run."),
    Metric(
        name="synplug_last_run_timestamp_seconds", kind="gauge", help="When the last run began."
    ),
    Metric(
        name="synplug_last_success_timestamp_seconds",
        kind="gauge",
        help="When the last run began that ended with 0.",
    ),
    Metric(
        name="synplug_last_check_timestamp_seconds",
        kind="gauge",
        help="The same, or when there was nothing to do (--only-if-changed).",
    ),
)
_KINDS = {metric.name: metric.kind for metric in _METRICS}


def add_to_file(path: str, service: str, report: Report) -> None:
    """Add a run to the file at *path*, which need not exist.

    :param service: the label by which a service's series are told apart.
    :raises OSError: it cannot be read or written; it is as it was, then.
    """
    _change(path, lambda series: _add(series, service, report))


def note_unchanged(path: str, service: str, *, time_s: float) -> None:
    """Note that nothing had to be done at *time_s*: all is as the last success has left it.

    :raises OSError: the file cannot be read or written; it is as it was, then.
    """
    label = _label(service)
    now = {
        ("synplug_last_exit_code", label): 0.0,
        ("synplug_last_check_timestamp_seconds", label): time_s,
    }
    _change(path, lambda series: series.update(now))


def _change(path: str, change: Callable[[dict[Series, float]], None]) -> None:
    """Read the file, change what stands there, and replace it."""
    folder = os.path.dirname(path) or "."
    # Whoever adds to a file of this directory locks it: the file itself is replaced.
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        series = _read(path)
        change(series)
        temporary = os.path.join(folder, f".{os.path.basename(path)}.{os.getpid()}")
        try:
            _write(temporary, render(series))
            os.rename(temporary, path)
        except OSError:
            if os.path.lexists(temporary):
                os.unlink(temporary)
            raise
    finally:
        os.close(lock)


def _read(path: str) -> dict[Series, float]:
    """The series that stand there; what is not understood is left out."""
    if not os.path.lexists(path):
        return {}
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags), "rb") as file:
        text = file.read(_LARGEST_BYTES).decode(errors="replace")
    return parse(text)


def parse(text: str) -> dict[Series, float]:
    """The series of a text that :func:`render` made."""
    found: dict[Series, float] = {}
    for line in text.split("\n"):
        match = _LINE.fullmatch(line)
        if match and match.group(1) in _KINDS:
            try:
                found[match.group(1), match.group(2)] = float(match.group(3))
            except ValueError:
                continue
    return found


def _add(series: dict[Series, float], service: str, report: Report) -> None:
    label = _label(service)
    hold = report.hold
    duration_s = hold.opened_at_s - hold.held_at_s if hold else 0.0
    counts = hold.counts if hold else None
    lost = counts.lost + counts.overflowed + counts.over_source if counts else 0
    increments = {
        "synplug_failures_total": float(report.exit_code != 0),
        "synplug_held_connections_total": float(counts.held if counts else 0),
        "synplug_released_connections_total": float(counts.released if counts else 0),
        "synplug_lost_syns_total": float(lost),
        "synplug_hold_seconds_total": duration_s,
    }
    for outcome in Outcome:
        ended = f'{label},outcome="{outcome.value}"'
        _increase(series, ("synplug_runs_total", ended), float(report.outcome is outcome))
    for name, value in increments.items():
        _increase(series, (name, label), value)
    series["synplug_last_hold_seconds", label] = duration_s
    series["synplug_last_gap_seconds", label] = report.gap_s or 0.0
    series["synplug_last_exit_code", label] = float(report.exit_code)
    series["synplug_last_run_timestamp_seconds", label] = report.started_at
    if report.exit_code == 0:
        series["synplug_last_success_timestamp_seconds", label] = report.started_at
        series["synplug_last_check_timestamp_seconds", label] = report.started_at


def _increase(series: dict[Series, float], which: Series, value: float) -> None:
    series[which] = series.get(which, 0.0) + value


def render(series: dict[Series, float]) -> str:
    """The file's text."""
    lines: list[str] = []
    for metric in _METRICS:
        own = sorted(
            (labels, value) for (name, labels), value in series.items() if name == metric.name
        )
        if own:
            lines.append(f"# HELP {metric.name} {metric.help}")
            lines.append(f"# TYPE {metric.name} {metric.kind}")
            lines += _series_lines(metric.name, own)
    return "\n".join([*lines, ""])


def _series_lines(name: str, own: Iterable[tuple[str, float]]) -> list[str]:
    return [f"{name}{{{labels}}} {value!r}" for labels, value in own]


def _label(service: str) -> str:
    return f'service="{_escaped(service)}"'


def _escaped(text: str) -> str:
    """A label's value: the format has escapes for these three."""
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _write(path: str, text: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o644), "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o644)  # the collector is another user, whatever our umask is
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
