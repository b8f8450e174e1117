"""What must be true of a run with a plug to which the system has refused one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.integration.fault_oracle import names_the_errno
from tests.integration.fault_points import Fault, Point

#: Where a refused call has consequences of its own.
_REPORT, _SPAWN, _WATCHER = "json_output.write", "process._spawn", "watcher._watch"
#: Where a case strikes nothing, since who comes there makes no call any more that is refused so.
_PASSES_BY = (
    # From the listeners' last look on all goes through sockets that are open since it was armed;
    # what is done with files is to remove them.
    (
        (Fault.ENOSPC, Fault.EMFILE),
        (
            *("SocketDiagnostics.listeners", "Backend.waiting", "Backend.open"),
            *("Backend.confirm_empty", "Deadman.stop", "Backend.counts", "Audience.close_door"),
            *("Backend.remove", "Ledger.remove", "Backend.close", "keeper.has_ended"),
            *("Deadman.set opening", "Deadman.set open"),
        ),
    ),
    # Before it a socket is made, and /proc/sys is read: nothing that takes room.
    (
        (Fault.ENOSPC,),
        ("Fitting.hear", "SocketDiagnostics.__init__", "paced.syn_limit", "paced.sysctl"),
    ),
    # The last that the keeper does: to close a socket is nothing that is asked of the kernel.
    (
        (Fault.EPERM, Fault.ENOBUFS),
        tuple(
            f"{answer}{name}.close after Backend.remove"
            for name in ("TrafficControl", "Changes")
            for answer in ("", "answer ")
        ),
    ),
)


def passes_by(point: Point, fault: Fault) -> bool:
    """Whether it strikes nothing; where that is so, it must be so."""
    return any(fault in faults and point.name in names for faults, names in _PASSES_BY)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is to be seen of one."""

    status: int
    facts: list[str]
    said: str
    report: dict[str, Any] | None
    ran: bool

    @property
    def refusals(self) -> list[tuple[str, str]]:
        """The calls that were refused, and where they were made: one in each process."""
        words = [fact.split() for fact in self.facts]
        return [(fact[1], fact[2]) for fact in words if fact[0] == "refused"]

    @property
    def places(self) -> set[str]:
        """Where."""
        return {place for _, place in self.refusals}


def lies(run: Run, point: Point, fault: Fault) -> list[str]:
    """What is not true of what it has told."""
    is_struck = bool(run.refusals)
    rules = {
        "it struck, where it can": is_struck != passes_by(point, fault),
        "no traceback": "Traceback" not in run.said,
        "without a fault it is ready": is_struck or run.status == 0,
        "a report, unless it was what was refused": (run.report is None) == (_REPORT in run.places),
        **(_of_no_report(run, fault) if run.report is None else _of(run, run.report, fault)),
    }
    return [rule for rule, is_so in rules.items() if not is_so]


def _of_no_report(run: Run, fault: Fault) -> dict[str, bool]:
    """People are told what has failed; where it is all that has, the command ran."""
    lines = [line for line in run.said.splitlines() if "JSON report could not be" in line]
    return {
        "that there is no report is told, and why": names_the_errno(fault, " ".join(lines)),
        "it is an error": run.status == 125,
        "the command ran, unless something else was refused": run.ran == (run.places == {_REPORT}),
    }


def _of(run: Run, report: dict[str, Any], fault: Fault) -> dict[str, bool]:
    error, outcome = report["error"], report["outcome"]
    told = " ".join((error, report["remedy"], *report["warnings"]))
    return {
        "the exit code is the report's": run.status == report["exit_code"],
        "ready and 0 go together": (outcome == "ready") == (run.status == 0),
        "an error is named, and only then": bool(error) == (outcome == "error"),
        "an error is synplug's own, or of who cannot start the command": not run.status
        or run.status == (126 if _SPAWN in run.places else 125),
        "the fault is named": not error
        or names_the_errno(fault, told)
        or (_WATCHER in run.places and "the watcher of the keeper ended" in error),
        "people are told the same": error in run.said,
        "the command ran if it says so": report["command"]["ran"] == run.ran,
    }
