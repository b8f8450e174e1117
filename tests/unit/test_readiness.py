"""When a restarted service counts as there."""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import ip_address

import pytest

from synplug.handover.readiness import ListenerWatch, Readiness
from synplug.model import Endpoint, Listener
from tests.unit.fakes import HTTP, listener

NOT_YET, REPLACED, SETTLED = Readiness.NOT_YET, Readiness.REPLACED, Readiness.SETTLED


def at(where: str, port: int = 80) -> Endpoint:
    return Endpoint(port=port, address=ip_address(where))


def watch(
    old: Collection[Listener],
    *endpoints: Endpoint,
    settle_s: float = 0.3,
    require_new: bool = False,
    must_last: bool = False,
) -> ListenerWatch:
    return ListenerWatch(
        endpoints=endpoints or (HTTP,),
        old=old,
        settle_s=settle_s,
        require_new=require_new,
        must_last=must_last,
    )


def look(
    watched: ListenerWatch,
    *listeners: Listener,
    now_s: float = 0.0,
    processes: Collection[int] = (),
    succeeded: bool = False,
) -> Readiness:
    return watched.observe(
        now_s=now_s, listeners=listeners, processes=processes, succeeded=succeeded
    )


# --- replaced


def test_a_new_listener_without_the_old_one_is_ready_at_once() -> None:
    watched = watch([listener(1)])
    assert look(watched, listener(1)) is NOT_YET
    assert look(watched) is NOT_YET
    assert look(watched, listener(2)) is REPLACED


def test_a_check_that_listens_for_a_moment_is_not_the_service() -> None:
    """`nginx -t` in a unit's ExecStartPre=."""
    watched = watch([listener(1)], must_last=True)
    assert look(watched, listener(2), now_s=1.0) is NOT_YET
    assert look(watched, now_s=1.1) is NOT_YET
    assert look(watched, listener(3), now_s=1.2) is NOT_YET
    assert look(watched, listener(3), now_s=1.3, succeeded=True) is REPLACED


def test_after_a_command_that_returns_early_it_has_to_last() -> None:
    """`systemctl --no-block restart`."""
    watched = watch([listener(1)], must_last=True, require_new=True)
    assert look(watched, listener(2), now_s=1.0, succeeded=True) is NOT_YET
    assert look(watched, listener(3), now_s=1.2, succeeded=True) is NOT_YET
    assert look(watched, listener(3), now_s=1.6, succeeded=True) is REPLACED


def test_a_new_one_that_lasts_counts_before_a_slow_command_has_ended() -> None:
    watched = watch([listener(1)], must_last=True)
    assert look(watched, listener(2), now_s=1.0) is NOT_YET
    assert look(watched, listener(2), now_s=1.4) is REPLACED


def test_as_long_as_the_old_one_is_there_the_new_one_does_not_count() -> None:
    watched = watch([listener(1)])
    assert look(watched, listener(1), listener(2)) is NOT_YET
    assert look(watched, listener(2)) is REPLACED


@pytest.mark.parametrize(
    ("old", "partly", "wholly"),
    [
        pytest.param(
            [listener(1, "::")],
            [listener(2, "0.0.0.0")],
            [listener(2, "0.0.0.0"), listener(3, "::", v6only=True)],
            id="a dual socket becomes two",
        ),
        pytest.param(
            [listener(1, "0.0.0.0"), listener(2, "::", v6only=True)],
            [listener(3, "::", v6only=True)],
            [listener(3, "::")],
            id="two become a dual one",
        ),
        pytest.param(
            [listener(1, "0.0.0.0"), listener(2, "::", v6only=True)],
            [listener(3, "0.0.0.0")],
            [listener(3, "0.0.0.0"), listener(4, "::", v6only=True)],
            id="v4 is there, v6 not yet",
        ),
        pytest.param(
            [listener(1, "10.0.0.1"), listener(2, "10.0.0.2")],
            [listener(3, "10.0.0.2")],
            [listener(3, "10.0.0.2"), listener(4, "10.0.0.1")],
            id="exact addresses, one is missing",
        ),
        pytest.param(
            [listener(1, "10.0.0.1")],
            [listener(3, "10.0.0.2")],
            [listener(3, "0.0.0.0")],
            id="a wildcard serves the exact address, another address does not",
        ),
    ],
)
def test_all_that_the_old_ones_served_must_be_served_anew(
    old: list[Listener], partly: list[Listener], wholly: list[Listener]
) -> None:
    watched = watch(old)
    assert look(watched, *partly) is NOT_YET
    assert look(watched, *wholly) is REPLACED


