"""What must be true of every case of the fault matrix, whatever struck whom."""

from __future__ import annotations

import os
import re
import signal
from typing import Any

from synplug.model import BackendName, Outcome
from tests.integration.fault_cases import Case
from tests.integration.fault_clients import outages
from tests.integration.fault_points import (
    AFTER_THE_RELEASE,
    AT_THE_RELEASE_OF_A_PLUG,
    LAST_CALLS,
    LAST_CALLS_OF_A_PLUG,
    POINTS,
    Fault,
    Party,
)
from tests.integration.fault_run import (
    FREE_AFTER_S,
    STOPPED_ON_S,
    Observation,
    has_struck,
)

#: What is answered at once takes less.
_AT_ONCE_S = 0.5
#: Where the service has a small backlog, it may overflow when all come again who were dropped.
_AT_ONCE_OR_AGAIN_S = 1.5
#: What ``synplug recover`` is for; nothing of it holds.
_LEFT_OVER = r"\+ (file|iptables-legacy|ip6tables-legacy): "
_FILES = r"\+ file: "
_LOCK = r"\+ file: .*/port-8080-[^/]+\.lock$"
_NOTHING = r"$."
_SHELL = 128  # and the number of the signal that ended it
_TERMINATED = _SHELL + signal.SIGTERM


def violations(case: Case, seen: Observation) -> list[str]:
    """What is wrong; empty: nothing is."""
    return [*_of_clients(case, seen), *_of_what_is_left(case, seen), *_of_the_account(case, seen)]


def _of_clients(case: Case, seen: Observation) -> list[str]:
    """Nobody meets a black hole, and new connections work a second after the deadline."""
    found = [
        f"connect begun at {attempt.began_s - seen.began_s:.3f}: {attempt.answer}"
        for attempt in seen.attempts
        if not attempt.is_answered
    ]
    spans = [(seen.ended_s, float("inf"))]
    if seen.fault_s is not None and case.fault is Fault.SIGSTOP:
        # Whatever was held then; what goes on later may hold anew.
        free_s = seen.fault_s + seen.max_hold_s + FREE_AFTER_S + seen.ending_s
        spans.append((free_s, free_s + STOPPED_ON_S))
    point = POINTS.get(case.point)
    is_small = point is not None and "--backlog" in point.service_options
    at_once_s = (_AT_ONCE_OR_AGAIN_S if is_small else _AT_ONCE_S) + seen.slow_s
    for from_s, to_s in spans:
        came = [attempt for attempt in seen.attempts if from_s <= attempt.began_s < to_s]
        found += [
            f"a connection begun {attempt.began_s - from_s:.3f} s after all must work took "
            f"{attempt.took_s:.3f} s"
            for attempt in came
            if attempt.took_s > at_once_s
        ]
        if not came:
            found.append("no client came after all must work")
    found += [
        f"new connections did not work from {from_s - seen.began_s:.3f} to "
        f"{to_s - seen.began_s:.3f}, {to_s - from_s:.3f} s; the deadline is {seen.max_hold_s:g} s"
        for from_s, to_s in outages(seen.attempts, at_once_s)
        if to_s - from_s > seen.max_hold_s + FREE_AFTER_S + seen.ending_s
    ]
    if seen.serves and seen.attempts[-1].answer != "connected":
        found.append(f"the service listens, but the last client was {seen.attempts[-1].answer}")
    return found


def _of_what_is_left(case: Case, seen: Observation) -> list[str]:
    """Nothing; after a run that was killed perhaps what ``synplug recover`` clears."""
    found = [f"not even after recover as before: {line}" for line in seen.left_after_recover]
    allowed = _may_stay(case)
    if "synplug recover" in seen.stderr:
        allowed = _LEFT_OVER
    found += [f"not as before: {line}" for line in seen.left if not re.match(allowed, line)]
    return found


def _may_stay(case: Case) -> str:
    """What a run leaves that was killed, and had no keeper (any more) to clean up after it."""
    point = POINTS.get(case.point)
    # The plug's watcher removes the entry, too; a run that is killed may have its locks for longer.
    files = _LOCK if case.backend is BackendName.PLUG else _FILES
    if point is not None and point.is_detached and case.fault in (Fault.SIGKILL, Fault.SIGSTOP):
        return files  # nobody is there any more who could; a stopped one is killed
    if case.fault is not Fault.SIGKILL or case.party in (Party.KEEPER, Party.COMMAND):
        return _NOTHING
    if case.party is Party.BOTH:  # the kernel, or the watcher, cleans up
        return files
    if not POINTS[case.point].keeper_lives:
        return _LEFT_OVER
    is_late = case.point in AFTER_THE_RELEASE
    if case.backend is BackendName.PLUG:
        is_late |= case.point in AT_THE_RELEASE_OF_A_PLUG
    return _LOCK if is_late else _NOTHING


