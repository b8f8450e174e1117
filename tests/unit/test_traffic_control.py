"""What a dump of qdiscs says, and what it may leave out."""

from __future__ import annotations

import errno
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from synplug.errors import KernelError, UnsupportedError
from synplug.kernel import flower, route_socket
from synplug.kernel.netlink_codec import attribute, nested, text
from synplug.kernel.route_socket import RouteSocket
from synplug.kernel.traffic_control import PlugState, TrafficControl


class Link(dict[str, Any]):
    """As pyroute2 gives them."""

    def __init__(self, *, flags: int = 0) -> None:
        super().__init__(header={"flags": flags})


def qdisc(device: int, kind: str, *, parent: int = 0xFFFFFFFF, queue: bytes = b"") -> bytes:
    """As the kernel gives them (``net/sched/sch_api.c``, tc_fill_qdisc)."""
    header = struct.pack("=BBHiIII", 0, 0, 0, device, 0x10000, parent, 1)
    return header + text(1, kind) + (nested(7, queue) if queue else b"")


def statistics(
    *, packets: int = 0, queued: int = 0, queued_bytes: int = 0, drops: int = 0
) -> bytes:
    """Its TCA_STATS2: of what has left it, and of its queue."""
    basic = attribute(1, struct.pack("=QIxxxx", 60 * packets, packets))
    return basic + attribute(3, struct.pack("=IIIII", queued, queued_bytes, drops, 7, 8))


_PLUG = qdisc(7, "plug", queue=statistics(packets=5, queued=3, queued_bytes=180, drops=1))
_CLSACT = qdisc(9, "clsact", parent=0xFFFFFFF1)
_OTHER = qdisc(8, "fq_codel", queue=statistics())


class Netlink:
    """Its dumps, one after the other."""

    def __init__(self, *dumps: list[bytes]) -> None:
        self.dumps = list(dumps)

    def dump(self, _action: str, kind: int, body: bytes) -> list[memoryview]:
        assert (kind, body) == (38, bytes(20))
        return [memoryview(answer) for answer in self.dumps.pop(0)]


class Route:
    """What pyroute2 does; its dumps, one after the other."""

    def __init__(self, *dumps: list[Link]) -> None:
        self.dumps = list(dumps)

    def get_links(self) -> list[Link]:
        return self.dumps.pop(0)

    def tc(self, *_: object) -> None:
        raise KernelError("make a clsact qdisc", errno.EEXIST)


@pytest.fixture
def control() -> TrafficControl:
    made = object.__new__(TrafficControl)
    made._route = RouteSocket()
    return made


def answers(control: TrafficControl, *dumps: list[bytes]) -> Netlink:
    control._netlink = made = Netlink(*dumps)  # type: ignore[assignment]
    return made


def links(socket: RouteSocket, *dumps: list[Link]) -> Route:
    route = Route(*dumps)

    @contextmanager
    def asked(_action: str) -> Iterator[Route]:
        yield route

    socket.asked = asked  # type: ignore[assignment,method-assign]
    return route


def dumped(socket: RouteSocket) -> list[Any]:
    return socket.dump("list", lambda route: route.get_links())


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
    """Whether its own qdisc counts it, or only one of a class below it, which hardware plays."""
    waits = statistics(queued=3, queued_bytes=180)
    dump = [
        qdisc(1, "tbf", queue=statistics(packets=9)),
        qdisc(2, "tbf", queue=waits),
        qdisc(3, "pfifo", parent=0x80010001, queue=waits),
        qdisc(4, "tbf", queue=waits),
        _CLSACT,
    ]
    answers(control, dump)
    assert control.to_send([1, 2, 3, 9]) == {2, 3}


@pytest.mark.parametrize("size", range(0, len(_PLUG) + 1, 4))
def test_an_answer_that_is_cut_off_is_no_error(control: TrafficControl, size: int) -> None:
    """As with other netlink messages: what does not fit what is left ends the walk."""
    answers(control, [_PLUG[: max(20, size)]] * 2, [_OTHER])
    found = control.plug_state(7)
    assert found is None or found.waiting in (0, 3)


def test_a_dump_that_changed_meanwhile_is_asked_for_anew() -> None:
    """The kernel marks it (NLM_F_DUMP_INTR): it may have left out what is there."""
    socket = RouteSocket()
    route = links(socket, [Link(flags=0x12)], [Link()])
    assert len(dumped(socket)) == 1
    assert not route.dumps
    links(socket, *[[Link(flags=0x12)]] * 10)
    with pytest.raises(KernelError, match="changed meanwhile"):
        dumped(socket)


def test_a_dump_that_pyroute2_itself_gives_up_is_asked_for_anew() -> None:
    """Before 0.9 it raised an error that the kernel does not know."""
    socket = RouteSocket()
    route = links(socket, [Link()])
    whole = route.get_links
    refusals = [KernelError("list", -1), KernelError("list", errno.EPERM)]

    def get_links() -> list[Link]:
        if refusals:
            raise refusals.pop(0)
        return whole()

    route.get_links = get_links  # type: ignore[method-assign]
    with pytest.raises(KernelError, match="EPERM"):
        dumped(socket)
    assert len(dumped(socket)) == 1


def test_a_dump_is_not_asked_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A keeper has a deadline."""
    monkeypatch.setattr(route_socket, "_DUMP_LIMIT_S", 0.0)
    socket = RouteSocket()
    route = links(socket, *[[Link(flags=0x10)]] * 9)
    with pytest.raises(KernelError, match="changed meanwhile"):
        dumped(socket)
    assert len(route.dumps) >= 7, "once, or twice by a clock that stands still"


def test_a_place_that_came_since_the_look_is_used(control: TrafficControl) -> None:
    links(control._route)
    answers(control, [_CLSACT], [_CLSACT])
    assert not control.make_ingress(9, side=flower.EGRESS)
    one_sided = qdisc(9, "ingress", parent=0xFFFFFFF1)
    answers(control, [one_sided], [one_sided])
    with pytest.raises(UnsupportedError, match="takes the place of the clsact"):
        control.make_ingress(9, side=flower.EGRESS)
    answers(control, [one_sided], [one_sided])
    assert not control.make_ingress(9)


def test_a_dump_that_never_ends_does_not_keep_others_from_being_asked_for() -> None:
    """The kernel's own answers. What had no memory for its next part is never gone on with."""
    control = TrafficControl("syn")
    for ask in (lambda: control.plug_state(1), lambda: control.filters(1), control.local_prefixes):
        expected = ask()
        control._netlink.send("list", control._netlink.message(38, 0x301, bytes(20)))
        with pytest.raises(KernelError, match="EBUSY"):
            control._netlink.dump("list", 38, bytes(20))
        control._netlink.send("list", control._netlink.message(38, 0x301, bytes(20)))
        assert ask() == expected
    control.close()


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