def test_every_port_must_be_replaced() -> None:
    old = [listener(1, port=80), listener(2, port=443)]
    watched = watch(old, Endpoint(port=80), Endpoint(port=443))
    assert look(watched, listener(3, port=80)) is NOT_YET
    assert look(watched, listener(3, port=80), listener(2, port=443)) is NOT_YET
    assert look(watched, listener(3, port=80), listener(4, port=443)) is REPLACED


def test_an_endpoint_that_nobody_served_must_be_served_too() -> None:
    watched = watch([listener(1)], Endpoint(port=80), Endpoint(port=81))
    assert look(watched, listener(2)) is NOT_YET
    assert look(watched, listener(2), listener(3, port=81)) is REPLACED


def test_every_socket_of_a_reuseport_set_must_go() -> None:
    old = [listener(1), listener(2), listener(3)]
    watched = watch(old)
    new = [listener(11), listener(12)]
    assert look(watched, *old, *new) is NOT_YET
    assert look(watched, old[2], *new) is NOT_YET
    assert look(watched, new[0]) is REPLACED


@pytest.mark.parametrize("endpoint", [HTTP, at("0.0.0.0"), at("10.1.2.3")])
def test_a_first_start_is_ready_when_somebody_serves_the_endpoint(endpoint: Endpoint) -> None:
    watched = watch([], endpoint)
    assert look(watched) is NOT_YET
    assert look(watched, listener(2)) is REPLACED


def test_a_first_start_on_another_address_is_not_ready() -> None:
    watched = watch([], at("10.1.2.3"))
    assert look(watched, listener(2, "10.9.9.9"), now_s=9, succeeded=True) is NOT_YET


def test_a_first_start_of_both_families_takes_one_listener() -> None:
    """Nobody said that a service on *:80 must speak IPv6."""
    assert look(watch([]), listener(2, "127.0.0.1")) is REPLACED


def test_a_number_that_was_seen_before_is_told_by_its_cookie() -> None:
    again = Listener(
        address=ip_address("0.0.0.0"), port=80, inode=1001, cookie=9, backlog=1, accept_queue=0
    )
    assert look(watch([listener(1)]), again) is REPLACED


# --- settled


def test_unchanged_listeners_count_once_the_command_succeeded_and_all_is_still() -> None:
    watched = watch([listener(1)])
    assert look(watched, listener(1), now_s=0.0) is NOT_YET
    assert look(watched, listener(1), now_s=10.0) is NOT_YET
    assert look(watched, listener(1), now_s=10.1, succeeded=True) is NOT_YET
    assert look(watched, listener(1), now_s=10.39, succeeded=True) is NOT_YET
    assert look(watched, listener(1), now_s=10.41, succeeded=True) is SETTLED


def test_a_change_of_listeners_starts_the_settle_time_anew() -> None:
    watched = watch([listener(1), listener(2)])
    old = listener(1)
    assert look(watched, old, now_s=0.0, succeeded=True) is NOT_YET
    assert look(watched, old, listener(3), now_s=0.2, succeeded=True) is NOT_YET
    assert look(watched, old, listener(3), now_s=0.4, succeeded=True) is NOT_YET
    assert look(watched, old, listener(3), now_s=0.51, succeeded=True) is SETTLED


def test_a_change_of_processes_starts_the_settle_time_anew() -> None:
    watched = watch([listener(1)])
    old = listener(1)
    assert look(watched, old, now_s=0.0, processes={7}, succeeded=True) is NOT_YET
    assert look(watched, old, now_s=0.2, processes={7, 8}, succeeded=True) is NOT_YET
    assert look(watched, old, now_s=0.4, processes={8}, succeeded=True) is NOT_YET
    assert look(watched, old, now_s=0.6, processes={8}, succeeded=True) is NOT_YET
    assert look(watched, old, now_s=0.71, processes={8}, succeeded=True) is SETTLED


