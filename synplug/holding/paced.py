"""The loop that lets go in steps: looks, releases, and sees to what comes meanwhile."""

from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from typing import Any, NamedTuple

from synplug.errors import SynplugError
from synplug.holding.base import Backend
from synplug.holding.pace import Pacer, at_once
from synplug.holding.remarks import cookies_remark, hurried_remark
from synplug.holding.waiting import Lane
from synplug.kernel.procfs import sysctl
from synplug.kernel.sock_diag import SocketDiagnostics
from synplug.model import HoldSpec, Hook, Listener, ReleaseMode
from synplug.record import Record

_POLL_MS = 1
_SYNCOOKIES = "net.ipv4.tcp_syncookies"
#: What was seen so long ago is still so, but for what has come since: some fit besides.
_SEEN_JUST_NOW_S = 0.005
#: Their verdict takes longer than a look: it is no gain any more, and more could overflow a backlog
#: that a service has made smaller since.
_FEW = 256
#: Newcomers of a verdict, and those of theirs.
_ROUNDS_BEFORE_OPENING = 3


class Paced(Record):
    """How it went.

    :param limit: what bounded the pace, for the report. :param listeners: who stood at its end,
        where the backend opens as a whole. :param remarks: what went wrong.
    """

    steps: int = 0
    limit: str = ""
    listeners: tuple[Listener, ...] = ()
    remarks: tuple[str, ...] = ()


class Sighting(NamedTuple):
    """Listeners, and the monotonic time at which somebody began to look."""

    listeners: Collection[Listener] = ()
    at_s: float = 0.0


class Fitting:
    """What the run has just seen of the listeners: how many fit, so that they go without a look.

    To look takes half a millisecond, and all that waits, waits for it.
    """

    def __init__(self) -> None:
        self._by_port: dict[Lane, int] = {}
        self._until_s = 0.0

    @staticmethod
    def to_wire(spec: HoldSpec, seen: Sighting, syn_limit: int) -> dict[str, Any]:
        """For the keeper. :param syn_limit: as :func:`syn_limit` had it."""
        if not seen.listeners or spec.hook is not Hook.INPUT:
            return {}
        by_port = at_once(spec.endpoints, seen.listeners, syn_limit=syn_limit)
        return {"at_once": list(by_port.items()), "seen_at_s": seen.at_s}

    def hear(self, message: Mapping[str, Any]) -> None:
        """Take it from there, if it is told."""
        self._by_port = dict(message.get("at_once", ()))
        self._until_s = message.get("seen_at_s", 0.0) + _SEEN_JUST_NOW_S

    def has_room(self, waiting: Mapping[Lane, int], now_s: float) -> bool:
        """Whether all of these fit, by their port, and that is known."""
        is_known = now_s < self._until_s and sum(waiting.values()) <= _FEW
        return is_known and all(
            number <= self._by_port.get(lane, 0) for lane, number in waiting.items()
        )


def let_go_in_steps(
    backend: Backend,
    spec: HoldSpec,
    *,
    fitting: Fitting,
    clock: Callable[[], float],
    why_over: Callable[[], str],
    turn: Callable[[int | None], None],
) -> Paced:
    """Let go until there is nothing to pace any more, and the backend may be opened.

    :param why_over: why to pace no longer, in words; empty: go on. :param turn: sees to whatever
        happens within so many milliseconds.
    """
    is_paced = backend.can_pace and spec.release is ReleaseMode.PACED
    try:
        while backend.can_pace and backend.absorb() and not why_over():
            pass  # one that was slow must not take what has come before for newcomers
        if is_paced and fitting.has_room(backend.waiting_by_lane(), clock()):
            _let_go_in_order(backend, why_over)
            return Paced()
        with closing(SocketDiagnostics()) as diagnostics:
            pacer = Pacer(
                endpoints=spec.endpoints,
                mode=spec.release,
                is_blind=spec.hook is not Hook.INPUT,
                rooms=diagnostics,
                divide=backend.divide,
                clock=clock,
                somaxconn=lambda: int(sysctl("net.core.somaxconn") or 0),
                syn_limit=syn_limit(),
            )
            while backend.can_pace and not why_over():
                room = pacer.step(backend.waiting_by_lane())
                if room is None:
                    break
                released = [backend.release_next(lane, free) for lane, free in room.items()]
                turn(0 if any(released) else _POLL_MS)
            hurried = hurried_remark(backend.waiting(), why_over()) if pacer.limit else ()
            if is_paced:
                _let_go_in_order(backend, why_over)
            in_steps = pacer.steps and spec.hook is Hook.INPUT
            cookies = cookies_remark(sysctl(_SYNCOOKIES)) if in_steps else ()
            return Paced(
                steps=pacer.steps,
                limit=pacer.limit if pacer.steps or hurried else "",
                remarks=(*hurried, *cookies),
                listeners=() if backend.can_pace else tuple(diagnostics.listeners(spec.endpoints)),
            )
    except SynplugError as error:  # no reason to drop what waits
        words = f"let go at once, since the listeners could not be read: {error}"
        return Paced(remarks=(words,))


def why_hurry(left_s: float, is_asked: bool) -> str:
    """Why to pace no longer, in words; empty: go on.

    :param left_s: until the deadline. :param is_asked: somebody wants it to be over.
    """
    if is_asked:
        return "that was asked for"
    return "" if left_s > 0 else "--max-hold was over"


def _let_go_in_order(backend: Backend, why_over: Callable[[], str]) -> None:
    """Let those go who fit, the rule still in force: whoever comes meanwhile stays behind them."""
    for _ in range(_ROUNDS_BEFORE_OPENING):
        waiting = {lane: number for lane, number in backend.waiting_by_lane().items() if number}
        if why_over() or not waiting:
            break
        for lane, number in waiting.items():
            backend.release_next(lane, number)
        backend.absorb()


def syn_limit() -> int:
    """How many request sockets a listener may have; 0: as many as its backlog.

    Without SYN cookies a quarter of tcp_max_syn_backlog is kept for peers that are known from
    before (``net/ipv4/tcp_input.c``, tcp_conn_request).
    """
    if sysctl(_SYNCOOKIES) != "0":
        return 0
    limit = int(sysctl("net.ipv4.tcp_max_syn_backlog") or 0)
    return limit - (limit >> 2)
