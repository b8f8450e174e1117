"""The Python interface: :func:`hold` and :func:`wrap`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from enum import Enum
from typing import TypeVar

from synplug.errors import DrainError, UsageError
from synplug.handover.assembly import real_tools
from synplug.handover.plan import DrainPlan, ReadyPlan
from synplug.handover.process import NoSignals
from synplug.handover.request import HoldOptions, WrapRequest, hold_spec, plan_wrap
from synplug.handover.sight import sight_of
from synplug.handover.target import TargetRequest
from synplug.handover.wrap import wrap as wrap_sequence
from synplug.holding.handle import KeptHold
from synplug.holding.locks import RunLocks
from synplug.kernel import procfs
from synplug.model import (
    PACKETS_PER_QUEUE,
    BackendName,
    Endpoint,
    HoldResult,
    HoldSpec,
    Hook,
    OnDrainTimeout,
    OnFull,
    ReleaseMode,
    Report,
)


class Held:
    """A hold in force. :attr:`result` is there when it has ended."""

    def __init__(self, kept: KeptHold) -> None:
        self._kept = kept
        self.result: HoldResult | None = None

    def release(self) -> HoldResult:
        """End it now; leaving the ``with`` block does the same.

        :raises KeeperError: the keeper died, and nothing was held any more.
        :raises ReleaseError: something of it is still in place.
        """
        if self.result is None:
            self.result = self._kept.release()
        return self.result


@contextmanager
def hold(  # noqa: PLR0913 -- one keyword an option of the command line
    ports: Iterable[int | Endpoint],
    *,
    max_hold: float = 10.0,
    max_held: int = PACKETS_PER_QUEUE,
    max_held_per_source: int = 0,
    on_full: OnFull | str = OnFull.DROP,
    release: ReleaseMode | str = ReleaseMode.PACED,
    backend: BackendName | str = BackendName.AUTO,
    hook: Hook | str = Hook.INPUT,
    devices: Sequence[str] = (),
    loopback_egress: bool = False,
    lock_timeout: float = 0.0,
    drain_timeout: float = 1.0,
    quiesce: float = 1.0,
) -> Iterator[Held]:
    """Hold new connections to *ports* for as long as the ``with`` block lasts.

    The block begins when the old listener's queues have run empty, and nothing is in flight.
    Works in the calling thread's network namespace. Forks a keeper; nothing else of the
    process is touched, its signals neither.

    :param ports: port numbers, or endpoints with an address.
    :param max_hold: seconds, at the most.
    :param max_held: SYNs, at the most. :param max_held_per_source: of one source; 0: any number.
    :param on_full: ``drop`` or ``pass`` what does not fit.
    :param hook: ``input``, ``forward`` or ``prerouting``, as ``--hook`` means them.
    :param devices: backend plug: only what these network devices bring; empty: all.
    :param loopback_egress: backend plug: only what local clients send, where they send it.
    :param lock_timeout: seconds to wait for another run on the same endpoints.
    :param drain_timeout: seconds, at the most, for the old listener's queues; then the block begins
        all the same. :param quiesce: for requests in flight. Where ``hook`` is another than
        ``input``, the old listener is not here, and nobody waits.
    :raises PrivilegeError: no CAP_NET_ADMIN. :raises UnsupportedError: no backend works here.
    :raises LockError: another run has one of the endpoints.
    :raises DrainError: the hold ended before the old listener had run empty.
    :raises KeeperError: the keeper died; the block may have run, but not wholly under the hold.
    """
    _check_words(devices=devices)
    procfs.require_net_admin()
    options = HoldOptions(
        max_hold_s=max_hold,
        max_held=max_held,
        max_held_per_source=max_held_per_source,
        on_full=_one_of(OnFull, on_full, "on_full"),
        release=_one_of(ReleaseMode, release, "release"),
        backend=_one_of(BackendName, backend, "backend"),
        hook=_one_of(Hook, hook, "hook"),
        devices=tuple(devices),
        loopback_egress=loopback_egress,
    )
    spec = hold_spec(_endpoints(ports), options)
    drain = DrainPlan(timeout_s=drain_timeout, quiesce_s=quiesce)
    locks = RunLocks(spec.endpoints)
    locks.take(timeout_s=lock_timeout)
    kept = KeptHold(spec, locks)
    held = Held(kept)
    try:
        kept.arm()
        _hold_and_drain(kept, spec, drain)
        yield held
        held.release()
        kept.finish()
    finally:
        kept.close()
        held.result = kept.result
        locks.drop()


def _hold_and_drain(kept: KeptHold, spec: HoldSpec, drain: DrainPlan) -> None:
    """Hold, and let the old listener run empty.

    :raises DrainError: the hold ended before that.
    """
    tools = real_tools(spec, signals=NoSignals())
    with closing(tools.sockets):
        sight = sight_of(spec, tools=tools, drain=drain, warn=lambda _: None)
        with closing(sight):
            sight.look_at_the_old()
            sight.look_ahead(kept)
            kept.hold()
            sight.drain(lambda: kept.ended() is not None)
    if kept.ended() is not None:
        raise DrainError(
            "the hold ended before the old listener had run empty",
            remedy="raise max_hold, or lower drain_timeout and quiesce",
        )


def wrap(  # noqa: PLR0913 -- one keyword an option of the command line
    command: Sequence[str],
    *,
    ports: Iterable[int | Endpoint] = (),
    unit: str = "",
    pid: int | None = None,
    pidfile: str = "",
    max_hold: float = 10.0,
    max_held: int = PACKETS_PER_QUEUE,
    max_held_per_source: int = 0,
    on_full: OnFull | str = OnFull.DROP,
    release: ReleaseMode | str = ReleaseMode.PACED,
    backend: BackendName | str = BackendName.AUTO,
    hook: Hook | str = Hook.INPUT,
    devices: Sequence[str] = (),
    loopback_egress: bool = False,
    lock_timeout: float = 0.0,
    drain_timeout: float = 1.0,
    on_drain_timeout: OnDrainTimeout | str = OnDrainTimeout.PROCEED,
    quiesce: float = 1.0,
    drain_netns: str = "",
    ready_http: str = "",
    ready_cmd: Sequence[str] = (),
    ready_timeout: float | None = None,
    settle: float = 0.3,
    require_new: bool = False,
    check: Sequence[str] = (),
    best_effort: bool = False,
) -> Report:
    """Run a restart command while new connections wait, as ``synplug wrap`` does.

    Times are seconds; each parameter means what the option of its name means. Signals are left
    alone: what the caller does about them is the caller's.

    :param command: the restart command's argv.
    :returns: the report. What goes wrong with the restart stands there: see :attr:`Report.ok`.
    :raises UsageError: the call itself is wrong, or the endpoints cannot be found out.
    :raises PrivilegeError: no CAP_NET_ADMIN, and not ``best_effort``.
    """
    _check_words(command=command, ready_cmd=ready_cmd, check=check, devices=devices)
    if not best_effort:
        procfs.require_net_admin()
    request = WrapRequest(
        target=TargetRequest(
            endpoints=_endpoints(ports) if ports else (),
            units=(unit,) if unit else (),
            pids=(pid,) if pid else (),
            pidfiles=(pidfile,) if pidfile else (),
            argv=tuple(command),
        ),
        hold=HoldOptions(
            max_hold_s=max_hold,
            max_held=max_held,
            max_held_per_source=max_held_per_source,
            on_full=_one_of(OnFull, on_full, "on_full"),
            release=_one_of(ReleaseMode, release, "release"),
            backend=_one_of(BackendName, backend, "backend"),
            hook=_one_of(Hook, hook, "hook"),
            devices=tuple(devices),
            loopback_egress=loopback_egress,
            lock_timeout_s=lock_timeout,
        ),
        drain=DrainPlan(
            timeout_s=drain_timeout,
            on_timeout=_one_of(OnDrainTimeout, on_drain_timeout, "on_drain_timeout"),
            quiesce_s=quiesce,
            netns=drain_netns,
        ),
        ready=ReadyPlan(
            http=ready_http,
            command=tuple(ready_cmd),
            timeout_s=ready_timeout,
            settle_s=settle,
            require_new=require_new,
        ),
        check=tuple(check),
        best_effort=best_effort,
    )
    return _restart(request)


def _restart(request: WrapRequest) -> Report:
    plan, _ = plan_wrap(request)
    tools = real_tools(plan.spec, signals=NoSignals())
    with closing(tools.sockets):
        return wrap_sequence(plan, tools)


def _check_words(**commands: Sequence[str]) -> None:
    for name, argv in commands.items():
        if isinstance(argv, str):
            raise UsageError(f"{name} must be a list of words, not one string")


_Choice = TypeVar("_Choice", bound=Enum)


def _one_of(kind: type[_Choice], value: _Choice | str, name: str) -> _Choice:
    """A choice given as itself or by its word."""
    try:
        return kind(value)
    except ValueError:
        words = ", ".join(choice.value for choice in kind)
        raise UsageError(f"{name} cannot be {value!r}", remedy=f"one of {words}") from None


def _endpoints(ports: Iterable[int | Endpoint]) -> tuple[Endpoint, ...]:
    found = tuple(port if isinstance(port, Endpoint) else Endpoint(port=port) for port in ports)
    for endpoint in found:
        if not 1 <= endpoint.port <= 65535:
            raise UsageError(f"{endpoint.port} is not a port", remedy="ports are 1 to 65535")
    if not found:
        raise UsageError("no port to hold")
    return tuple(dict.fromkeys(found))
