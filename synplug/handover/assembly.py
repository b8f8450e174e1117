"""The real tools of a sequence."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from synplug.handover import process
from synplug.handover.plan import ReadyPlan
from synplug.handover.tools import Command, Probe, Signals, SocketTable, Tools
from synplug.holding.handle import KeptHold
from synplug.holding.locks import RunLocks
from synplug.holding.migration import Migration
from synplug.holding.recover import recover
from synplug.kernel import procfs
from synplug.kernel.sock_diag import SocketDiagnostics, diagnostics_in
from synplug.model import HoldSpec


def real_tools(
    spec: HoldSpec,
    *,
    signals: Signals,
    command_stdout: int | None = None,
    sockets: SocketTable | None = None,
    observe: Callable[[str], None] | None = None,
) -> Tools:
    """The tools that act on this machine, in the calling thread's network namespace.

    :param command_stdout: a descriptor that becomes the command's standard output; None: ours.
    :param sockets: the kernel's sockets, already opened; None: open them anew.
    :param observe: is told of each step as it begins.
    """
    locks = RunLocks(spec.endpoints, spec.name)
    return Tools(
        clock=time.monotonic,
        wall=time.time,
        sockets=SocketDiagnostics() if sockets is None else sockets,
        sockets_in=diagnostics_in,
        processes=procfs,
        signals=signals,
        locks=locks,
        recover=_recover,
        hold=partial(KeptHold, locks=locks),
        resolve=process.resolve,
        spawn=partial(process.SpawnedCommand, stdout=command_stdout),
        spawn_captured=partial(process.SpawnedCommand, captured=True),
        spawn_apart=partial(process.SpawnedCommand, stdout=command_stdout, session=True),
        post=_post,
        send_to=process.send_to,
        reap=process.reap,
        migration=Migration,
        probe=_probe,
        observe=observe,
    )


def _recover() -> list[str]:
    """Clean up after dead runs, in words."""
    return [
        f"not cleaned up after run {dead.run_id}: {dead.error}"
        if dead.error
        else f"run {dead.run_id} had died; cleaned up after it"
        for dead in recover()
    ]


def _probe(plan: ReadyPlan, mark: int) -> Probe | None:
    """The readiness probe that was asked for; importing it costs, so only then."""
    if not (plan.http or plan.command):
        return None
    from synplug.handover.probes import ProbeRunner

    return ProbeRunner(plan, mark)


def _post(url: str, mark: int) -> Command:
    """A POST, of a swap alone."""
    from synplug.handover.post import Post

    return Post(url, mark)
