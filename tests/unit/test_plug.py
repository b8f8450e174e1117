"""The plug backend's steps, on traffic control that takes notes; tests/guest has a real one."""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext, suppress
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from synplug.errors import (
    KernelError,
    ReleaseError,
    SynplugError,
    UnsupportedError,
    UsageError,
)
from synplug.holding import diversion, notes, plug, reach, remains
from synplug.holding.describe import equivalent_commands
from synplug.holding.diversion import Diversion
from synplug.holding.ledger import Entry
from synplug.holding.ownership import MOST_FILTERS
from synplug.holding.plug import PlugBackend
from synplug.holding.plug_limits import BYTES_PER_SYN
from synplug.kernel import flower
from synplug.kernel.flower import Installed, Prefix, SynFilter
from synplug.kernel.hooks import ARRIVING, LEAVING
from synplug.kernel.netlink_codec import attributes
from synplug.kernel.places import Places
from synplug.kernel.traffic_control import Device, PlugState, TrafficControl
from synplug.model import BackendName, Endpoint, Flow, HoldCounts, HoldSpec, OnFull
from synplug.record import replace

SPEC = HoldSpec(endpoints=(Endpoint(port=80),), run_id="0123abcd", max_held_packets=100)
LOCAL: set[Prefix] = {ip_network("127.0.0.0/8"), ip_network("10.0.0.1/32"), ip_network("::1/128")}
#: Filters for one port: on a wire once more for frames with a priority tag.
EMPTY = PlugState(0, 0, 0, 0)
AT_LOOPBACK, AT_A_WIRE = len(LOCAL), 2 * len(LOCAL)


class FakeControl:
    """Devices 1 (lo) and 2 (eth0); eth0 has an ingress qdisc and a filter of somebody else."""

    def __init__(self, _prefix: str = "") -> None:
        self.log: list[str] = []
        self.dumps = self.looks_at_queues = 0
        #: Who has something to send, a look each; nobody any more after that.
        self.sending: list[set[int]] = []
        self.there = {1: "lo", 2: "eth0"}
        self.ingress = {2}
        self.one_sided: set[int] = set()  # of these, those that are no clsact
        self.installed = [Installed(2, flower.INGRESS, 1, 3 << 16, flower.FLOWER)]
        self.actions: dict[tuple[int, int], bytes] = {}
        self.sought: dict[tuple[int, int], SynFilter] = {}
        self.state: PlugState | None = PlugState(0, 0, 0, 0)
        self.in_flight = self.stranded = 0
        self.ports: set[int] = set()
        self.refused: set[str] = set()
        self.more_local: set[Prefix] = set()
        self.own: set[Prefix] = set()

    def _do(self, what: str) -> None:
        if what.split(maxsplit=1)[0] in self.refused:
            raise KernelError(what, 12)
        self.log.append(what)

    def close(self) -> None:
        self.log.append("close")

    def devices(self) -> list[Device]:
        return [
            Device(
                index=index,
                name=name,
                is_ours=name.startswith("synplug"),
                is_port=index in self.ports,
            )
            for index, name in self.there.items()
        ]

    def index_of(self, name: str) -> int | None:
        return next((index for index, own in self.there.items() if own == name), None)

    def has_index(self, index: int) -> bool:
        return index in self.there

    def is_renamed_ifb(self, index: int) -> bool:
        return not self.there.get(index, "synplug").startswith("synplug")

    def make_ifb(self, name: str) -> int:
        self._do("make-ifb")
        self.there[9] = name
        return 9

    def set_up(self, index: int) -> None:
        self._do("set-up")

    def remove_device(self, index: int) -> None:
        self._do("remove-ifb")
        del self.there[index]

    def ifb_in_flight(self, _index: int) -> int:
        return self.in_flight

    def ifb_stranded(self, _index: int) -> int:
        return self.stranded

    def local_prefixes(self) -> set[Prefix]:
        return LOCAL | self.more_local

    def addresses(self) -> set[Prefix]:
        return self.own

    def make_plug(self, _device: int, limit_bytes: int) -> None:
        self._do(f"make-plug {limit_bytes}")

    def close_plug(self, _device: int) -> None:
        self._do("close-plug")

    def open_plug(self, _device: int) -> None:
        self._do("open-plug")

    def plug_state(self, _device: int) -> PlugState | None:
        if "plug-state" in self.refused:
            raise KernelError("plug-state", 105)
        return self.state if _device in self.there else None

    def to_send(self, devices: Collection[int]) -> set[int]:
        self.looks_at_queues += bool(devices)
        return self.sending.pop(0) & set(devices) if self.sending else set()

    def places(self) -> Places:
        self.dumps += 1
        kinds = {True: "ingress", False: "clsact"}
        return Places((device, kinds[device in self.one_sided]) for device in self.ingress)

    def make_ingress(self, device: int, *, side: int = flower.INGRESS) -> bool:
        if device in self.ingress:
            return False
        self._do(f"make-ingress {device}")
        self.ingress.add(device)
        return True

    def remove_ingress(self, device: int) -> None:
        if self.filters(device):
            return  # as the real one: somebody uses it
        self._do(f"remove-ingress {device}")
        self.ingress.discard(device)

    def filters(self, device: int, parent: int = flower.INGRESS) -> list[Installed]:
        return [
            found for found in self.installed if (found.device, found.parent) == (device, parent)
        ]

    def add_filter(self, syns: SynFilter, where: Installed, action: bytes) -> None:
        self._do("add-filter")
        self.installed.append(where)
        self.sought[where.device, where.handle] = syns
        self.actions[where.device, where.handle] = action

    def pass_mark(self, where: Installed) -> None:
        self._do("pass-mark")
        self.installed.append(where)

    def remove_filter(self, where: Installed) -> None:
        self._do("remove-filter")
        self.installed.remove(where)


class FakeChanges:
    """Nothing changes unless a test says so."""

    def __init__(self) -> None:
        self.changed = False

    def fileno(self) -> int:
        return 7

    def take(self, own_plug: int | None = None) -> bool:
        assert own_plug is not None, "the notices of the run's own plug are no news"
        was, self.changed = self.changed, False
        return was

    def close(self) -> None:
        pass


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeControl]:
    made = FakeControl()
    monkeypatch.setattr(plug, "TrafficControl", lambda _prefix: made)
    monkeypatch.setattr(plug, "Changes", FakeChanges)
    monkeypatch.setattr(diversion, "entries", list)
    monkeypatch.setattr(reach, "translations", lambda _hook: [])
    for told in ("hook_remarks", "tcx_remarks"):
        monkeypatch.setattr(notes, told, lambda _devices, _side: ())
    monkeypatch.setattr(plug, "wait_for_packets_in_flight", lambda: True)
    monkeypatch.setattr(plug, "_SETTLE_LIMIT_S", 0.02)
    monkeypatch.setattr(plug, "_BEHIND_S", 0.02)
    yield made
    foreign = [found for found in made.installed if found.handle == 1]
    assert len(foreign) == 1, "somebody else's filter stays"


def held(control: FakeControl) -> PlugBackend:
    backend = PlugBackend(SPEC)
    backend.arm()
    backend.hold()
    control.log.clear()
    return backend


def entered(run_id: str, traces: dict[str, str]) -> Entry:
    """What a run has in the ledger."""
    return Entry(
        run_id=run_id,
        name="",
        keeper=1,
        keeper_start=1,
        backend="plug",
        state="armed",
        endpoints=(),
        deadline_s=0,
        traces=traces,
    )


def test_all_is_there_before_anything_waits(control: FakeControl) -> None:
    backend = PlugBackend(SPEC)
    assert backend.traces() == {
        "ifb device": "synplug0123abcd",
        "filters": "handle 0x123a001 ff.",
        "clsact": "lo:1",
    }
    backend.arm()
    assert control.log[:2] == ["make-ifb", f"make-plug {100 * BYTES_PER_SYN}"]
    assert control.log.count("add-filter") == AT_LOOPBACK + AT_A_WIRE
    assert "close-plug" not in control.log
    control.log.clear()
    backend.hold()
    assert control.log == ["close-plug"], "one change"


def test_foreign_preferences_are_left_alone_and_ours_come_first_where_they_can(
    control: FakeControl,
) -> None:
    PlugBackend(SPEC).arm()
    ours = {found.preference for found in control.installed if found.handle != 1}
    assert 3 not in ours
    assert min(found.preference for found in control.installed if found.device == 1) == 1


def test_an_exact_address_has_one_filter_a_device(control: FakeControl) -> None:
    endpoint = Endpoint(port=80, address=ip_address("10.0.0.1"))
    backend = PlugBackend(HoldSpec(endpoints=(endpoint,), run_id="0123abcd"))
    backend.arm()
    assert control.log.count("add-filter") == 1 + 2


