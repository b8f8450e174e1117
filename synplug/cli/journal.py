"""What happened, for logs: JSON lines in a file, the journal's fields, or syslog's line."""

from __future__ import annotations

import json
import os
import shlex
import socket
import struct
from typing import Any, Protocol

from synplug.cli.render import plain
from synplug.cli.report_json import report_dict
from synplug.errors import UsageError
from synplug.model import Report

SCHEMA = "synplug.event/1"
_JOURNAL = "/run/systemd/journal/socket"
_SYSLOG = "/dev/log"
#: LOG_DAEMON, and the levels, of syslog(3).
_FACILITY, _ERROR, _WARNING, _INFO = 3 << 3, 3, 4, 6
_TIMEOUT_S = 1.0


class Log(Protocol):
    """Where events go."""

    def write(self, event: dict[str, Any]) -> None:
        """Write one.

        :raises OSError: it cannot be written.
        """

    def close(self) -> None:
        """Be done with it."""


def open_log(name: str) -> Log:
    """The log of that name, there and then, so that it fails before anything is held.

    :param name: ``journal``, ``syslog``, or a file.
    :raises UsageError: it is not there.
    """
    try:
        if name == "journal":
            return _Journal(_connected(_JOURNAL))
        if name == "syslog":
            return _Syslog(_connected(_SYSLOG))
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        return _Lines(os.open(name, flags, 0o640))
    except OSError as error:
        raise UsageError(f"--log {name}: {error.strerror}") from error


def started(run_id: str, service: str, endpoints: list[str], *, time_s: float) -> dict[str, Any]:
    """The event before anything is done."""
    return {
        "schema": SCHEMA,
        "time": time_s,
        "event": "started",
        "run_id": run_id,
        "service": service,
        "endpoints": endpoints,
    }


def finished(report: Report, service: str, *, time_s: float) -> dict[str, Any]:
    """The event with the whole account."""
    return {
        "schema": SCHEMA,
        "time": time_s,
        "event": "finished",
        "run_id": report.run_id,
        "service": service,
        "endpoints": [str(endpoint) for endpoint in report.endpoints],
        "report": report_dict(report),
    }


class _Lines:
    """A file, one JSON object a line; each is one write, so that runs do not mix."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, event: dict[str, Any]) -> None:
        """One line."""
        line = (json.dumps(event) + "\n").encode()
        if os.write(self._descriptor, line) != len(line):
            raise OSError("the line was cut off")

    def close(self) -> None:
        os.close(self._descriptor)


class _Syslog:
    """The socket of syslog(3), in the form of RFC 3164."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    def write(self, event: dict[str, Any]) -> None:
        """One line for people."""
        line = f"<{_FACILITY | _level(event)}>synplug[{os.getpid()}]: {sentence(event)}"
        self._socket.send(line.encode())

    def close(self) -> None:
        self._socket.close()


class _Journal:
    """The journal's own protocol: fields to look for, as in ``journalctl SYNPLUG_SERVICE=web``.

    https://systemd.io/JOURNAL_NATIVE_PROTOCOL/
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    def write(self, event: dict[str, Any]) -> None:
        """One entry."""
        report = event.get("report") or {}
        fields = {
            "MESSAGE": sentence(event),
            "PRIORITY": str(_level(event)),
            "SYSLOG_IDENTIFIER": "synplug",
            "SYNPLUG_EVENT": event["event"],
            "SYNPLUG_RUN_ID": event["run_id"],
            "SYNPLUG_SERVICE": event["service"],
            "SYNPLUG_ENDPOINTS": ",".join(event["endpoints"]),
        }
        if report:
            hold = report["hold"] or {"held": 0, "released": 0, "duration_s": 0.0}
            fields |= {
                "SYNPLUG_OUTCOME": report["outcome"],
                "SYNPLUG_EXIT_CODE": str(report["exit_code"]),
                "SYNPLUG_HELD": str(hold["held"]),
                "SYNPLUG_RELEASED": str(hold["released"]),
                "SYNPLUG_HOLD_SECONDS": f"{hold['duration_s']:.6f}",
                "SYNPLUG_REPORT": json.dumps(report),
            }
        self._socket.send(b"".join(_field(name, text) for name, text in fields.items()))

    def close(self) -> None:
        self._socket.close()


def _field(name: str, text: str) -> bytes:
    """A field; one with a line break is sent with its length."""
    value = text.encode(errors="backslashreplace")  # a command line may have any bytes
    if b"\n" not in value:
        return name.encode() + b"=" + value + b"\n"
    return name.encode() + b"\n" + struct.pack("<Q", len(value)) + value + b"\n"


def sentence(event: dict[str, Any]) -> str:
    """An event in one line, of what can be printed alone."""
    who = event["service"] or ", ".join(event["endpoints"])
    if event["event"] == "started":
        return plain(f"{who}: run {event['run_id']} begins")
    report = event["report"]
    command = shlex.join(report["command"]["argv"])
    who = who or command  # it failed before it knew more
    parts = [f"{report['outcome']}, exit {report['exit_code']} (run {report['run_id']})"]
    if hold := report["hold"]:
        milliseconds = f"{hold['duration_s'] * 1000:.0f} ms"
        parts.append(f"{hold['held']} connections waited, {milliseconds}")
    elif command:  # a release that did not find the hold knows nothing of it
        parts.append("nothing was held")
    parts.append(report["error"] or "; ".join(report["warnings"]))
    text = "; ".join(filter(None, parts))
    return plain(" ".join((f"{who}: {text}" if who else text).split()))


def _level(event: dict[str, Any]) -> int:
    report = event.get("report")
    if not report:
        return _INFO
    return _ERROR if report["exit_code"] else _WARNING if report["warnings"] else _INFO


def _connected(path: str) -> socket.socket:
    """A datagram socket to a log. A log that does not read holds nobody up for long."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        made.settimeout(_TIMEOUT_S)
        made.connect(path)
    except OSError:
        made.close()
        raise
    return made
