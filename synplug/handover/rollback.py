"""End a new generation that did not come into its own; the old one has served all the time.

Where the new one stands on the port already, the kernel has given it its share of the clients. So
it leaves like an old one would: its listeners close under a hold, with their queues empty.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from synplug.errors import unforeseen
from synplug.handover.closing import Closing
from synplug.handover.generation import Generation
from synplug.handover.plan import DrainPlan, RetirePlan, StopMethod, SwapPlan
from synplug.handover.retirement import Retirement
from synplug.handover.run_hold import RunHold
from synplug.handover.tools import Tools
from synplug.model import Listener

_POLL_S = 0.05
#: What ending it may take beyond its own time; SIGKILL has come by then.
_LONGEST_S = 10.0
#: After a signal that ends the swap nobody waits for a deaf one: it has so long for SIGTERM then.
_HURRIED_S = 1.0


def roll_back(
    new: Generation,
    old: Collection[Listener],
    *,
    plan: SwapPlan,
    tools: Tools,
    hold: RunHold,
    interrupted: Callable[[], bool],
) -> list[str]:
    """End the whole of it, and release; returns warnings.

    :param old: the old generation's listeners. :param hold: armed, or holding, or neither.
    :param interrupted: whether a signal that ends the swap has come.
    """
    warnings = []
    kill_after_s = plan.retire.kill_after_s
    try:
        patience_s = min(kill_after_s, _HURRIED_S) if interrupted() else kill_after_s
        warnings += _close_listeners(new, old, plan, tools, hold, patience_s)
    except Exception as error:  # noqa: BLE001 -- whatever it is, the generation must end
        warnings.append(f"while the new generation was ended: {unforeseen(error).message}")
    end = Retirement(
        new,
        endpoints=(),
        plan=RetirePlan(linger_s=0.0, kill_after_s=kill_after_s),
        tools=tools,
        finishes=True,
    )
    _see_it_end(end, tools, interrupted, longest_s=kill_after_s + _LONGEST_S)
    if new.may_live():
        warnings.append(f"the new generation (pid {new.pid}) could not be ended")
    return warnings


def _see_it_end(
    end: Retirement, tools: Tools, interrupted: Callable[[], bool], *, longest_s: float
) -> None:
    began_s = tools.clock()
    hurried_s: float | None = None
    while not _is_over(end) and tools.clock() < began_s + longest_s:
        if hurried_s is None and interrupted():
            hurried_s = tools.clock()
        if hurried_s is not None and tools.clock() >= hurried_s + _HURRIED_S:
            end.hurry()
        tools.signals.pause(_POLL_S)


def _is_over(end: Retirement) -> bool:
    """One step; one that fails is taken again."""
    try:
        return end.step()
    except Exception:  # noqa: BLE001 -- told in the end, if it does not pass
        return False


def _close_listeners(
    new: Generation,
    old: Collection[Listener],
    plan: SwapPlan,
    tools: Tools,
    hold: RunHold,
    patience_s: float,
) -> list[str]:
    """Close those that only it has, if there are any, while SYNs wait.

    :param patience_s: from SIGTERM to SIGKILL.
    """
    theirs = {listener.cookie for listener in old}
    found = new.listeners(plan.spec.endpoints)
    own = [listener for listener in found if listener.cookie not in theirs]
    if not own or not hold.is_armed or hold.ended() is not None:
        return []
    if not hold.is_holding:
        hold.begin()
    closing = Closing(
        new,
        own,
        endpoints=plan.spec.endpoints,
        drain=DrainPlan(),
        stop=StopMethod(timeout_s=patience_s),
        tools=tools,
        mark=plan.spec.probe_mark,
        hold=hold,
    )
    closing.drain(lambda: hold.ended() is not None)
    closing.stop()
    hold.release()
    return closing.warnings
