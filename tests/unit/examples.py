"""A report in which every field has a value: the example of docs/report.md."""

from __future__ import annotations

from ipaddress import ip_address

from synplug.model import (
    Endpoint,
    HoldCounts,
    HoldResult,
    Listener,
    Outcome,
    OwnedListener,
    Process,
    ReleaseReason,
    Report,
)
from synplug.steps import CommandResult, DrainResult, Phase


def _listener(inode: int, pid: int) -> OwnedListener:
    return OwnedListener(
        listener=Listener(
            address=ip_address("0.0.0.0"),
            port=8080,
            inode=inode,
            cookie=inode,
            backlog=511,
            accept_queue=0,
        ),
        owners=(Process(pid=pid, name="nginx"),),
    )


def example_report() -> Report:
    """A restart that went well, with some things to say."""
    return Report(
        run_id="4afe7dc5",
        outcome=Outcome.READY,
        exit_code=0,
        endpoints=(Endpoint(port=8080),),
        command=CommandResult(argv=("systemctl", "restart", "app"), ran=True, pid=4711, status=0),
        started_at=1764000000.25,
        hold=HoldResult(
            backend="nfqueue",
            reason=ReleaseReason.ASKED,
            held_at_s=100.0,
            opened_at_s=100.03125,
            counts=HoldCounts(
                held=891,
                held_local=2,
                released=891,
                duplicates=3,
                superseded=1,
                let_through=1,
                peak=891,
            ),
            release_steps=2,
            release_limit="backlog of 511",
        ),
        drain=DrainResult(empty=False, left=1),
        phases=(
            Phase(name="arm", start_s=0.0, duration_s=0.02),
            Phase(name="hold", start_s=0.02, duration_s=0.03125),
        ),
        old_listeners=(_listener(31_000, 4600),),
        new_listeners=(_listener(31_500, 4720),),
        readiness="replaced",
        gap_s=0.013,
        warnings=("1 connections were still in the old listener's queues",),
    )