def test_an_endpoint_that_has_lost_its_listener_is_waited_for_ten_times_as_long() -> None:
    watched = watch([listener(1), listener(2, port=81)], Endpoint(port=80), Endpoint(port=81))
    assert look(watched, listener(3), now_s=0.0, succeeded=True) is NOT_YET
    assert look(watched, listener(3), now_s=2.9, succeeded=True) is NOT_YET
    assert look(watched, listener(3), now_s=3.1, succeeded=True) is Readiness.PARTIAL
    assert [str(endpoint) for endpoint in watched.missing([listener(3)])] == ["0.0.0.0:81"]
    assert look(watched, now_s=200.0, succeeded=True) is NOT_YET
    assert look(watched, now_s=299.0, succeeded=True) is NOT_YET, "nothing is served at all"


def test_one_ip_version_is_not_taken_for_both() -> None:
    """An endpoint of both, of which only one is bound so far."""
    old = [listener(1), listener(2, "::", v6only=True)]
    watched = watch(old, Endpoint(port=80))
    assert look(watched, listener(3, "::", v6only=True), now_s=0.0, succeeded=True) is NOT_YET
    assert look(watched, listener(3, "::", v6only=True), now_s=1.5, succeeded=True) is NOT_YET
    both = [listener(3, "::", v6only=True), listener(4)]
    assert look(watched, *both, now_s=1.6, succeeded=True) is REPLACED


def test_an_endpoint_that_never_had_a_listener_does_not_keep_the_others_waiting() -> None:
    watched = watch([listener(1)], Endpoint(port=80), Endpoint(port=81))
    assert look(watched, listener(2), now_s=0.0, succeeded=False) is NOT_YET
    assert look(watched, listener(2), now_s=0.0, succeeded=True) is NOT_YET
    assert look(watched, listener(2), now_s=99.0, succeeded=True) is SETTLED


def test_a_first_start_waits_for_every_endpoint() -> None:
    watched = watch([], Endpoint(port=80), Endpoint(port=81))
    assert look(watched, listener(2), now_s=0.0, succeeded=True) is NOT_YET
    assert look(watched, listener(2), now_s=99.0, succeeded=True) is NOT_YET


def test_require_new_never_takes_the_old_ones() -> None:
    watched = watch([listener(1)], require_new=True)
    assert look(watched, listener(1), now_s=0.0, succeeded=True) is NOT_YET
    assert look(watched, listener(1), now_s=99.0, succeeded=True) is NOT_YET
    assert look(watched, listener(2), now_s=99.1, succeeded=True) is REPLACED


def test_no_settle_time_takes_the_first_look_after_the_success() -> None:
    assert look(watch([listener(1)], settle_s=0.0), listener(1), succeeded=True) is SETTLED


# --- the gap


def test_the_gap_is_from_the_last_look_without_to_the_first_with_a_listener() -> None:
    watched = watch([listener(1)])
    look(watched, listener(1), now_s=1.0)
    look(watched, now_s=2.0)
    look(watched, now_s=2.5)
    assert watched.gap_s is None
    look(watched, listener(2), now_s=2.75)
    assert watched.gap_s == pytest.approx(0.75)
    look(watched, listener(2), now_s=9.0)
    assert watched.gap_s == pytest.approx(0.75)


def test_no_gap_where_somebody_always_listened() -> None:
    watched = watch([listener(1)])
    look(watched, listener(1), now_s=1.0)
    look(watched, listener(1), listener(2), now_s=2.0)
    look(watched, listener(2), now_s=3.0)
    assert watched.gap_s is None


def test_no_gap_where_nobody_had_listened() -> None:
    watched = watch([])
    look(watched, now_s=1.0)
    look(watched, listener(1), now_s=2.0)
    assert watched.gap_s is None


def test_one_address_without_a_listener_is_a_gap() -> None:
    watched = watch([listener(1, "0.0.0.0"), listener(2, "::", v6only=True)])
    look(watched, listener(3, "0.0.0.0"), now_s=1.0)
    look(watched, listener(3, "0.0.0.0"), listener(4, "::", v6only=True), now_s=1.5)
    assert watched.gap_s == pytest.approx(0.5)