ELSEWHERE = Endpoint(port=9090, address=ip_address("10.50.0.2"))


def test_what_is_forwarded_to_a_named_address_passes_and_that_is_told(control: FakeControl) -> None:
    backend = PlugBackend(HoldSpec(endpoints=(ELSEWHERE, *SPEC.endpoints), run_id="0123abcd"))
    backend.arm()
    assert control.log.count("add-filter") == AT_LOOPBACK + AT_A_WIRE, "those of the other port"
    (told,) = backend.remarks
    assert told.startswith("10.50.0.2:9090 is not held: this machine does not answer for")


def test_a_named_address_that_comes_during_the_hold_is_held(control: FakeControl) -> None:
    backend = PlugBackend(HoldSpec(endpoints=(ELSEWHERE,), run_id="0123abcd"))
    backend.arm()
    backend.hold()
    assert "add-filter" not in control.log
    control.more_local = {ip_network("10.50.0.0/24")}
    changed(backend)
    assert control.log.count("add-filter") == 1 + 2
    assert not backend.remarks
    backend.open()
    backend.remove()
    assert control.ingress == {2}


def test_a_named_address_in_a_vrf_is_held(control: FakeControl) -> None:
    control.own = {ip_network("10.50.0.2/32")}
    backend = PlugBackend(HoldSpec(endpoints=(ELSEWHERE,), run_id="0123abcd"))
    backend.arm()
    assert control.log.count("add-filter") == 1 + 2
    assert not backend.remarks


def test_what_has_a_priority_tag_is_looked_for_on_wires_in_a_preference_of_its_own(
    control: FakeControl,
) -> None:
    """A preference takes filters of one protocol only, and to a filter that of the tag counts."""
    PlugBackend(SPEC).arm()
    tagged = [found for found in control.installed if found.protocol == 0x8100]
    assert [found.device for found in tagged] == [2] * len(LOCAL)
    others = {found.preference for found in control.installed if found not in tagged}
    assert not others & {found.preference for found in tagged}


def test_chosen_devices_only(control: FakeControl) -> None:
    backend = PlugBackend(HoldSpec(endpoints=SPEC.endpoints, run_id="0123abcd", devices=("eth0",)))
    backend.arm()
    assert {found.device for found in control.installed} == {2}


def test_a_device_that_is_not_there(control: FakeControl) -> None:
    backend = PlugBackend(HoldSpec(endpoints=SPEC.endpoints, run_id="0123abcd", devices=("eth7",)))
    with pytest.raises(UsageError, match="eth7"):
        backend.traces()


def test_a_port_of_a_bridge_is_left_to_the_bridge(control: FakeControl) -> None:
    control.there |= {3: "br0", 4: "tap0"}
    control.ports = {4}
    PlugBackend(SPEC).arm()
    assert {found.device for found in control.installed} == {1, 2, 3}


def test_a_port_of_a_bridge_that_was_chosen_is_taken(control: FakeControl) -> None:
    control.ports = {2}
    PlugBackend(HoldSpec(endpoints=SPEC.endpoints, run_id="0123abcd", devices=("eth0",))).arm()
    assert {found.device for found in control.installed if found.handle != 1} == {2}


def test_on_the_egress_side_of_loopback_only(control: FakeControl) -> None:
    spec = HoldSpec(endpoints=SPEC.endpoints, run_id="0123abcd", loopback_egress=True)
    backend = PlugBackend(spec)
    backend.arm()
    ours = [found for found in control.installed if found.handle != 1]
    assert {(found.device, found.parent) for found in ours} == {(1, flower.EGRESS)}
    backend.close()
    assert len(control.installed) == 1


def test_the_last_run_removes_a_clsact_that_several_use(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = PlugBackend(SPEC)
    first.arm()
    entry = entered("0123abcd", first.traces())
    monkeypatch.setattr(diversion, "entries", lambda: [entry])
    second = PlugBackend(HoldSpec(endpoints=(Endpoint(port=81),), run_id="89ab0000"))
    control.there[5] = "other"
    second.arm()
    assert second.traces()["clsact"].split() == ["lo:1", "other:5"], "eth0's is somebody else's"


def test_another_run_that_takes_its_clsact_away_while_we_arm_is_made_up_for(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends between our look and our first filter there."""
    control.ingress.add(1)
    add_filter = FakeControl.add_filter
    ended: list[int] = []

    def added(self: FakeControl, syns: SynFilter, where: Installed, action: bytes) -> None:
        if not ended:
            ended.append(where.device)
            self.ingress.discard(where.device)
        if where.device not in self.ingress:
            raise KernelError("add a filter", errno.EINVAL)
        add_filter(self, syns, where, action)

    monkeypatch.setattr(FakeControl, "add_filter", added)
    backend = PlugBackend(SPEC)
    backend.arm()
    assert "make-ingress 1" in control.log
    assert len([one for one in control.installed if one.device == 1]) == AT_LOOPBACK + 1
    backend.close()
    assert control.ingress == {2}, "what was made instead goes with the run"


def test_more_filters_than_there_are_handles_are_refused(control: FakeControl) -> None:
    at = len(LOCAL) * 2
    ports = MOST_FILTERS // at
    endpoints = tuple(Endpoint(port=1 + port) for port in range(ports))
    backend = PlugBackend(HoldSpec(endpoints=endpoints, run_id="0123abcd"))
    backend.arm()
    handles = {found.handle for found in control.installed if found.handle >> 12 == 0x123A}
    assert len(handles) == ports * at
    assert any("priority-tagged frames (VLAN 0) are not held" in it for it in backend.remarks)
    control.there |= {3: "eth1"}
    backend.hold()
    changed(backend)
    assert "close-plug" in control.log, "what is diverted already is held"
    backend.close()
    assert len(control.installed) == 1
    assert control.ingress == {2}
    control.log.clear()
    backend = PlugBackend(HoldSpec(endpoints=endpoints, run_id="0123abcd"))
    with pytest.raises(UnsupportedError, match=r"filters .*can have 4094") as refused:
        backend.arm()
    assert "--dev" in refused.value.remedy
    assert "add-filter" not in control.log
    backend.close()


@pytest.mark.parametrize("devices", [3, 300])
def test_qdiscs_are_dumped_as_often_for_many_devices_as_for_few(
    control: FakeControl, devices: int
) -> None:
    """A dump has them all."""
    control.there |= {100 + number: f"veth{number}" for number in range(devices)}
    backend = PlugBackend(SPEC)
    traces = backend.traces()
    backend.arm()
    backend.hold()
    said = "for others' filters, for the traces, when others may be there, to spread the filters"
    assert control.dumps == 4, said
    control.there[99] = "late"
    changed(backend)
    assert control.dumps == 7
    assert {found.device for found in control.installed} == set(control.there) - {9}
    PlugBackend(SPEC).clean_up_after_death(traces | backend.traces())
    assert control.dumps == 10
    assert control.ingress == {2}


def test_marks_are_looked_for_once_a_device(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = held(control)
    asked: list[tuple[int, int]] = []
    filters = FakeControl.filters

    def dumped(self: FakeControl, device: int, parent: int) -> list[Installed]:
        asked.append((device, parent))
        return filters(self, device, parent)

    monkeypatch.setattr(FakeControl, "filters", dumped)
    backend._diversion._filters.clear()
    backend._diversion.find(backend.traces(), 9)
    assert len(asked) == len(set(asked))
    assert SPEC.probe_mark in {found.handle for found in backend._diversion._filters.values()}


def test_it_cannot_pass_what_does_not_fit(control: FakeControl) -> None:
    spec = HoldSpec(endpoints=SPEC.endpoints, run_id="0123abcd", on_full=OnFull.PASS)
    with pytest.raises(UnsupportedError):
        PlugBackend(spec).arm()
    assert control.log == []


def test_it_cannot_tell_sources_apart(control: FakeControl) -> None:
    spec = HoldSpec(endpoints=SPEC.endpoints, run_id="0123abcd", max_held_per_source=3)
    with pytest.raises(UnsupportedError, match="max-held-per-source"):
        PlugBackend(spec).arm()
    assert control.log == []


def test_the_end_in_its_order(control: FakeControl) -> None:
    backend = held(control)
    control.state = PlugState(waiting=5, passed=2, dropped=0, waiting_bytes=370)
    assert backend.waiting() == 5
    assert backend.open() == 5
    control.state = PlugState(waiting=0, passed=7, dropped=1, waiting_bytes=0)
    backend.confirm_empty()
    backend.remove()
    assert control.log[0] == "open-plug"
    assert set(control.log[1:-2]) == {"remove-filter"}
    assert control.log[-2:] == ["remove-ingress 1", "remove-ifb"]
    counts = backend.counts()
    assert (counts.released, counts.held, counts.peak, counts.overflowed) == (7, 7, 5, 1)


def test_a_plug_that_was_full_is_told_in_bytes(control: FakeControl) -> None:
    backend = held(control)
    control.state = PlugState(waiting=172, passed=0, dropped=0, waiting_bytes=12728)
    backend.check_for_loss()
    assert not backend.remarks, "the control: all fit"
    control.state = PlugState(waiting=172, passed=0, dropped=2, waiting_bytes=12728)
    backend.open()
    control.state = PlugState(waiting=0, passed=172, dropped=2, waiting_bytes=0)
    backend.confirm_empty()
    (told,) = backend.remarks
    assert "takes 12800 bytes by --max-held, and 172 SYNs of 12728 bytes waited" in told
    assert backend.counts().overflowed == 2


def test_a_plug_that_does_not_open_holds_nobody_who_comes(control: FakeControl) -> None:
    backend = held(control)
    control.refused.add("open-plug")
    with pytest.raises(KernelError):
        backend.open()
    assert len(control.installed) == 1, "no filter of ours is left"


def test_a_plug_whose_statistics_cannot_be_read_opens(control: FakeControl) -> None:
    backend = held(control)
    control.state = PlugState(waiting=5, passed=0, dropped=0, waiting_bytes=370)
    assert backend.waiting() == 5
    control.refused.add("plug-state")
    assert backend.open() == 5, "as of the last time that they were"
    assert control.log[0] == "open-plug"
    assert len(control.installed) == 1
    with pytest.raises(KernelError):  # but it is not said that nobody waits any more
        backend.confirm_empty()


@pytest.mark.parametrize("refused", ["close-plug", "plug-state"])
def test_a_hold_that_was_refused_lets_go_of_who_waits(control: FakeControl, refused: str) -> None:
    """The kernel may have done it: what is refused can be the answer."""
    backend = PlugBackend(SPEC)
    backend.arm()
    control.log.clear()
    control.refused.add(refused)
    with pytest.raises(KernelError, match=refused):
        backend.hold()
    assert control.log[-1] == "open-plug"
    backend.remove()
    assert control.log[-1] == "remove-ifb"


def test_what_cannot_go_back_to_its_device_is_lost(control: FakeControl) -> None:
    backend = held(control)
    backend.open()
    control.state = PlugState(waiting=0, passed=3, dropped=0, waiting_bytes=0)
    control.stranded = 2
    backend.confirm_empty()
    counts = backend.counts()
    assert (counts.held, counts.released, counts.lost) == (3, 1, 2)
    assert "2 held SYNs were lost" in backend.remarks[0]


def test_a_plug_that_runs_empty_slowly_is_waited_for(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as some go: removing it would drop the others."""
    backend = held(control)
    backend.open()
    monkeypatch.setattr(plug, "_SETTLE_LIMIT_S", 2.0)
    now_s, signs = [0.0], list[float]()
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])

    def pass_on(seconds: float) -> None:  # a hundred SYNs, one in 0.1 s
        now_s[0] += seconds
        gone = min(100, int(now_s[0] * 10))
        control.state = PlugState(100 - gone, passed=gone, dropped=0, waiting_bytes=0)

    monkeypatch.setattr(time, "sleep", pass_on)
    pass_on(0.0)
    backend.confirm_empty(lambda: signs.append(now_s[0]))
    assert backend.counts().waiting == 0
    assert len(signs) == 100, "the keeper hears that it goes on"
    assert now_s[0] > 4 * 2.0


