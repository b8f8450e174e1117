"""Options as the values that requests are made of, for all verbs alike."""

from __future__ import annotations

import argparse
import signal

from synplug.handover.plan import DrainPlan, RetirePlan, StopMethod
from synplug.handover.request import HoldOptions
from synplug.handover.target import TargetRequest
from synplug.model import BackendName, Hook, OnDrainTimeout, OnFull, ReleaseMode
from synplug.record import replace


def target_request(options: argparse.Namespace, command: tuple[str, ...] = ()) -> TargetRequest:
    """Which endpoints are meant."""
    return TargetRequest(
        endpoints=tuple(options.endpoints),
        units=tuple(options.units),
        pids=tuple(options.pids),
        pidfiles=tuple(options.pidfiles),
        argv=command,
    )


def hold_options(options: argparse.Namespace) -> HoldOptions:
    """How to hold."""
    return HoldOptions(
        max_hold_s=options.max_hold,
        max_held=options.max_held,
        max_held_per_source=options.max_held_per_source,
        on_full=OnFull(options.on_full),
        release=ReleaseMode(options.release),
        backend=BackendName(options.backend),
        devices=tuple(options.dev),
        loopback_egress=options.loopback_egress,
        lock_timeout_s=options.lock_timeout,
    )


def far_hold_options(options: argparse.Namespace) -> HoldOptions:
    """The same of a verb that has ``--hook``."""
    return replace(hold_options(options), hook=Hook(options.hook))


def drain_plan(options: argparse.Namespace) -> DrainPlan:
    """How long to wait for the old listener, and where it is."""
    return DrainPlan(
        timeout_s=options.drain_timeout,
        on_timeout=OnDrainTimeout(options.on_drain_timeout),
        quiesce_s=options.quiesce,
        netns=options.drain_netns,
    )


def closing_plans(options: argparse.Namespace) -> tuple[DrainPlan, StopMethod, RetirePlan]:
    """How the old generation leaves.

    Who names the way in which it is stopped knows whether that ends its requests: they are
    waited for by default only where SIGTERM does it.
    """
    is_named = options.stop_signal is not None or bool(options.stop_cmd or options.stop_post)
    quiesce_s = options.quiesce if options.quiesce is not None else (0.0 if is_named else 1.0)
    drain = DrainPlan(
        timeout_s=options.drain_timeout,
        on_timeout=OnDrainTimeout(options.on_drain_timeout),
        quiesce_s=quiesce_s,
    )
    stop = StopMethod(
        number=options.stop_signal or signal.SIGTERM,
        command=options.stop_cmd,
        post=options.stop_post or "",
        timeout_s=options.stop_timeout,
    )
    return drain, stop, RetirePlan(linger_s=options.linger, kill_after_s=options.kill_after)


def check_url(url: str) -> None:
    """Look at the URL of a probe, if there is one, before anything is done.

    :raises UsageError: it is none.
    """
    if url:
        from synplug.handover.probes import parse_url

        parse_url(url)
