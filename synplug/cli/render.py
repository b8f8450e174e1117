"""Results for people: plain text, nothing that a terminal would obey."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable

from synplug.fate import Fate, OldGeneration
from synplug.model import BackendName, HoldSpec, Outcome, OwnedListener, ReleaseReason, Report

_HEADLINES = {
    Outcome.READY: "restarted",
    Outcome.COMMAND_FAILED: "the command failed",
    Outcome.DEADLINE: "released before the service was ready",
    Outcome.INTERRUPTED: "interrupted, and released",
    Outcome.ERROR: "failed",
}
#: Of a swap, as long as the old generation serves.
_NOT_SWAPPED = {
    Outcome.COMMAND_FAILED: "the new generation failed",
    Outcome.DEADLINE: "the new generation was not ready in time",
    Outcome.INTERRUPTED: "interrupted, not swapped",
}


def complain(text: str) -> None:
    """Print to standard error; to nowhere when our caller has closed it."""
    if sys.stderr is None:
        return
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        # Nobody reads it: that must not change what is done, or said. What is left in its buffer
        # would make the interpreter's last flush fail, and its exit status 120.
        sys.stderr = None


def release_words(spec: HoldSpec) -> str:
    """How it will let go, for a plan; a plug opens as a whole."""
    return "at once" if spec.backend is BackendName.PLUG else spec.release.value


def plain(text: str) -> str:
    """Text of unknown origin, with what is not printable escaped; line breaks stay."""
    return "".join(
        letter if letter.isprintable() or letter == "\n" else f"\\x{ord(letter):02x}"
        for letter in text
    )


def milliseconds(seconds: float) -> str:
    """A duration as people read it."""
    return f"{round(seconds, 2):g} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def report_text(report: Report, *, verbose: bool) -> str:
    """A run, as a short table."""
    rows = [("endpoints", ", ".join(map(str, report.endpoints)))]
    rows += _hold_rows(report)
    if report.drain is not None and (verbose or not (report.drain.empty and report.drain.quiet)):
        rows.append(("drain", _drain(report)))
    if report.gap_s is not None:
        rows.append(("gap", f"{milliseconds(report.gap_s)} without a listener"))
    if report.command.argv:
        rows.append(("command", _command(report)))
    if report.old_generation is not None:
        rows.append(("old", _old_generation(report.old_generation)))
    if verbose:
        rows.append(("old", _listeners(report.old_listeners)))
        rows.append(("new", _listeners(report.new_listeners)))
        rows += [
            (
                "phase",
                f"{phase.name:<9} at {milliseconds(phase.start_s):>7}, "
                f"took {milliseconds(phase.duration_s)}",
            )
            for phase in report.phases
        ]
    rows += [("warning", warning) for warning in report.warnings]
    if report.error:
        rows.append(("error", report.error))
    if report.remedy:
        rows.append(("remedy", report.remedy))
    headline = _headline(report)
    head = f"synplug: {headline}, exit {report.exit_code} (run {report.run_id})"
    return "\n".join([head, *(f"  {name:<10}{one_line(value)}" for name, value in rows)])


def _headline(report: Report) -> str:
    before = report.old_generation
    has_failed = report.outcome is Outcome.COMMAND_FAILED
    if before is not None and (has_failed or before.fate is Fate.SERVING):
        return _NOT_SWAPPED.get(report.outcome, _HEADLINES[report.outcome])
    if report.outcome is not Outcome.READY:
        return _HEADLINES[report.outcome]
    old = {owned.listener.cookie for owned in report.old_listeners}
    new = {owned.listener.cookie for owned in report.new_listeners}
    if before is not None:
        return "swapped" + (", with tcp_migrate_req" if report.migrated else "")
    if report.readiness == "settled" and old == new:
        return "done, the listeners are the same as before"
    if not report.command.argv:
        return "released"
    if report.hold is None:
        return "done, without a hold"
    is_first = report.readiness == "replaced" and not report.old_listeners
    return "started" if is_first else _HEADLINES[Outcome.READY]


def one_line(text: str) -> str:
    """Text of unknown origin that must not look like a row of its own."""
    return plain(text).replace("\n", "\\x0a")


def _hold_rows(report: Report) -> list[tuple[str, str]]:
    hold = report.hold
    if hold is None:
        return [("held", "nothing")]
    if hold.reason is ReleaseReason.KEEPER_LOST:
        return [("held", f"not known: the keeper was lost, {_fate_of_held(hold.backend)}")]
    if hold.reason is ReleaseReason.KEEPER_STUCK:
        return [("held", "not known: the keeper does not end, and holds until it does")]
    counts = hold.counts
    words = [
        f"{counts.held} connections waited, {counts.released} released",
        *(
            f"{number} {what}"
            for number, what in (
                (counts.duplicates, "retransmits dropped"),
                (counts.superseded, "superseded"),
                (counts.let_through, "let through"),
                (counts.overflowed, "beyond --max-held"),
                (counts.over_source, "beyond --max-held-per-source"),
                (counts.lost, "lost"),
            )
            if number
        ),
    ]
    took = milliseconds(hold.opened_at_s - hold.held_at_s)
    rows = [("held", f"{', '.join(words)}; for {took} by {hold.backend}")]
    if hold.release_steps:
        rows.append(("release", f"in {hold.release_steps} steps: {hold.release_limit}"))
    if hold.reason is not ReleaseReason.ASKED:
        rows.append(("ended by", hold.reason.value))
    return rows


def _fate_of_held(backend: str) -> str:
    """What became of those that waited when their keeper was lost."""
    if backend == BackendName.PLUG.value:  # its device stays, and is opened
        return "and what waits in its plug is let go by whoever cleans up after it"
    return "and what it held with it; those clients send their SYN again"


def _drain(report: Report) -> str:
    drain = report.drain
    assert drain is not None
    queues = "queues empty" if drain.empty else f"{drain.left} left in the old queues"
    busy = "nothing in flight" if drain.quiet else f"{drain.busy} connections still busy"
    return f"{queues}, {busy}"


def _command(report: Report) -> str:
    command = report.command
    if not command.ran:
        return f"not run: {shlex.join(command.argv)}"
    status = "still running" if command.status is None else f"status {command.status}"
    took = [phase.duration_s for phase in report.phases if phase.name == "command"]
    return (
        f"{status}{f' after {milliseconds(took[0])}' if took else ''}: {shlex.join(command.argv)}"
    )


def _old_generation(old: OldGeneration) -> str:
    took = "" if old.took_s is None else f" after {milliseconds(old.took_s)}"
    fate = {
        Fate.SERVING: "serves on",
        Fate.FINISHING: "has not ended",
        Fate.ENDED: f"ended{took}",
        Fate.TERMINATED: f"ended by SIGTERM{took}",
        Fate.KILLED: f"ended by SIGKILL{took}",
    }[old.fate]
    return f"process {old.pid} {fate}" + (f"; stopped by {old.stop}" if old.stop else "")


def _listeners(listeners: Iterable[OwnedListener]) -> str:
    found = [
        f"{owned.listener} {', '.join(f'{owner.name}[{owner.pid}]' for owner in owned.owners)}"
        for owned in listeners
    ]
    return "; ".join(found) or "none"
