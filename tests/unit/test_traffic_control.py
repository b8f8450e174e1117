"""What a dump of qdiscs says, and what it may leave out."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from synplug.errors import KernelError, UnsupportedError
from synplug.kernel import flower, route_socket
from synplug.kernel.route_socket import RouteSocket
from synplug.kernel.traffic_control import PlugState, TrafficControl


class Qdisc(dict[str, Any]):
    """As pyroute2 gives them."""

    def __init__(self, *, flags: int = 0, **fields: Any) -> None:
        super().__init__(fields, header={"flags": flags})

    def get_attr(self, name: str) -> Any:
        return self[name]


_PLUG = Qdisc(
    index=7,
    TCA_KIND="plug",
    TCA_STATS2=Qdisc(
        TCA_STATS_QUEUE={"qlen": 3, "drops": 1, "backlog": 180},
        TCA_STATS_BASIC={"packets": 5},
    ),
)
_CLSACT = Qdisc(index=9, TCA_KIND="clsact")
_OTHER = Qdisc(index=8, TCA_KIND="fq_codel")


class Route:
    """Its dumps, one after the other."""

    def __init__(self, *dumps: list[Qdisc]) -> None:
        self.dumps = list(dumps)

    def get_qdiscs(self) -> list[Qdisc]:
        return self.dumps.pop(0)


@pytest.fixture
def control() -> TrafficControl:
    made = object.__new__(TrafficControl)
    made._route = RouteSocket()
    return made


def answers(control: TrafficControl, *dumps: list[Qdisc]) -> Route:
    route = Route(*dumps)

    @contextmanager
    def asked(_action: str) -> Iterator[Route]:
        yield route

    control._route.asked = asked  # type: ignore[assignment,method-assign]
    return route


def test_a_plug_that_one_dump_leaves_out_is_there(control: TrafficControl) -> None:
    """A device that goes in the middle of a dump makes it leave out another one."""
    found = PlugState(waiting=3, passed=5, dropped=1, waiting_bytes=180)
    route = answers(control, [_OTHER, _PLUG])
    assert control.plug_state(7) == found
    assert not route.dumps, "one look will do where it is found"
    answers(control, [_OTHER], [_OTHER, _PLUG])
    assert control.plug_state(7) == found
    answers(control, [_OTHER], [_OTHER])
    assert control.plug_state(7) is None


def test_a_clsact_that_one_dump_leaves_out_is_not_ours_to_make(control: TrafficControl) -> None:
    answers(control, [_PLUG], [_PLUG, _CLSACT])
    assert control.places().has(9)
    answers(control, [_PLUG], [_PLUG])
    assert not control.places().has(9)


def test_who_has_something_to_send(control: TrafficControl) -> None:
    """By the device's own qdisc; one of a class below it counts there, too."""

    def queued(index: int, parent: int, packets: int) -> Qdisc:
        return Qdisc(
            index=index, parent=parent, TCA_STATS2=Qdisc(TCA_STATS_QUEUE={"qlen": packets})
        )

    root, below = 0xFFFFFFFF, 0x80010001
    dump = [queued(1, root, 0), queued(2, root, 3), queued(3, below, 3), queued(4, root, 3)]
    answers(control, dump)
    assert control.to_send([1, 2, 3]) == {2}


def test_a_dump_that_changed_meanwhile_is_asked_for_anew(control: TrafficControl) -> None:
    """The kernel marks it (NLM_F_DUMP_INTR): it may have left out what is there."""
    marked = Qdisc(flags=0x12, index=8, TCA_KIND="fq_codel")
    whole = [_PLUG, _CLSACT]
    route = answers(control, [marked], whole, whole)
    assert control.places().has(9)
    assert not route.dumps
    answers(control, *[[marked]] * 10)
    with pytest.raises(KernelError, match="changed meanwhile"):
        control.plug_state(7)


def test_a_dump_that_pyroute2_itself_gives_up_is_asked_for_anew(control: TrafficControl) -> None:
    """Before 0.9 it raised an error that the kernel does not know."""
    route = answers(control, [_CLSACT], [_CLSACT])
    dumped = route.get_qdiscs
    refusals = [KernelError("list", -1), KernelError("list", errno.EPERM)]

    def get_qdiscs() -> list[Qdisc]:
        if refusals:
            raise refusals.pop(0)
        return dumped()

    route.get_qdiscs = get_qdiscs  # type: ignore[method-assign]
    with pytest.raises(KernelError, match="EPERM"):
        control.places()
    assert control.places().has(9)


def test_a_dump_is_not_asked_for_for_ever(
    control: TrafficControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A keeper has a deadline."""
    monkeypatch.setattr(route_socket, "_DUMP_LIMIT_S", 0.0)
    route = answers(control, *[[Qdisc(flags=0x10)]] * 9)
    with pytest.raises(KernelError, match="changed meanwhile"):
        control.plug_state(7)
    assert len(route.dumps) >= 7, "once, or twice by a clock that stands still"


class Taken(Route):
    """There is one already."""

    def tc(self, *_: object) -> None:
        raise KernelError("make a clsact qdisc", errno.EEXIST)


def test_a_place_that_came_since_the_look_is_used(
    control: TrafficControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "Route", Taken)
    answers(control, [_CLSACT], [_CLSACT])
    assert not control.make_ingress(9, side=flower.EGRESS)
    one_sided = Qdisc(index=9, TCA_KIND="ingress")
    answers(control, [one_sided], [one_sided])
    with pytest.raises(UnsupportedError, match="takes the place of the clsact"):
        control.make_ingress(9, side=flower.EGRESS)
    answers(control, [one_sided], [one_sided])
    assert not control.make_ingress(9)


_WITHOUT_DESCRIPTORS = """
import os, resource, sys
from synplug.errors import KernelError
from synplug.kernel.traffic_control import TrafficControl
TrafficControl("syn").close()  # what is imported late
control = TrafficControl("syn")
control.close()
free = int(sys.argv[1])
highest = max(map(int, os.listdir("/proc/self/fd")))
resource.setrlimit(resource.RLIMIT_NOFILE, (highest + free, highest + free))
try:
    control.devices()
except KernelError as error:
    print(error.errno)
"""


@pytest.mark.parametrize("free", range(4))
def test_without_descriptors_only_our_error_is_told(free: int) -> None:
    argv = [sys.executable, "-c", _WITHOUT_DESCRIPTORS, str(free)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.strip(), done.stderr) == (str(errno.EMFILE), "")
