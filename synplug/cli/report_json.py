"""Results for machines. The form is versioned and described in docs/report.md."""

from __future__ import annotations

import json
from typing import Any

from synplug.fate import OldGeneration
from synplug.model import HoldResult, OwnedListener, Report
from synplug.steps import CommandResult, DrainResult, Phase

SCHEMA = "synplug.report/1"


def report_dict(report: Report) -> dict[str, Any]:
    """A report as plain values."""
    return {
        "schema": SCHEMA,
        "run_id": report.run_id,
        "outcome": report.outcome.value,
        "exit_code": report.exit_code,
        "started_at": report.started_at,
        "endpoints": [str(endpoint) for endpoint in report.endpoints],
        "command": _command(report.command),
        "hold": None if report.hold is None else _hold(report.hold),
        "drain": None if report.drain is None else _drain(report.drain),
        "readiness": report.readiness,
        "gap_s": report.gap_s,
        "old_generation": _old_generation(report.old_generation),
        "migrated": report.migrated,
        "phases": [_phase(phase) for phase in report.phases],
        "old_listeners": [_listener(owned) for owned in report.old_listeners],
        "new_listeners": [_listener(owned) for owned in report.new_listeners],
        "warnings": list(report.warnings),
        "error": report.error,
        "remedy": report.remedy,
    }


def _command(command: CommandResult) -> dict[str, Any]:
    return {
        "argv": list(command.argv),
        "ran": command.ran,
        "pid": command.pid,
        "status": command.status,
    }


def _hold(hold: HoldResult) -> dict[str, Any]:
    return {
        "backend": hold.backend,
        "reason": hold.reason.value,
        "duration_s": hold.opened_at_s - hold.held_at_s,
        "held": hold.counts.held,
        "held_local": hold.counts.held_local,
        "released": hold.counts.released,
        "duplicates": hold.counts.duplicates,
        "superseded": hold.counts.superseded,
        "let_through": hold.counts.let_through,
        "overflowed": hold.counts.overflowed,
        "over_source": hold.counts.over_source,
        "lost": hold.counts.lost,
        "peak": hold.counts.peak,
        "release_steps": hold.release_steps,
        "release_limit": hold.release_limit,
    }


def _drain(drain: DrainResult) -> dict[str, Any]:
    return {"empty": drain.empty, "left": drain.left, "quiet": drain.quiet, "busy": drain.busy}


def _old_generation(old: OldGeneration | None) -> dict[str, Any] | None:
    if old is None:
        return None
    return {"pid": old.pid, "fate": old.fate.value, "stop": old.stop, "took_s": old.took_s}


def _phase(phase: Phase) -> dict[str, Any]:
    return {"name": phase.name, "start_s": phase.start_s, "duration_s": phase.duration_s}


def _listener(owned: OwnedListener) -> dict[str, Any]:
    return {
        "address": str(owned.listener.address),
        "port": owned.listener.port,
        "inode": owned.listener.inode,
        "backlog": owned.listener.backlog,
        "accept_queue": owned.listener.accept_queue,
        "owners": [{"pid": owner.pid, "name": owner.name} for owner in owned.owners],
    }


def report_json(report: Report) -> str:
    """A report as one line of JSON."""
    return json.dumps(report_dict(report)) + "\n"
