"""What a run amounts to: its exit code, its warnings, who had which listener."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from synplug.errors import SynplugError
from synplug.handover.tools import ProcessTable
from synplug.model import Endpoint, HoldResult, HoldSpec, Listener, OnFull, Outcome, OwnedListener

EXIT_DEADLINE = 124
_SIGNAL_BASE = 128


def exit_code(
    *, status: int | None, error: SynplugError | None, outcome: Outcome, undelivered: int | None
) -> int:
    """The exit code: the command's own status before anything else, if it is not 0.

    :param status: of the command, as a shell has it; None when it did not run.
    :param undelivered: a signal that came for us when there was no command to pass it on to.
    """
    if status:
        return status
    if error is not None:
        return error.exit_code
    if outcome is Outcome.DEADLINE:
        return EXIT_DEADLINE
    if outcome is Outcome.INTERRUPTED and undelivered is not None:
        return _SIGNAL_BASE + undelivered
    return 0


def overflow_warnings(result: HoldResult | None, spec: HoldSpec) -> tuple[str, ...]:
    """What became of SYNs that did not fit, if there were any."""
    if result is None:
        return ()
    became = {
        OnFull.DROP: "were dropped, and their clients tried again",
        OnFull.PASS: "were passed, and may have been refused",
    }[spec.on_full]
    beyond = {
        "--max-held": result.counts.overflowed,
        "--max-held-per-source": result.counts.over_source,
    }
    return tuple(
        f"{number} SYNs beyond {option} {became}" for option, number in beyond.items() if number
    )


def unserved_warnings(endpoints: Iterable[Endpoint], listeners: Collection[Listener]) -> list[str]:
    """Endpoints that nobody serves in the end: a slip, or a service that came up half."""
    return [
        f"nobody listens on {endpoint} after the command"
        for endpoint in dict.fromkeys(endpoints)
        if not any(listener.serves(endpoint) for listener in listeners)
    ]


def with_owners(
    listeners: Iterable[Listener], processes: ProcessTable
) -> tuple[OwnedListener, ...]:
    """The listeners with the processes that have them open."""
    found = list(listeners)
    owners = processes.owners({listener.inode for listener in found})
    return tuple(
        OwnedListener(listener=listener, owners=tuple(owners[listener.inode])) for listener in found
    )
