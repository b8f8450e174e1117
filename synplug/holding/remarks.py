"""What an operator should know of a hold that went on all the same."""

from __future__ import annotations

from collections.abc import Collection

from synplug.model import Listener


def loss_remark(lost: int) -> tuple[str, ...]:
    """On SYNs that the kernel dropped from the hold."""
    if not lost:
        return ()
    return (
        f"{lost} held SYNs were dropped by somebody else, who removed a netfilter hook or a "
        "device; their clients retransmit",
    )


def burst_remark(released: int, listeners: Collection[Listener]) -> tuple[str, ...]:
    """On what has gone at once from a backend that cannot do otherwise, if that was too much."""
    backlog = min((listener.backlog for listener in listeners), default=released)
    if released <= backlog:
        return ()
    return (
        f"{released} SYNs were let go at once, and a listener has a backlog of {backlog}: "
        "some may wait a second more (raise its backlog, and net.core.somaxconn)",
    )