def _of_the_account(case: Case, seen: Observation) -> list[str]:
    """The exit code and the report tell the truth."""
    found = []
    if "Traceback" in seen.stderr:
        found.append(f"a traceback: {seen.stderr}")
    point = POINTS.get(case.point)
    if point is not None and point.is_detached:
        return found + _of_a_detached_hold(case, seen)
    kills_run = case.party in (Party.ORCHESTRATOR, Party.BOTH) and case.fault is Fault.SIGKILL
    if kills_run and seen.fault_s is not None:
        if seen.status != -signal.SIGKILL:
            found.append(f"killed, but it ended with {seen.status}")
        return found
    if seen.report is None:
        # Of its own failure the report can say nothing; people are told all the same.
        says = "JSON report could not be written" in seen.stderr or (
            case.point == "report" and _names_the_fault(case, seen, seen.stderr)
        )
        if not says or not seen.status:
            found.append(f"no report; status {seen.status}: {seen.stderr}")
        return found
    return found + _of_the_report(case, seen, seen.report)


def _of_a_detached_hold(case: Case, seen: Observation) -> list[str]:
    """Whoever asked last for it, ``hold`` or ``release``, tells how it is."""
    lost = sum(attempt.is_lost for attempt in seen.attempts)
    report = seen.report or {"outcome": "", "error": "", "exit_code": seen.status}
    is_ready = report["outcome"] == "ready"
    is_killed = seen.status in (_SHELL + signal.SIGKILL, _SHELL + signal.SIGTERM)
    is_killed &= case.fault.is_signal and case.party is not Party.KEEPER
    rules = {
        "the exit code is the report's": seen.status == report["exit_code"],
        "0 and ready go together": (seen.status == 0) == is_ready,
        "without a report it is told": bool(seen.report)
        or "synplug: " in seen.stderr
        or (is_killed and not seen.command_began),
        "without a report a hold is not, or not any more": bool(seen.report)
        or is_killed
        or seen.status in (3, 124, 125),
        "the command ran where it was held, only": seen.command_done == seen.command_began,
        "ready, so nobody was lost, and it serves": not is_ready
        or (not lost and seen.serves and seen.command_done),
        "an error is named, and only then": bool(report["error"])
        == (report["outcome"] == Outcome.ERROR.value),
        "nothing struck, so it is ready": has_struck(case, seen) or is_ready,
        "it struck": has_struck(case, seen) or _may_pass_by(case),
    }
    what = f"status {seen.status}, report {seen.report}"
    return [f"not true: {rule} ({what}, {lost} lost)" for rule, ok in rules.items() if not ok]


def _may_pass_by(case: Case) -> bool:
    calls = LAST_CALLS.get(case.fault, ())
    if case.backend is BackendName.PLUG:
        calls += LAST_CALLS_OF_A_PLUG.get(case.fault, ())
    return case.point.removesuffix(" alone") in calls


def _of_the_report(case: Case, seen: Observation, report: dict[str, Any]) -> list[str]:
    lost = sum(attempt.is_lost for attempt in seen.attempts)
    outcome, error, status = report["outcome"], report["error"], report["command"]["status"]
    what = f"outcome {outcome}, status {seen.status}, error {error!r}"
    rules = {
        "the exit code is the report's": seen.status == report["exit_code"],
        "ready and 0 go together": (outcome == "ready") <= (seen.status == 0),
        "0 is ready, or a signal survived": seen.status != 0
        or outcome == "ready"
        or (outcome == "interrupted" and case.fault is Fault.SIGTERM),
        "ready, so nobody was lost": outcome != "ready" or not lost,
        "ready, so it serves": outcome != "ready" or (seen.serves and seen.command_done),
        "nothing struck, so it is ready": has_struck(case, seen) or outcome == "ready",
        "it struck": has_struck(case, seen) or _may_pass_by(case),
        "an error is named, and only then": bool(error) == (outcome == "error"),
        "people are told the same": error in seen.stderr,
        "the command ran if it says so": report["command"]["ran"] == seen.command_began
        or (status is not None and status > 128),  # it was ended at its very start
        "the command's status": status is None
        or (status == 0) == seen.command_done
        or (seen.command_done and status == _TERMINATED and case.fault is Fault.SIGTERM),
        "a command that ran has a status": (status is not None) == report["command"]["ran"],
        "125, or the command's own status": outcome != "error"
        or seen.status in (125, status or 126),
        "the fault is named": not error
        or _names_the_fault(case, seen, " ".join([error, report["remedy"], *report["warnings"]])),
    }
    return [f"not true: {rule} ({what}, {lost} lost)" for rule, ok in rules.items() if not ok]


def _names_the_fault(case: Case, seen: Observation, said: str) -> bool:
    if case.fault is Fault.EXCEPTION and case.party is not Party.COMMAND:
        return "an injected fault" in said
    if not seen.refused:
        return True
    if case.point == "watcher.start" and "the watcher of the keeper ended" in said:
        return True  # what refused it cannot be told: that was its only line
    return names_the_errno(case.fault, said)


def names_the_errno(fault: Fault, said: str) -> bool:
    """Whether an account says what the system has answered."""
    words = [os.strerror(fault.errno), fault.value]
    if fault is Fault.EPERM:  # in words of what is missing
        words += ["not permitted", "as root"]
    return any(word in said for word in words)
