"""The run's own connections do not wait for their own release."""

from __future__ import annotations

from collections.abc import Iterable

from synplug.handover.own_connections import OwnConnections
from synplug.model import Flow, HoldSpec
from tests.unit.fakes import HTTP, FakeHold, FakeProcesses, FakeSockets, World

OURS, THEIRS, LATER = (Flow(letter * 12) for letter in (b"o", b"t", b"l"))


class Watched:
    """Process 10 with its child 11, and process 20 of somebody else."""

    def __init__(self, unit: str = "") -> None:
        self.world = World(0.0)
        self.sockets = FakeSockets(self.world)
        self.processes = FakeProcesses(children={10: {11}}, inodes={11: {501}, 20: {601}})
        self.hold = FakeHold(self.world, HoldSpec(endpoints=(HTTP,), run_id="0123abcd"))
        self.own = OwnConnections(
            ports=[80],
            unit=unit,
            sockets=self.sockets,
            processes=self.processes,
            clock=self.world.clock,
        )

    def look(self, roots: Iterable[int] = (10,), after_s: float = 0.01) -> None:
        self.world.now_s += after_s
        self.own.look(list(roots), self.hold)

    @property
    def passed(self) -> list[Flow]:
        return self.hold.passed


def test_connections_of_a_child_pass_and_those_of_others_do_not() -> None:
    watched = Watched()
    watched.sockets.syn_sent = [(501, OURS), (601, THEIRS)]
    watched.look()
    assert watched.passed == [OURS]
    assert watched.sockets.asked_ports == [(80,)]


def test_each_passes_once_and_a_later_one_does_too() -> None:
    watched = Watched()
    watched.sockets.syn_sent = [(501, OURS)]
    watched.look()
    watched.look()
    watched.processes.inodes[11] = {501, 502}
    watched.sockets.syn_sent = [(501, OURS), (502, LATER)]
    watched.look()
    assert watched.passed == [OURS, LATER]


def test_an_inode_that_was_closed_and_used_again_counts_anew() -> None:
    watched = Watched()
    watched.sockets.syn_sent = [(501, OURS)]
    watched.look()
    watched.processes.inodes[11] = set()
    watched.look()
    watched.processes.inodes[11] = {501}
    watched.sockets.syn_sent = [(501, LATER)]
    watched.look()
    assert watched.passed == [OURS, LATER]


def test_a_child_stays_ours_when_its_parent_has_ended() -> None:
    watched = Watched()
    watched.look()
    watched.processes.dead = {10}
    watched.sockets.syn_sent = [(501, OURS)]
    watched.look()
    assert watched.passed == [OURS]


def test_no_sockets_no_look_at_the_connections() -> None:
    watched = Watched()
    watched.processes.inodes = {}
    watched.look()
    assert watched.sockets.asked_ports == []


def test_where_nobody_on_this_host_waits_no_look_at_the_connections() -> None:
    """But at the processes: a child may be one of ours whose parent is gone by then."""
    watched = Watched()
    watched.hold.may_hold_local = False
    watched.sockets.syn_sent = [(501, OURS)]
    watched.look()
    assert watched.sockets.asked_ports == []
    watched.hold.may_hold_local = True
    watched.processes.dead = {10}
    watched.look()
    assert watched.passed == [OURS]


def test_it_looks_every_few_milliseconds_only() -> None:
    watched = Watched()
    watched.look()
    watched.sockets.syn_sent = [(501, OURS)]
    watched.look(after_s=0.002)
    assert watched.passed == []
    watched.look(after_s=0.003)
    assert watched.passed == [OURS]


def test_a_dear_look_is_repeated_more_seldom() -> None:
    watched = Watched()
    cheap = watched.processes.descendants

    def dear(roots: Iterable[int], /) -> set[int]:
        watched.world.now_s += 0.1
        return cheap(roots)

    watched.processes.descendants = dear  # type: ignore[method-assign]
    watched.look()
    watched.processes.descendants = cheap  # type: ignore[method-assign]
    watched.sockets.syn_sent = [(501, OURS)]
    watched.look(after_s=0.3)
    assert watched.passed == []
    watched.look(after_s=0.11)
    assert watched.passed == [OURS]


def test_a_check_in_the_units_control_group_is_ours() -> None:
    watched = Watched(unit="app.service")
    watched.processes.groups = {"app.service": {20}}
    watched.sockets.syn_sent = [(601, OURS)]
    watched.look(roots=())
    assert watched.passed == [OURS]


def test_the_control_group_is_read_ten_times_a_second() -> None:
    watched = Watched(unit="app.service")
    watched.look(roots=())
    watched.processes.groups = {"app.service": {20}}
    watched.sockets.syn_sent = [(601, OURS)]
    watched.look(roots=(), after_s=0.05)
    assert watched.passed == []
    watched.look(roots=(), after_s=0.06)
    assert watched.passed == [OURS]
