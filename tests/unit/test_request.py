"""The limits of what can be asked for, and the errors' own words."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from synplug import errors
from synplug.api import _endpoints
from synplug.errors import KernelError, PrivilegeError, SynplugError, UsageError
from synplug.handover.plan import DrainPlan, ReadyPlan
from synplug.handover.request import HoldOptions, WrapRequest, hold_spec, plan_wrap
from synplug.handover.target import TargetRequest
from synplug.holding.backends import backends_for
from synplug.holding.channel import (
    Channel,
    error_from_wire,
    error_to_wire,
    result_from_wire,
    result_to_wire,
)
from synplug.model import (
    PACKETS_PER_QUEUE,
    BackendName,
    Endpoint,
    HoldCounts,
    HoldResult,
    Hook,
    ReleaseReason,
)
from synplug.record import replace
from tests.unit.fakes import HTTP


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_a_hold_without_a_deadline_is_refused(seconds: float) -> None:
    with pytest.raises(UsageError, match="more than 0 seconds"):
        hold_spec((HTTP,), HoldOptions(max_hold_s=seconds))


@pytest.mark.parametrize("packets", [0, -1, PACKETS_PER_QUEUE * 64 + 1])
def test_the_number_of_held_syns_is_bounded(packets: int) -> None:
    with pytest.raises(UsageError, match="from 1 to"):
        hold_spec((HTTP,), HoldOptions(max_held=packets))


@pytest.mark.parametrize(
    "options",
    [
        HoldOptions(devices=("eth0",)),
        HoldOptions(loopback_egress=True, backend=BackendName.NFQUEUE),
        HoldOptions(loopback_egress=True, devices=("lo",), backend=BackendName.PLUG),
    ],
)
def test_only_the_plug_goes_by_device(options: HoldOptions) -> None:
    """Any other backend would hold what comes by others, too."""
    with pytest.raises(UsageError, match=r"--backend plug|leave out --dev"):
        hold_spec((HTTP,), options)
    spec = hold_spec((HTTP,), HoldOptions(devices=("eth0",), backend=BackendName.PLUG))
    assert spec.devices == ("eth0",)


AT = Endpoint(port=80, address=ip_address("10.0.0.1"))
PROBED = ReadyPlan(http="http://10.0.0.1/")


@pytest.mark.parametrize(
    ("hook", "changes", "words"),
    [
        ("forward", {"endpoints": (HTTP,)}, "would hold what this host forwards to anybody's port"),
        ("prerouting", {"backend": BackendName.PLUG}, "plug holds only what is delivered"),
        ("prerouting", {"ready": ReadyPlan()}, "only a probe can tell"),
        ("forward", {"ready": ReadyPlan()}, "only a probe can tell"),
        ("prerouting", {"ready": replace(PROBED, require_new=True)}, "not --hook prerouting"),
        ("prerouting", {"endpoints": ()}, "are not here to be found"),
        ("prerouting", {"units": ("web",)}, "are not here to be found"),
        ("input", {"netns": "web"}, "--drain-netns is for --hook forward and prerouting"),
    ],
)
def test_listeners_elsewhere_need_what_can_tell_of_them(
    hook: str, changes: dict[str, Any], words: str
) -> None:
    request = WrapRequest(
        target=TargetRequest(
            endpoints=changes.get("endpoints", (AT,)),
            units=changes.get("units", ()),
            argv=("replace",),
        ),
        hold=HoldOptions(hook=Hook(hook), backend=changes.get("backend", BackendName.AUTO)),
        ready=changes.get("ready", PROBED),
        drain=DrainPlan(netns=changes.get("netns", "")),
    )
    with pytest.raises(UsageError, match=re.escape(words)):
        plan_wrap(request)


def test_listeners_elsewhere_are_as_they_are_named() -> None:
    """``kill`` returns early, but there is nothing to be seen after it."""
    target = TargetRequest(endpoints=(AT, HTTP), argv=("kill", "1"))
    request = WrapRequest(target=target, hold=HoldOptions(hook=Hook.PREROUTING), ready=PROBED)
    plan, found = plan_wrap(request)
    assert plan.spec.endpoints == (HTTP,), "the other one is contained"
    assert plan.spec.hook is Hook.PREROUTING
    assert (found.unserved, plan.ready.require_new) == ((), False)


def test_the_plug_is_not_tried_for_listeners_elsewhere() -> None:
    assert len(backends_for(BackendName.AUTO)) == 3
    assert len(backends_for(BackendName.AUTO, Hook.PREROUTING)) == 2


def test_every_run_has_an_id_of_its_own() -> None:
    ids = {hold_spec((HTTP,), HoldOptions()).run_id for _ in range(50)}
    assert len(ids) == 50
    assert all(re.fullmatch("[0-9a-f]{8}", found) for found in ids)


def test_a_restart_needs_a_command() -> None:
    with pytest.raises(UsageError, match="no restart command"):
        plan_wrap(WrapRequest(target=TargetRequest(endpoints=(HTTP,))))


@pytest.mark.parametrize("ready", [ReadyPlan(settle_s=11.0), ReadyPlan(timeout_s=11.0)])
def test_no_wait_may_be_longer_than_the_hold(ready: ReadyPlan) -> None:
    target = TargetRequest(endpoints=(HTTP,), argv=("x",))
    with pytest.raises(UsageError, match="11 s, is beyond the longest hold, 10 s") as error:
        plan_wrap(WrapRequest(target=target, ready=ready))
    assert error.value.remedy == "raise --max-hold"


# --- ports of the Python interface


def test_ports_and_endpoints_each_once() -> None:
    assert _endpoints([80, HTTP, 81]) == (HTTP, Endpoint(port=81))


@pytest.mark.parametrize("port", [0, -1, 65_536])
def test_what_is_no_port(port: int) -> None:
    with pytest.raises(UsageError, match="is not a port"):
        _endpoints([port])


def test_no_port_at_all() -> None:
    with pytest.raises(UsageError, match="no port to hold"):
        _endpoints([])


# --- errors


def tree() -> Iterator[tuple[str, int]]:
    """The names and codes that the docstring draws."""
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"[\s│├└─]*(\w+Error)\s+(\d{1,3})\b", line)
        if match:
            yield match.group(1), int(match.group(2))


def test_the_tree_is_as_it_is_drawn() -> None:
    drawn = dict(tree())
    real = {
        name: kind.exit_code
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, SynplugError)
    }
    assert drawn == real


def test_errors_say_what_to_do() -> None:
    assert str(SynplugError("a")) == "a"
    assert str(SynplugError("a", remedy="b")) == "a (b)"
    assert str(SynplugError("a", remedy="b\nc")) == "a; b\nc"
    assert str(KernelError("add a rule", 17, detail="twice")) == (
        "add a rule: EEXIST, File exists: twice"
    )
    assert "CAP_NET_ADMIN" in PrivilegeError("x", capability="CAP_NET_ADMIN").remedy


# --- what the run and its keeper say to each other


@pytest.mark.parametrize(
    "kind",
    [
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, SynplugError) and kind not in (KernelError, PrivilegeError)
    ],
)
def test_errors_survive_the_channel(kind: type[SynplugError]) -> None:
    found = error_from_wire(error_to_wire(kind("what", remedy="do")))
    assert type(found) is kind
    assert (found.message, found.remedy) == ("what", "do")


def test_errors_with_more_in_them_survive_the_channel() -> None:
    found = error_from_wire(error_to_wire(PrivilegeError("no", capability="CAP_X", remedy="do")))
    assert isinstance(found, PrivilegeError)
    assert (found.message, found.capability, found.remedy) == ("no", "CAP_X", "do")
    kernel = KernelError("add", 17, detail="twice", remedy="do")
    assert str(error_from_wire(error_to_wire(kernel))) == str(kernel)


def test_results_survive_the_channel() -> None:
    result = HoldResult(
        backend="nfqueue",
        reason=ReleaseReason.DEADLINE,
        held_at_s=1.25,
        opened_at_s=2.5,
        counts=HoldCounts(held=3, lost=1, peak=3),
        release_steps=4,
        release_limit="backlog of 5",
        warnings=("a", "b"),
    )
    one, other = Channel.pair()
    assert one.send("released", result=result_to_wire(result))
    message = other.receive()
    assert message is not None
    assert message["event"] == "released"
    assert result_from_wire(message["result"]) == result
    other.close()
    assert not one.send("hold")
    assert one.receive() is None
    one.close()


@pytest.mark.parametrize(
    ("line", "must_last"),
    [("systemctl restart app", True), ("sudo service app restart", True), ("./restart", False)],
)
def test_a_units_new_listener_must_last(line: str, must_last: bool) -> None:
    target = TargetRequest(endpoints=(HTTP,), argv=tuple(line.split()))
    plan, _ = plan_wrap(WrapRequest(target=target))
    assert plan.ready.must_last is must_last
