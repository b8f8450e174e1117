"""The loop that lets go in steps: looks, releases, and sees to what comes meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

from synplug.errors import SynplugError
from synplug.holding.base import Backend
from synplug.holding.pace import Pacer
from synplug.kernel.procfs import sysctl
from synplug.kernel.sock_diag import SocketDiagnostics
from synplug.model import HoldSpec, Hook, Listener

_POLL_MS = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Paced:
    """How it went.

    :param limit: what bounded the pace, for the report. :param listeners: who stood at its end,
        where the backend opens as a whole. :param remarks: what went wrong.
    """

    steps: int = 0
    limit: str = ""
    listeners: tuple[Listener, ...] = ()
    remarks: tuple[str, ...] = ()


def let_go_in_steps(
    backend: Backend,
    spec: HoldSpec,
    *,
    clock: Callable[[], float],
    is_over: Callable[[], bool],
    turn: Callable[[int | None], None],
) -> Paced:
    """Let go until there is nothing to pace any more, and the backend may be opened.

    :param is_over: whether to pace no longer. :param turn: sees to whatever happens within so
        many milliseconds.
    """
    try:
        with closing(SocketDiagnostics()) as diagnostics:
            pacer = Pacer(
                endpoints=spec.endpoints,
                mode=spec.release,
                is_blind=spec.hook is not Hook.INPUT,
                rooms=diagnostics,
                clock=clock,
                somaxconn=lambda: int(sysctl("net.core.somaxconn") or 0),
                syn_limit=_syn_limit(),
            )
            while backend.absorb() and not is_over():
                pass  # one that was slow must not take what has come before for newcomers
            while backend.can_pace and not is_over():
                room = pacer.step(backend.waiting_by_port())
                if room is None:
                    break
                released = [backend.release_next(port, free) for port, free in room.items()]
                turn(0 if any(released) else _POLL_MS)
            return Paced(
                steps=pacer.steps,
                limit=pacer.limit if pacer.steps else "",
                listeners=() if backend.can_pace else tuple(diagnostics.listeners(spec.endpoints)),
            )
    except SynplugError as error:  # no reason to drop what waits
        words = f"let go at once, since the listeners could not be read: {error}"
        return Paced(remarks=(words,))


def _syn_limit() -> int:
    """How many request sockets a listener may have; 0: as many as its backlog.

    Without SYN cookies a quarter of tcp_max_syn_backlog is kept for peers that are known from
    before (``net/ipv4/tcp_input.c``, tcp_conn_request).
    """
    if sysctl("net.ipv4.tcp_syncookies") != "0":
        return 0
    limit = int(sysctl("net.ipv4.tcp_max_syn_backlog") or 0)
    return limit - (limit >> 2)