def _turns(monkeypatch: pytest.MonkeyPatch, play: Callable[[float], None]) -> None:
    """Time goes on by sleeping alone; *play* is told how long it is since it began."""
    now_s = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])

    def sleep(seconds: float) -> None:
        now_s[0] += seconds
        play(now_s[0])

    monkeypatch.setattr(time, "sleep", sleep)
    play(0.0)


def test_who_comes_stays_behind_those_who_wait(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is not diverted any more would overtake what a busy processor has not got to yet."""
    backend = held(control)

    def pass_on(now_s: float) -> None:  # a hundred SYNs, one a ms; the last is in flight then
        gone = min(100, int(now_s * 1000))
        control.state = PlugState(100 - gone, passed=gone, dropped=0, waiting_bytes=0)
        control.in_flight = int(gone == 100 and now_s < 0.12)
        waits = gone < 100 or control.in_flight
        assert len(control.installed) > 1 or not waits, "they are diverted while somebody waits"

    monkeypatch.setattr(plug, "_BEHIND_S", 0.05)
    _turns(monkeypatch, pass_on)
    assert backend.waiting() == 100
    assert backend.open() == 100
    assert 0.12 <= time.monotonic() < 0.13
    assert len(control.installed) == 1
    backend.open()
    assert time.monotonic() < 0.13, "once"


@pytest.mark.parametrize(
    ("waiting_at", "until_s"),
    [
        pytest.param(lambda now_s: 5, 0.02, id="none goes"),
        pytest.param(lambda now_s: 9999 - int(now_s * 500), 0.25, id="there are too many of them"),
    ],
)
def test_nobody_waits_behind_them_for_long(
    control: FakeControl,
    monkeypatch: pytest.MonkeyPatch,
    waiting_at: Callable[[float], int],
    until_s: float,
) -> None:
    """The plug is open: it can be that as many come as go."""
    backend = held(control)

    def pass_on(now_s: float) -> None:
        control.state = PlugState(waiting_at(now_s), passed=0, dropped=0, waiting_bytes=0)

    _turns(monkeypatch, pass_on)
    backend.open()
    assert until_s < time.monotonic() < until_s + 0.01
    assert len(control.installed) == 1


def test_what_stays_in_the_plug_is_told(control: FakeControl) -> None:
    backend = held(control)
    backend.open()
    control.state = PlugState(waiting=3, passed=0, dropped=0, waiting_bytes=222)
    with pytest.raises(ReleaseError, match="3 packets still wait in synplug0123abcd"):
        backend.confirm_empty()


def test_a_device_that_was_taken_away_is_no_black_hole(control: FakeControl) -> None:
    backend = held(control)
    control.state = PlugState(waiting=4, passed=0, dropped=0, waiting_bytes=296)
    assert backend.check_for_loss() == 0
    control.state = None
    assert backend.check_for_loss() == 4
    assert len(control.installed) == 1, "nothing is redirected to nowhere"
    assert backend.check_for_loss() == 0
    assert backend.counts().lost == 4
    assert backend.counts().held == 4


def test_a_device_that_has_lost_its_plug_is_removed(control: FakeControl) -> None:
    backend = held(control)
    control.state = None
    control.refused.add("open-plug")  # there is none
    backend.check_for_loss()
    backend.open()
    backend.confirm_empty()
    backend.remove()
    assert control.there == {1: "lo", 2: "eth0"}
    assert control.ingress == {2}


def test_a_dead_keepers_device_that_has_lost_its_plug_is_removed(control: FakeControl) -> None:
    traces = held(control).traces()
    control.state = None
    control.refused.add("open-plug")
    PlugBackend(SPEC).clean_up_after_death(traces)
    assert control.there == {1: "lo", 2: "eth0"}
    assert len(control.installed) == 1


def test_what_a_dead_keeper_held_goes_before_its_filters_are_looked_for(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = held(control).traces()
    find = Diversion.find

    def looked(self: Diversion, traces: dict[str, str], target: int) -> tuple[int, dict[int, str]]:
        assert control.log == ["open-plug"]
        return find(self, traces, target)

    monkeypatch.setattr(Diversion, "find", looked)
    PlugBackend(SPEC).clean_up_after_death(traces)
    assert len(control.installed) == 1


def test_what_a_device_drops_that_goes_down_is_counted(control: FakeControl) -> None:
    backend = held(control)
    control.state = PlugState(waiting=4, passed=0, dropped=0, waiting_bytes=296)
    assert backend.check_for_loss() == 0
    control.state = PlugState(waiting=1, passed=0, dropped=0, waiting_bytes=74)
    assert backend.check_for_loss() == 3
    assert backend.check_for_loss() == 0
    backend.open()
    control.state = PlugState(waiting=0, passed=1, dropped=0, waiting_bytes=0)
    backend.confirm_empty()
    assert backend.check_for_loss() == 0, "what is let go is not lost"
    assert (backend.counts().held, backend.counts().lost) == (4, 3)


def test_the_device_is_set_up_again(control: FakeControl) -> None:
    backend = held(control)
    assert isinstance(backend._changes, FakeChanges)
    backend._changes.changed = True
    backend.absorb()
    assert "set-up" in control.log


def test_what_it_drops_is_counted_before_it_is_set_up_and_more_come(control: FakeControl) -> None:
    backend = held(control)
    control.state = PlugState(waiting=1, passed=0, dropped=0, waiting_bytes=74)
    assert backend.check_for_loss() == 0
    control.state = EMPTY

    def set_up(index: int) -> None:
        control.state = EMPTY._replace(waiting=1)

    control.set_up = set_up  # type: ignore[method-assign]
    assert isinstance(backend._changes, FakeChanges)
    backend._changes.changed = True
    backend.absorb()
    assert backend.check_for_loss() == 1
    assert backend.check_for_loss() == 0
    assert backend.counts().lost == 1


def test_a_new_device_gets_its_filters_and_is_entered_into_the_ledger(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = held(control)
    entered: list[dict[str, str]] = []
    monkeypatch.setattr(plug, "note_traces", lambda _run_id, traces: entered.append(traces))
    make_ingress = FakeControl.make_ingress

    def made(self: FakeControl, device: int, *, side: int = flower.INGRESS) -> bool:
        assert entered, "the ledger comes first"
        return make_ingress(self, device, side=side)

    monkeypatch.setattr(FakeControl, "make_ingress", made)
    control.there[3] = "wlan0"
    backend.absorb()
    assert control.log == []
    assert isinstance(backend._changes, FakeChanges)
    backend._changes.changed = True
    backend.absorb()
    assert "make-ingress 3" in control.log
    assert control.log.count("add-filter") == AT_A_WIRE
    assert {traces["clsact"] for traces in entered} == {"lo:1 wlan0:3"}


def changed(backend: PlugBackend) -> None:
    """Have it look at what has changed."""
    assert isinstance(backend._changes, FakeChanges)
    backend._changes.changed = True
    backend.absorb()


def test_a_device_that_becomes_a_port_diverts_nothing_any_more(control: FakeControl) -> None:
    backend = held(control)
    control.ports = {2}
    changed(backend)
    assert {found.device for found in control.installed if found.handle != 1} == {1}
    control.ports = set()
    changed(backend)
    assert {found.device for found in control.installed if found.handle != 1} == {1, 2}
    backend.open()
    backend.remove()
    assert len(control.installed) == 1
    assert control.ingress == {2}


def test_a_port_keeps_no_clsact_of_ours(control: FakeControl) -> None:
    control.there[3] = "eth1"
    backend = held(control)
    control.ports = {3}
    changed(backend)
    backend.open()
    backend.remove()
    assert control.ingress == {2}


@pytest.mark.parametrize("is_named", [False, True])
def test_a_device_that_goes_while_it_gets_its_filters_keeps_the_others_from_nothing(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch, is_named: bool
) -> None:
    """Unless it was asked for by its name."""
    add_filter = FakeControl.add_filter

    def added(self: FakeControl, syns: SynFilter, where: Installed, action: bytes) -> None:
        if where.device == 3:
            self.there.pop(3, None)
            raise KernelError("add a filter", errno.ENODEV)
        add_filter(self, syns, where, action)

    monkeypatch.setattr(FakeControl, "add_filter", added)
    control.there |= {3: "veth7", 4: "veth8"}
    backend = PlugBackend(replace(SPEC, devices=("veth7", "veth8") if is_named else ()))
    with pytest.raises(KernelError, match="ENODEV") if is_named else nullcontext():
        backend.arm()
    if not is_named:
        backend.hold()
        assert {one.device for one in control.installed} == {1, 2, 4}
        assert backend.remarks == ()
    backend.close()
    assert control.ingress == {2}


def test_a_device_of_which_the_ledger_does_not_know_yet_is_the_next_change(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is put on it must be found after a crash."""
    monkeypatch.setattr(plug, "note_traces", lambda *_: control.there.setdefault(3, "eth1"))
    backend = held(control)
    assert 3 not in control.ingress
    changed(backend)
    assert 3 in control.ingress
    backend.close()


def test_changes_that_could_not_be_followed_are_tried_again(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = held(control)
    control.there[3] = "eth1"
    control.refused.add("set-up")
    changed(backend)
    assert [told for told in backend.remarks if "is not held: set-up" in told]
    control.refused.clear()
    backend.check_for_loss()
    assert 3 not in control.ingress, "not at once"
    monkeypatch.setattr(backend, "_follow_again_s", 0.0)
    backend.check_for_loss()
    assert 3 in control.ingress
    assert backend.remarks == ()


@pytest.mark.parametrize("is_dead", [False, True])
def test_a_device_of_the_runs_that_somebody_has_renamed_is_removed(
    control: FakeControl, is_dead: bool
) -> None:
    backend = held(control)
    traces = backend.traces()
    control.there[9] = "theirs"
    if is_dead:
        PlugBackend(SPEC).clean_up_after_death(traces)
    else:
        backend.open()
        backend.remove()
    assert control.there == {1: "lo", 2: "eth0"}
    assert "open-plug" in control.log


def test_a_device_that_goes_is_forgotten(control: FakeControl) -> None:
    control.there[3] = "eth1"
    backend = held(control)
    del control.there[3]
    control.installed = [found for found in control.installed if found.device != 3]
    changed(backend)
    backend.remove()
    assert len(control.installed) == 1


def test_filters_that_somebody_removes_are_put_back_and_told(control: FakeControl) -> None:
    backend = held(control)
    before = sorted((one.device, one.preference) for one in control.installed)
    control.installed = [one for one in control.installed if one.handle in (1, SPEC.probe_mark)]
    changed(backend)
    assert sorted((one.device, one.preference) for one in control.installed) == before
    assert any("removed filters of the hold" in remark for remark in backend.remarks)
    backend.open()
    backend.remove()
    assert len(control.installed) == 1


def test_our_clsact_is_put_back_with_its_filters(control: FakeControl) -> None:
    backend = held(control)
    flow = ip_address("10.0.0.9").packed + ip_address("10.0.0.1").packed + struct.pack(">HH", 4, 80)
    backend.let_through(Flow(flow))
    there = len([one for one in control.installed if one.device == 1])
    control.ingress.discard(1)
    control.installed = [one for one in control.installed if one.device != 1]
    changed(backend)
    assert "make-ingress 1" in control.log
    assert len([one for one in control.installed if one.device == 1]) == there
    backend.open()
    backend.remove()
    assert control.ingress == {2}


def test_somebody_elses_qdisc_is_not_put_back_but_used_when_it_comes_again(
    control: FakeControl,
) -> None:
    backend = held(control)
    foreign = [one for one in control.installed if one.handle == 1]
    control.ingress.discard(2)
    control.installed = [one for one in control.installed if one.device != 2]
    changed(backend)
    changed(backend)
    assert 2 not in control.ingress
    control.ingress.add(2)
    control.installed += foreign
    changed(backend)
    assert len([one for one in control.installed if one.device == 2]) == 1 + AT_A_WIRE
    assert len(backend.remarks) == 1


def test_a_filter_that_was_not_added_is_not_removed(control: FakeControl) -> None:
    """Of a device whose block is shared: there it cannot be removed either, nor be."""
    backend = PlugBackend(SPEC)
    control.refused = {"add-filter", "remove-filter"}
    with pytest.raises(KernelError, match="add-filter"):
        backend.arm()
    backend.close()
    assert len(control.installed) == 1
    assert 9 not in control.there
    assert control.ingress == {2}


def test_what_closing_leaves_is_told(control: FakeControl) -> None:
    backend = PlugBackend(SPEC)
    backend.arm()
    control.refused = {"remove-ingress"}
    with pytest.raises(ReleaseError, match="the clsact of lo is still there"):
        backend.close()
    assert len(control.installed) == 1
    assert 9 not in control.there, "all else is gone"
    assert control.log[-1] == "close"


def test_a_device_that_can_have_no_filters_is_told_and_the_others_are_held(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = held(control)
    add_filter = FakeControl.add_filter

    def added(self: FakeControl, syns: SynFilter, where: Installed, action: bytes) -> None:
        if where.device == 3:
            raise KernelError("add a filter", 95, detail="the block is shared")
        add_filter(self, syns, where, action)

    monkeypatch.setattr(FakeControl, "add_filter", added)
    control.there |= {3: "la0", 4: "lb0"}
    control.ingress.add(3)
    for _ in range(2):
        changed(backend)
    assert len([one for one in control.installed if one.device == 4]) == AT_A_WIRE
    (told,) = backend.remarks
    assert "la0" in told
    assert "the block is shared" in told
    backend.open()
    backend.remove()
    assert len(control.installed) == 1
    assert control.ingress == {2, 3}


def test_a_ledger_that_cannot_be_written_leaves_the_kernel_as_it_is(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = held(control)

    def full(_run_id: str, _traces: dict[str, str]) -> None:
        raise SynplugError("no space left on device")

    monkeypatch.setattr(plug, "note_traces", full)
    control.there[3] = "eth1"
    changed(backend)
    assert control.log == ["set-up"]
    assert "no space left" in backend.remarks[0]


def test_a_dead_keepers_clsact_is_known_by_the_index_of_its_device(control: FakeControl) -> None:
    """One that has another name has it still; one of that name that came later has its own."""
    traces = held(control).traces()
    control.there[1] = "lo0"
    control.there[4] = "lo"
    control.ingress.add(4)
    PlugBackend(SPEC).clean_up_after_death(traces)
    assert control.ingress == {2, 4}


def test_a_dead_keepers_clsact_that_does_not_go_is_told(control: FakeControl) -> None:
    traces = held(control).traces()
    control.refused = {"remove-ingress"}
    with pytest.raises(ReleaseError, match="the clsact of lo is still there"):
        PlugBackend(SPEC).clean_up_after_death(traces)


def test_an_ingress_qdisc_in_the_place_of_our_clsact_is_not_ours(control: FakeControl) -> None:
    """Somebody took ours away and made theirs: as of a clsact it is refused to remove it."""
    backend = held(control)
    control.one_sided = {1}
    control.refused = {"remove-ingress"}
    backend.open()
    backend.remove()
    assert control.ingress == {1, 2}
    assert 9 not in control.there


def test_filters_of_others_that_come_during_the_hold_are_told(control: FakeControl) -> None:
    backend = held(control)
    assert not backend.remarks
    control.installed.append(Installed(1, flower.INGRESS, 5, 9 << 16 | 0x0300, flower.FLOWER))
    changed(backend)
    (behind,) = backend.remarks
    assert "behind those of the hold (preference 9)" in behind


def test_filters_of_others_before_and_behind_ours_are_told(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    every, arp = 0x0300, 0x0608  # struct tcmsg has them in network order
    control.installed += [
        Installed(2, flower.INGRESS, 5, 1 << 16 | every, flower.FLOWER),
        Installed(2, flower.INGRESS, 5, 2 << 16 | arp, flower.FLOWER),
        Installed(1, flower.INGRESS, 5, 9 << 16 | every, flower.FLOWER),
    ]
    impossible = entered("no run", {"clsact": "eth0:x lo:"})
    monkeypatch.setattr(diversion, "entries", lambda: [impossible])
    backend = PlugBackend(replace(SPEC, backend=BackendName.PLUG))
    backend.arm()
    behind, before = sorted(backend.remarks, key=lambda words: "on eth0 " in words)
    assert "on lo " in behind
    assert "behind those of the hold (preference 9)" in behind
    assert "on eth0 " in before
    assert "before those of the hold (preference 1)" in before


def test_what_comes_before_the_filters_or_is_passed_by_is_told(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    for told in ("hook_remarks", "tcx_remarks"):
        monkeypatch.setattr(
            notes,
            told,
            lambda devices, side, told=told: [
                f"{told} {device.name} {side == flower.INGRESS}" for device in devices
            ],
        )
    backend = PlugBackend(replace(SPEC, backend=BackendName.PLUG))
    backend.arm()
    backend.hold()
    assert set(backend.remarks) == {
        f"{told} {name} True" for told in ("hook_remarks", "tcx_remarks") for name in ("lo", "eth0")
    }
    changed(backend)
    assert len(backend.remarks) == 4, "each is told once"
    unasked = PlugBackend(SPEC)
    with pytest.raises(UnsupportedError, match="hook_remarks lo") as refused:
        unasked.arm()
    assert "--backend plug" in refused.value.remedy
    unasked.close()


def test_what_changes_after_the_release_is_not_diverted(control: FakeControl) -> None:
    backend = held(control)
    backend.open()
    control.there[3] = "eth1"
    changed(backend)
    assert len(control.installed) == 1


def test_what_has_changed_before_the_hold_is_diverted_in_it(control: FakeControl) -> None:
    backend = PlugBackend(SPEC)
    backend.arm()
    assert isinstance(backend._changes, FakeChanges)
    control.there[3] = "eth1"
    backend._changes.changed = True
    control.log.clear()
    backend.hold()
    assert 3 in {found.device for found in control.installed}, "when it is said that SYNs wait"
    assert control.log[-1] == "close-plug", "what it brings does not wait for the others"


def test_the_device_is_set_up_again_before_it_holds(control: FakeControl) -> None:
    """SYNs pass by the device then: nobody connects if it is down."""
    backend = PlugBackend(SPEC)
    backend.arm()
    control.there[3] = "eth1"
    control.log.clear()
    changed(backend)
    assert control.log == ["set-up"]
    backend.hold()
    assert 3 in {found.device for found in control.installed}, "that has had time"


def test_what_could_not_be_followed_before_it_holds_is_followed_then(control: FakeControl) -> None:
    backend = PlugBackend(SPEC)
    backend.arm()
    control.there[3] = "eth1"
    control.refused.add("set-up")
    changed(backend)
    control.refused.clear()
    backend.hold()
    assert 3 in {found.device for found in control.installed}
    assert not backend.remarks


def test_a_device_that_goes_before_it_holds_is_no_black_hole_and_no_hold(
    control: FakeControl,
) -> None:
    backend = PlugBackend(SPEC)
    backend.arm()
    control.state = None
    changed(backend)
    assert len(control.installed) == 1, "nothing is redirected to nowhere"
    with pytest.raises(KernelError, match="removed synplug0123abcd, or its plug"):
        backend.hold()
    assert backend.counts() == HoldCounts()


def test_a_device_that_goes_while_it_is_told_to_hold_is_no_hold(control: FakeControl) -> None:
    backend = PlugBackend(SPEC)
    backend.arm()
    control.state = None
    with pytest.raises(KernelError, match="removed synplug0123abcd, or its plug"):
        backend.hold()
    backend.close()
    assert len(control.installed) == 1


def test_a_device_that_goes_when_nobody_waits_is_told(control: FakeControl) -> None:
    """Who comes from there on does not wait."""
    backend = held(control)
    control.state = None
    changed(backend)
    backend.open()
    assert backend.counts().lost == 0
    assert any("new connections do not wait there" in told for told in backend.remarks)


@pytest.mark.parametrize("is_noticed", [True, False])
def test_a_device_that_goes_just_before_the_release_is_a_loss_that_is_told(
    control: FakeControl, is_noticed: bool
) -> None:
    """By its notice, or since its plug does not open."""
    backend = held(control)
    control.state = PlugState(waiting=4, passed=0, dropped=0, waiting_bytes=296)
    backend.check_for_loss()
    control.state = None
    control.refused.add("open-plug")
    if is_noticed:
        changed(backend)
    backend.open()
    backend.confirm_empty()
    assert len(control.installed) == 1
    assert backend.counts().lost == 4
    assert any("4 held SYNs were dropped by somebody else" in told for told in backend.remarks)


def test_filters_are_removed_that_are_not_noted_any_more(control: FakeControl) -> None:
    backend = held(control)
    backend._diversion._filters.clear()
    backend.open()
    backend.remove()
    assert len(control.installed) == 1
    assert 9 not in control.there


def test_the_target_stays_as_long_as_something_is_sent_to_it(control: FakeControl) -> None:
    backend = held(control)
    control.refused.add("remove-filter")
    with pytest.raises(ReleaseError, match="remove-filter"):
        backend.remove()
    assert 9 in control.there
    control.refused.clear()
    backend.remove()
    assert len(control.installed) == 1
    assert 9 not in control.there


def test_a_filter_that_does_not_go_is_told(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = held(control)
    monkeypatch.setattr(FakeControl, "remove_filter", lambda *_: None)
    with pytest.raises(ReleaseError, match="filters are still there"):
        backend.remove()
    assert 9 in control.there


def test_a_connection_of_our_own_is_let_through_before_it_could_be_held(
    control: FakeControl,
) -> None:
    backend = held(control)
    before = len(control.installed)
    backend.let_through(own(4000))
    added = control.installed[before:]
    assert [where.device for where in added] == [1], "by lo, whatever the address"
    for where in added:
        held_at = [
            found.preference
            for found in control.installed[:before]
            if found.device == where.device and found.handle >> 12 == 0x123A
        ]
        assert where.preference < min(held_at)
        assert b"gact" in control.actions[where.device, where.handle]
        sought = control.sought[where.device, where.handle]
        assert sought.source == (ip_network("127.0.0.1"), 4000)
        assert (sought.destination, sought.port) == (ip_network("127.0.0.1"), 80)


def own(port: int) -> Flow:
    """A connection of the machine's to itself."""
    return Flow(ip_address("127.0.0.1").packed * 2 + struct.pack(">HH", port, 80))


def test_many_devices_leave_room_for_many_connections_of_our_own(control: FakeControl) -> None:
    control.there |= {100 + number: f"cali{number}" for number in range(100)}
    backend = held(control)
    for port in range(200):
        backend.let_through(own(4000 + port))
    diverted = AT_LOOPBACK + 101 * AT_A_WIRE + 1
    assert len(control.installed) == 1 + diverted + 200
    assert (backend.counts().let_through, backend.remarks) == (200, ())


@pytest.mark.parametrize("is_full", [False, True])
def test_a_connection_of_our_own_that_waits_all_the_same_is_told(
    control: FakeControl, is_full: bool
) -> None:
    backend = held(control)
    if is_full:
        backend._diversion._next_handle += MOST_FILTERS
    else:
        control.refused.add("add-filter")
    backend.let_through(own(4000))
    assert backend.counts().let_through == 0
    (told,) = backend.remarks
    assert told.startswith("connections of the restart's own wait with the others: ")


def test_a_connection_of_our_own_in_a_vrf_is_let_through(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes by the VRF's device, as others' do by lo."""
    there = [
        Device(index=1, name="lo"),
        Device(index=2, name="eth0"),
        Device(index=3, name="red", is_vrf=True),
    ]
    monkeypatch.setattr(FakeControl, "devices", lambda _self: there)
    backend = held(control)
    before = len(control.installed)
    backend.let_through(own(4000))
    assert [where.device for where in control.installed[before:]] == [1, 3]


@pytest.mark.parametrize("stage", ["made", "armed", "held", "opened", "removed"])
def test_close_undoes_everything_from_anywhere(control: FakeControl, stage: str) -> None:
    backend = PlugBackend(SPEC)
    steps: dict[str, Callable[[], object]] = {"armed": backend.arm, "held": backend.hold}
    steps |= {"opened": backend.open, "removed": backend.remove}
    for name, step in steps.items():
        if stage == "made":
            break
        step()
        if name == stage:
            break
    backend.close()
    assert control.there == {1: "lo", 2: "eth0"}
    assert control.ingress == {2}
    assert len(control.installed) == 1


def test_a_run_that_never_held_leaves_nothing(control: FakeControl) -> None:
    backend = PlugBackend(SPEC)
    backend.arm()
    backend.remove()
    backend.close()
    assert control.there == {1: "lo", 2: "eth0"}
    assert control.ingress == {2}
    assert len(control.installed) == 1


def test_what_a_dead_keeper_left_is_found_by_its_run(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = held(control)
    other = HoldSpec(endpoints=SPEC.endpoints, run_id="ffff0000")
    traces = backend.traces()
    handle = int(PlugBackend(other).traces()["filters"].split()[1], 16)
    alive = Installed(2, flower.INGRESS, handle, 40 << 16, flower.FLOWER)
    control.installed.append(alive)
    control.state = PlugState(2, 0, 0, 148)
    monkeypatch.setattr(FakeControl, "open_plug", lambda *_: setattr(control, "state", EMPTY))
    removed = PlugBackend(
        HoldSpec(endpoints=(Endpoint(port=1),), run_id="0123abcd")
    ).clean_up_after_death(traces)
    assert removed == [
        f"{AT_LOOPBACK + AT_A_WIRE + 1} tc filters",
        "the clsact of lo",
        "the device synplug0123abcd with its plug, whose 2 SYNs were let go",
    ]
    assert not PlugBackend(SPEC).clean_up_after_death(traces), "a second time"
    assert alive in control.installed
    control.installed.remove(alive)
    assert len(control.installed) == 1
    assert control.there == {1: "lo", 2: "eth0"}
    assert control.ingress == {2}


@pytest.mark.parametrize("is_dead", [False, True])
def test_somebody_elses_filter_with_a_handle_of_the_runs_stays(
    control: FakeControl, is_dead: bool
) -> None:
    """The first u32 of tc(8) has 0x80000800; and two runs may have the same handles."""
    spec = HoldSpec(endpoints=SPEC.endpoints, run_id="80000123")
    others = [
        Installed(2, flower.INGRESS, 0x80000800, 40 << 16, "u32"),
        Installed(1, flower.INGRESS, 0x80000001, 41 << 16, flower.FLOWER, target=8),
        Installed(1, flower.INGRESS, spec.probe_mark, 7 << 16, "u32"),
    ]
    control.installed += others
    backend = PlugBackend(spec)
    backend.arm()
    backend.hold()
    if is_dead:
        removed = PlugBackend(spec).clean_up_after_death(backend.traces())
        assert not any("clsact" in words for words in removed), "others use it now"
    else:
        backend.open()
        backend.remove()
    assert control.installed[1:] == others
    assert control.ingress == {1, 2}, "lo's clsact is in use"
    del control.installed[1:]


class Killed(BaseException):
    """The process ends between two changes of the kernel."""


@pytest.mark.parametrize("changes", range(2 * len(LOCAL) + 5))
def test_what_a_keeper_left_that_was_killed_while_it_armed_is_found(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch, changes: int
) -> None:
    """Whatever of it was there: a mark has no handle that tells whose it is."""
    backend = PlugBackend(SPEC)
    traces = backend.traces()
    with monkeypatch.context() as alive:
        kill_after(alive, changes)
        with suppress(Killed):
            backend.arm()
    PlugBackend(SPEC).clean_up_after_death(traces)
    assert control.there == {1: "lo", 2: "eth0"}
    assert control.ingress == {2}
    assert len(control.installed) == 1


@pytest.mark.parametrize("changes", range(2 * len(LOCAL) + 5))
def test_what_a_killed_cleanup_left_is_found_by_the_next(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch, changes: int
) -> None:
    traces = held(control).traces()
    with monkeypatch.context() as alive:
        kill_after(alive, changes)
        with suppress(Killed):
            PlugBackend(SPEC).clean_up_after_death(traces)
    PlugBackend(SPEC).clean_up_after_death(traces)
    assert control.there == {1: "lo", 2: "eth0"}
    assert control.ingress == {2}
    assert len(control.installed) == 1


def kill_after(alive: pytest.MonkeyPatch, changes: int) -> None:
    """Let it change the kernel so often."""
    left = [changes]
    change = FakeControl._do

    def last(self: FakeControl, what: str) -> None:
        if not left[0]:
            raise Killed
        left[0] -= 1
        change(self, what)

    alive.setattr(FakeControl, "_do", last)


CHANGES = ("make_ifb", "make_plug", "make_ingress", "add_filter", "pass_mark")


@pytest.mark.parametrize("number", range(2 * len(LOCAL) + 4))
def test_what_was_made_though_its_answer_was_lost_is_removed(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The kernel had no memory left for the answer (ENOBUFS)."""
    left = [number]
    for name in CHANGES:
        lose_the_answer(monkeypatch, name, left)
    backend = PlugBackend(SPEC)
    with suppress(KernelError):
        backend.arm()
        backend.hold()
        backend.open()
    assert left[0] < 0, "it was lost"
    backend.close()
    assert control.there == {1: "lo", 2: "eth0"}
    assert control.ingress == {2}
    assert len(control.installed) == 1


def lose_the_answer(monkeypatch: pytest.MonkeyPatch, name: str, left: list[int]) -> None:
    """Of one of these changes, after so many others."""
    change = getattr(FakeControl, name)

    def losing(*arguments: Any, **options: Any) -> Any:
        result = change(*arguments, **options)
        if name != "make_ingress" or result:  # else nothing was changed
            left[0] -= 1
            if left[0] == -1:
                raise KernelError(name, errno.ENOBUFS)
        return result

    monkeypatch.setattr(FakeControl, name, losing)


def test_a_mark_whose_removal_is_refused_once_is_removed(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing stands beside it any more that tells whose it is."""
    backend = held(control)
    refuse_once(monkeypatch, SPEC.probe_mark)
    backend.remove()
    assert len(control.installed) == 1
    assert control.ingress == {2}


def refuse_once(monkeypatch: pytest.MonkeyPatch, handle: int) -> None:
    refused: list[Installed] = []
    remove = FakeControl.remove_filter

    def refusing(self: FakeControl, where: Installed) -> None:
        if where.handle == handle and not refused:
            refused.append(where)
            raise KernelError("remove a filter", errno.ENOBUFS)
        remove(self, where)

    monkeypatch.setattr(FakeControl, "remove_filter", refusing)


@pytest.mark.parametrize("at_loopback", [False, True])
def test_the_words_of_it_remove_nobody_elses_clsact(at_loopback: bool) -> None:
    lines = equivalent_commands(
        HoldSpec(
            endpoints=(Endpoint(port=80), Endpoint(port=81)),
            run_id="0123abcd",
            backend=BackendName.PLUG,
            loopback_egress=at_loopback,
        )
    )
    where = "lo egress" if at_loopback else "DEV ingress"
    assert not [line for line in lines if line.startswith("tc qdisc del")]
    assert lines.count(f"tc filter del dev {where} protocol ip pref N handle N flower") == 1
    assert lines.count(f"tc filter del dev {where} protocol ipv6 pref N handle N flower") == 1
    tagged = [line for line in lines if "protocol 802.1Q" in line]
    assert len(tagged) == (0 if at_loopback else 2 * 2 + 1), "two ports, two families"
    marked = [line for line in lines if line.startswith("tc filter add dev lo") and " fw " in line]
    assert len(marked) == 1, "a probe does not wait for its own release"


def test_the_words_of_it_for_named_devices_have_what_befits_each() -> None:
    def lines_of(*devices: str) -> str:
        spec = HoldSpec(
            endpoints=SPEC.endpoints, run_id="0123abcd", backend=BackendName.PLUG, devices=devices
        )
        return "\n".join(equivalent_commands(spec))

    assert "802.1Q" not in lines_of("lo")
    assert "fw action pass" in lines_of("lo")
    assert "802.1Q" in lines_of("eth0")
    assert "fw action pass" not in lines_of("eth0")


class Refusing:
    """Filters of a kernel that refuses to remove any."""

    def __init__(self, number: int) -> None:
        self._number = number

    def acknowledged(self, action: str, *_: object) -> None:
        raise KernelError(action, self._number)


@pytest.mark.parametrize(
    ("number", "is_gone"), [(errno.ENOENT, True), (errno.EOPNOTSUPP, True), (errno.EPERM, False)]
)
def test_a_filter_is_gone_where_a_shared_block_is_now(number: int, is_gone: bool) -> None:
    control = TrafficControl.__new__(TrafficControl)
    control._netlink = Refusing(number)  # type: ignore[assignment]
    with nullcontext() if is_gone else pytest.raises(KernelError):
        control.remove_filter(Installed(2, flower.INGRESS, 5, 1 << 16, flower.FLOWER))


class Route:
    """A socket of pyroute2's: what could not be read once refuses everything, and its own end."""

    is_broken = True

    def __init__(self) -> None:
        self.refuses = Route.is_broken
        Route.is_broken = False

    def get_links(self) -> list[dict[str, object]]:
        if self.refuses:
            raise OSError(errno.ENOBUFS, "no room")
        return []

    def close(self) -> None:
        self.get_links()


def test_a_routing_socket_that_refuses_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyroute2.IPRoute", Route)
    control = TrafficControl("synplug")
    with pytest.raises(KernelError, match="ENOBUFS"):
        control.devices()
    assert control.devices() == []
    control.close()


# --- the messages


def test_the_keys_of_a_filter() -> None:
    syns = SynFilter(destination=ip_network("10.1.0.0/16"), port=8080)
    where = flower.place(syns, device=5, preference=7, handle=0x123001)
    message = flower.message(syns, where, flower.redirect(9))
    assert struct.unpack_from("=iII", message, 4) == (5, 0x123001, flower.INGRESS)
    (info,) = struct.unpack_from("=I", message, 16)
    assert (info >> 16, struct.pack("=H", info & 0xFFFF)) == (7, b"\x08\x00")
    found = dict(attributes(message[20:]))
    assert bytes(found[1]) == b"flower\0"
    keys = {kind: bytes(payload) for kind, payload in attributes(found[2])}
    assert keys[8] == b"\x08\x00"  # TCA_FLOWER_KEY_ETH_TYPE
    assert keys[9] == b"\x06"  # TCA_FLOWER_KEY_IP_PROTO
    assert keys[12] + keys[13] == bytes([10, 1, 0, 0, 255, 255, 0, 0])  # _KEY_IPV4_DST, _MASK
    assert keys[19] == (8080).to_bytes(2, "big")  # TCA_FLOWER_KEY_TCP_DST
    assert (keys[71], keys[72]) == (b"\x00\x02", b"\x00\x17")  # _KEY_TCP_FLAGS, _MASK
    assert not {23, 25} & keys.keys(), "no tag"
    (action,) = [payload for _, payload in attributes(keys[3])]
    parts = dict(attributes(action))
    assert bytes(parts[1]) == b"mirred\0"
    (parameters,) = [payload for _, payload in attributes(parts[2])]
    _, _, verdict, _, _, way, device = struct.unpack("=IIiiiiI", parameters)
    assert (verdict, way, device) == (4, 1, 9)  # TC_ACT_STOLEN, TCA_EGRESS_REDIR


@pytest.mark.parametrize(("action", "target"), [(flower.redirect(9), 9), (flower.accept(), 0)])
def test_a_filter_as_the_kernel_shows_it(action: bytes, target: int) -> None:
    syns = SynFilter(destination=ip_network("10.1.0.0/16"), port=8080)
    where = flower.place(syns, device=5, preference=7, handle=0x123001)
    shown = flower.installed(memoryview(flower.message(syns, where, action)))
    assert shown == where._replace(target=target)
    mark = flower.mark_place(0x77, device=5, preference=7)
    assert flower.installed(memoryview(flower.mark_message(mark))) == mark


def test_a_filter_that_is_removed_is_named_with_its_kind() -> None:
    mark = flower.mark_place(0x77, device=5, preference=7)
    assert bytes(dict(attributes(mark.place()[20:]))[1]) == b"fw\0"


def test_the_keys_of_a_filter_for_frames_with_a_priority_tag() -> None:
    syns = SynFilter(destination=ip_network("::1/128"), port=8080, is_tagged=True)
    where = flower.place(syns, device=5, preference=7, handle=0x123001)
    message = flower.message(syns, where, flower.redirect(9))
    assert where.protocol == 0x8100
    keys = {kind: bytes(payload) for kind, payload in attributes(dict(attributes(message[20:]))[2])}
    assert keys[8] == b"\x81\x00"  # TCA_FLOWER_KEY_ETH_TYPE
    assert keys[23] == b"\0\0"  # TCA_FLOWER_KEY_VLAN_ID
    assert keys[25] == b"\x86\xdd"  # TCA_FLOWER_KEY_VLAN_ETH_TYPE
    assert keys[16] == bytes(15) + b"\x01"  # TCA_FLOWER_KEY_IPV6_DST


# --- what a device has to send


@pytest.mark.parametrize("backend_name", [BackendName.PLUG, BackendName.AUTO])
def test_what_a_device_has_to_send_is_waited_for(
    control: FakeControl, backend_name: BackendName
) -> None:
    """A clsact that is put on, or taken off, drops it."""
    control.sending = [{1}, {1}, set(), {1}, {1}]
    backend = PlugBackend(replace(SPEC, backend=backend_name))
    backend.arm()
    assert control.looks_at_queues == 3, "of all at once, then of the one that has something"
    assert backend.remarks == ()
    backend.hold()
    backend.open()
    backend.remove()
    assert control.looks_at_queues == 6
    assert control.ingress == {2}


@pytest.mark.parametrize("at", ["the beginning", "the end"])
def test_what_a_device_has_to_send_is_not_waited_for_for_ever(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    monkeypatch.setattr(diversion, "PATIENCE_S", 0.01)
    monkeypatch.setattr(remains, "PATIENCE_AT_THE_END_S", 0.01)
    backend = PlugBackend(replace(SPEC, backend=BackendName.PLUG))
    control.sending = [{1}] * 1000 if at == "the beginning" else []
    backend.arm()
    control.sending = [{1}] * 1000
    backend.hold()
    backend.open()
    backend.remove()
    assert control.ingress == {2}
    told = [words for words in backend.remarks if "what lo had to send may have been" in words]
    assert len(told) == (at == "the beginning")


def test_where_it_cannot_be_seen_what_a_device_sends_nothing_is_waited_for(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_devices: Collection[int]) -> set[int]:
        raise KernelError("look", 105)

    monkeypatch.setattr(control, "to_send", refuse)
    backend = held(control)
    backend.open()
    backend.remove()
    assert control.ingress == {2}


@pytest.mark.parametrize("protocol", [0x0003, 0x0800, 0x86DD, 0x8100])
@pytest.mark.parametrize("preference", [1, 9], ids=["before ours", "behind ours"])
def test_auto_passes_over_a_plug_beside_others_filters_before_it_puts_anything_in(
    control: FakeControl, protocol: int, preference: int
) -> None:
    """Those before it may take SYNs that are to be held; those behind do not see those held."""
    info = preference << 16 | socket.htons(protocol)
    control.installed.append(Installed(2, flower.INGRESS, 5, info, flower.FLOWER))
    backend = PlugBackend(SPEC)
    with pytest.raises(UnsupportedError, match="on eth0 filters of somebody else"):
        backend.arm()
    assert control.log == []
    backend.close()
    asked = PlugBackend(replace(SPEC, backend=BackendName.PLUG))
    asked.arm()
    assert len(asked.remarks) == 1
    asked.close()
    assert control.installed.pop().handle == 5


@pytest.mark.parametrize("loopback_egress", [True, False])
def test_what_local_clients_send_is_counted_as_such(
    control: FakeControl, *, loopback_egress: bool
) -> None:
    """Only where nothing else is held can that be told."""
    backend = PlugBackend(replace(SPEC, loopback_egress=loopback_egress))
    backend.arm()
    backend.hold()
    control.state = PlugState(waiting=5, passed=0, dropped=0, waiting_bytes=370)
    assert backend.waiting() == 5
    assert (backend.counts().held, backend.counts().held_local) == (5, 5 * loopback_egress)
    control.state = PlugState(waiting=0, passed=5, dropped=0, waiting_bytes=0)
    backend.close()


def test_devices_that_are_never_empty_at_once_are_waited_for_one_by_one(
    control: FakeControl,
) -> None:
    """And one that has nothing to send is seen to first, right after the look."""
    control.there[3] = "eth1"
    control.sending = [{1, 3}, {1, 3}, {3}, {1, 3}, {1}]
    backend = PlugBackend(replace(SPEC, backend=BackendName.PLUG))
    backend.arm()
    assert backend.remarks == ()
    assert control.looks_at_queues == 5
    backend.close()


def test_a_clsact_of_ours_is_put_back_when_nothing_is_to_be_sent(control: FakeControl) -> None:
    backend = held(control)
    control.ingress.discard(1)
    control.installed = [one for one in control.installed if one.device != 1]
    control.sending = [{1}, {1}, set()]
    looks = control.looks_at_queues
    changed(backend)
    assert control.looks_at_queues == looks + 3
    assert "make-ingress 1" in control.log
    backend.close()
    assert control.ingress == {2}


@pytest.mark.parametrize("whose", ["somebody else's", "another run's"])
def test_a_clsact_that_comes_while_we_wait_is_whose_it_is(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    """The last run that goes removes one of runs; nobody removes another's."""
    other = entered("89ab0000", {"clsact": "lo:1"})

    def to_send(_devices: Collection[int]) -> set[int]:
        if 1 not in control.ingress and not control.installed[1:]:
            control.ingress.add(1)
            if whose == "another run's":
                monkeypatch.setattr(diversion, "entries", lambda: [other])
        return set()

    monkeypatch.setattr(control, "to_send", to_send)
    backend = held(control)
    assert "make-ingress 1" not in control.log
    backend.close()
    assert control.ingress == ({1, 2} if whose == "somebody else's" else {2})


def test_a_device_that_has_begun_to_send_since_is_waited_for(control: FakeControl) -> None:
    """What was queued when the first of many devices had its turn says nothing of the last."""
    control.there |= {3: "eth1", 4: "eth2"}
    control.sending = [set(), set(), {3}, set(), {4}, {4}, set()]
    seen: list[str] = []
    make_ingress, to_send = control.make_ingress, control.to_send

    def made(device: int, *, side: int = flower.INGRESS) -> bool:
        seen.append(f"on {device}")
        return make_ingress(device, side=side)

    def looked(devices: Collection[int]) -> set[int]:
        seen.append("busy" if (found := to_send(devices)) else "idle")
        return found

    control.make_ingress, control.to_send = made, looked  # type: ignore[method-assign]
    backend = PlugBackend(replace(SPEC, backend=BackendName.PLUG))
    backend.arm()
    assert seen == ["idle", "idle", "on 1", "busy", "idle", "on 3", "busy", "busy", "idle", "on 4"]
    backend.close()


def test_what_is_sent_to_an_address_that_has_gone_is_diverted_no_more(
    control: FakeControl,
) -> None:
    """It may be another machine's now, and this one forwards to it."""
    control.more_local = {ip_network("192.0.2.7/32")}
    backend = held(control)
    to_it = [key for key, syns in control.sought.items() if "192.0.2.7/32" in str(syns.destination)]
    others = len(control.installed) - len(to_it)
    assert len(to_it) == 3, "by lo; by eth0 with and without a tag"
    control.more_local = set()
    changed(backend)
    assert len(control.installed) == others
    assert not {(one.device, one.handle) for one in control.installed} & set(to_it)
    control.more_local = {ip_network("192.0.2.7/32")}
    changed(backend)
    assert len(control.installed) == others + 3
    backend.close()


@pytest.mark.parametrize("named", ["", "lo", "loopback-egress"])
def test_what_nat_may_translate_on_its_way_out_is_not_diverted_unless_that_is_asked_for(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    """It could not connect as long as the filters are there."""
    monkeypatch.setattr(reach, "translations", lambda hook: ["ip nat OUTPUT"] * (hook == LEAVING))
    spec = replace(
        SPEC,
        backend=BackendName.PLUG,
        devices=("lo",) if named == "lo" else (),
        loopback_egress=named == "loopback-egress",
    )
    backend = PlugBackend(spec)
    backend.arm()
    (told,) = (words for words in backend.remarks if "ip nat OUTPUT" in words)
    filtered = {one.device for one in control.installed if one.handle > 1}
    if named:
        assert filtered == {1}
        assert "connections from this host that ip nat OUTPUT translates" in told
    else:
        assert filtered == {2}
        assert told.startswith("connections from this host are not held: ip nat OUTPUT may")
    backend.close()
    asked_by_auto = PlugBackend(replace(spec, backend=BackendName.AUTO))
    with pytest.raises(UnsupportedError, match="ip nat OUTPUT"):
        asked_by_auto.arm()
    asked_by_auto.close()


@pytest.mark.parametrize("when", ["before the hold", "while it holds"])
def test_nat_that_comes_later_takes_the_filters_from_this_hosts_own_connections(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """As when Docker starts meanwhile: its devices are a change."""
    chains: list[str] = []
    monkeypatch.setattr(reach, "translations", lambda hook: chains * (hook == LEAVING))
    backend = PlugBackend(SPEC)
    backend.arm()
    if when != "before the hold":
        backend.hold()
    assert {one.device for one in control.installed if one.handle > 1} == {1, 2}
    chains.append("ip nat OUTPUT")
    if when == "before the hold":
        backend.hold()
    else:
        changed(backend)
    assert {one.device for one in control.installed if one.handle > 1} == {2}
    assert [words for words in backend.remarks if "ip nat OUTPUT" in words]
    changed(backend)
    assert {one.device for one in control.installed if one.handle > 1} == {2}, "and keeps them off"
    backend.open()
    backend.remove()
    assert "remove-ingress 1" in control.log, "the place that it had made goes all the same"
    backend.close()


@pytest.mark.parametrize("loopback_egress", [False, True])
def test_what_nat_may_send_elsewhere_behind_the_filters_is_told(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch, *, loopback_egress: bool
) -> None:
    """A published port of a container; what local clients send comes to no such chain."""
    monkeypatch.setattr(
        reach, "translations", lambda hook: ["ip nat PREROUTING"] * (hook == ARRIVING)
    )
    spec = replace(SPEC, backend=BackendName.PLUG, loopback_egress=loopback_egress)
    backend = PlugBackend(spec)
    backend.arm()
    told = [words for words in backend.remarks if "ip nat PREROUTING" in words]
    assert len(told) == (not loopback_egress)
    backend.close()
    asked_by_auto = PlugBackend(replace(SPEC, backend=BackendName.AUTO))
    with pytest.raises(UnsupportedError, match="ip nat PREROUTING"):
        asked_by_auto.arm()
    asked_by_auto.close()


def test_the_keeper_gets_more_time_once_nobody_waits_and_before_the_filters_go(
    control: FakeControl,
) -> None:
    """There may be thousands of them, and what ends it after its deadline does not count them."""
    backend = held(control)
    backend.open(lambda: control.log.append("go-on"))
    order = [control.log.index(step) for step in ("open-plug", "go-on", "remove-filter")]
    assert order == sorted(order)
    backend.close()


def test_changes_that_take_long_to_follow_are_followed_now_and_then(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With hundreds of devices, and changes all the time, the keeper has its deadline to keep."""
    backend = held(control)
    now_s = 100.0
    places = control.places

    def slow() -> Places:
        nonlocal now_s
        now_s += 0.1
        return places()

    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    monkeypatch.setattr(control, "places", slow)
    changed(backend)
    took_s = now_s - 100.0
    dumps = control.dumps
    now_s += 4 * took_s
    control.there[3] = "eth1"
    changed(backend)
    backend.check_for_loss()
    assert control.dumps == dumps
    now_s += took_s
    backend.check_for_loss()
    assert control.dumps > dumps
    assert "make-ingress 3" in control.log
    dumps = control.dumps
    now_s += 10 * took_s
    backend.check_for_loss()
    assert control.dumps == dumps, "nothing is new"
    backend.close()
