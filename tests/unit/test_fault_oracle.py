"""The fault matrix sees how long new connections did not work, whatever was struck."""

from __future__ import annotations

import pytest

from synplug.model import BackendName
from tests.integration.fault_cases import Case
from tests.integration.fault_clients import Attempt, outages
from tests.integration.fault_oracle import violations
from tests.integration.fault_points import Fault, Party
from tests.integration.fault_run import FREE_AFTER_S, Observation

_DEADLINE_S = 1.5
_IPV4, _IPV6 = "192.0.2.1", "2001:db8::1"
_BEGAN_S = 100.0


def held(
    until_s: float, address: str = _IPV4, *, again_s: float = 0.0, answer: str = "connected"
) -> list[Attempt]:
    """A connection every 25 ms for 8 s; those of the hold, from 0.2 s, wait until its end.

    :param again_s: instead, each comes again after so long, and is let in then.
    """
    found = []
    for number in range(320):
        at_s = number * 0.025
        waits = 0.2 <= at_s < until_s
        took_s = max(again_s, until_s - at_s) if waits else 0.001
        found.append(
            Attempt(
                address=address,
                began_s=_BEGAN_S + at_s,
                took_s=took_s,
                answer=answer if waits else "connected",
            )
        )
    return found


def seen(attempts: list[Attempt], ending_s: float = 0.0) -> Observation:
    return Observation(
        status=-9,
        stderr="",
        report=None,
        fault_s=_BEGAN_S + 0.5,
        refused="a call",
        max_hold_s=_DEADLINE_S,
        ending_s=ending_s,
        began_s=_BEGAN_S,
        ended_s=_BEGAN_S + 6.0,
        command_began=True,
        command_done=True,
        serves=True,
        attempts=attempts,
    )


def of_clients(
    party: Party, fault: Fault, attempts: list[Attempt], ending_s: float = 0.0
) -> list[str]:
    case = Case(
        point="Backend.check_for_loss", party=party, fault=fault, backend=BackendName.NFQUEUE
    )
    return [line for line in violations(case, seen(attempts, ending_s)) if "did not work" in line]


@pytest.mark.parametrize("party", [Party.ORCHESTRATOR, Party.KEEPER, Party.BOTH])
@pytest.mark.parametrize("fault", Fault)
def test_a_hold_that_ends_long_after_its_deadline_is_seen(party: Party, fault: Fault) -> None:
    bound_s = 0.2 + _DEADLINE_S + FREE_AFTER_S
    assert of_clients(party, fault, held(bound_s + 0.1))
    assert not of_clients(party, fault, held(bound_s - 0.1)), "the control"


def test_a_slow_machine_has_so_much_more_time_and_no_more() -> None:
    bound_s = 0.2 + _DEADLINE_S + FREE_AFTER_S + 0.5
    assert of_clients(Party.KEEPER, Fault.SIGSTOP, held(bound_s + 0.1), 0.5)
    assert not of_clients(Party.KEEPER, Fault.SIGSTOP, held(bound_s - 0.1), 0.5)


def test_who_comes_again_late_is_no_outage_but_those_that_follow_in_time() -> None:
    """What waited may be lost with a killed keeper, and comes again 1 s and 3 s later."""
    ((from_s, to_s),) = outages(held(1.0, again_s=3.0), 0.5)
    assert (from_s - _BEGAN_S, to_s - _BEGAN_S) == pytest.approx((0.2, 1.001))


def test_one_address_that_works_does_not_hide_another() -> None:
    attempts = held(0.2) + held(4.5, _IPV6)
    assert of_clients(Party.KEEPER, Fault.EXCEPTION, attempts)


def test_what_nobody_answers_is_an_outage_to_the_end() -> None:
    ((from_s, to_s),) = outages(held(9.0, answer="no answer"), 0.5)
    assert from_s == _BEGAN_S + 0.2
    assert to_s > _BEGAN_S + 8.0
