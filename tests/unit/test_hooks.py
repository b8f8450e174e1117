"""What others have hooked into the ways of a device, as the kernel tells it, and as it is told."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from synplug.errors import UnsupportedError
from synplug.holding import bypass
from synplug.holding.bypass import hook_remarks, tcx_remarks
from synplug.kernel import hooks
from synplug.kernel.flower import EGRESS, INGRESS
from synplug.kernel.hooks import (
    ARRIVING,
    LEAVING,
    IngressChain,
    ingress_chains,
    tcx_programs,
    translations,
)
from synplug.kernel.netlink_codec import attribute, be32, nested, text
from synplug.kernel.traffic_control import Device

INET, NETDEV = 1, 5


def chain(family: int, name: str, *hook: bytes) -> memoryview:
    """An answer to NFT_MSG_GETCHAIN; a chain without a hook is one to jump to."""
    return memoryview(
        bytes((family, 0, 0, 0))
        + text(1, "fw")
        + text(3, name)
        + (nested(4, *hook) if hook else b"")
    )


class Tables:
    """A kernel with these chains; one that is asked for a family it lacks answers with others."""

    def __init__(self, *chains: memoryview) -> None:
        self.chains = chains
        self.closed = 0

    def __call__(self, _protocol: int) -> Tables:
        return self

    def dump(
        self, _action: str, kind: int, _body: bytes, *, complete: bool = True
    ) -> list[memoryview]:
        assert kind == 0x0A04  # NFT_MSG_GETCHAIN
        assert not complete, "somebody's change meanwhile is no reason not to hold"
        return list(self.chains)

    def close(self) -> None:
        self.closed += 1


def test_chains_of_the_ingress_hook_are_known_with_their_devices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tables = Tables(
        chain(NETDEV, "one", be32(1, 0), be32(2, 0), text(3, "eth0")),
        chain(NETDEV, "many", be32(1, 0), nested(4, text(1, "eth0"), text(1, "eth1"))),
        chain(NETDEV, "out", be32(1, 1), text(3, "eth0")),
        chain(NETDEV, "jumped"),
        chain(INET, "inet", be32(1, 5), text(3, "eth1")),
        chain(INET, "input", be32(1, 1), be32(2, 0)),
    )
    monkeypatch.setattr(hooks, "NetlinkSocket", tables)
    assert {found.name: found.devices for found in ingress_chains()} == {
        "netdev fw one": {"eth0"},
        "netdev fw many": {"eth0", "eth1"},
        "inet fw inet": {"eth1"},
    }
    assert tables.closed == 1


def test_a_prefix_stands_for_all_devices_whose_names_begin_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A kind of attribute of its own, or, in Linux 6.16, a name without an end."""
    with_kind = nested(4, text(1, "lo"), text(2, "eth"))
    without_end = nested(4, attribute(1, b"wan"))
    tables = Tables(
        chain(NETDEV, "one", be32(1, 0), with_kind), chain(NETDEV, "two", be32(1, 0), without_end)
    )
    monkeypatch.setattr(hooks, "NetlinkSocket", tables)
    seen = {
        found.name.split()[-1]: [
            name for name in ("lo", "eth0", "wan7", "eno1") if found.sees(name)
        ]
        for found in ingress_chains()
    }
    assert seen == {"one": ["lo", "eth0"], "two": ["wan7"]}


DEVICES = [Device(index=1, name="lo"), Device(index=2, name="eth0")]


def told(monkeypatch: pytest.MonkeyPatch, side: int, programs: dict[int, int]) -> list[str]:
    found = [IngressChain("netdev fw in", frozenset({"eth0", "eth9"}))]
    monkeypatch.setattr(bypass, "ingress_chains", lambda: found)
    monkeypatch.setattr(bypass, "tcx_programs", lambda device, _side: programs.get(device, 0))
    return [*hook_remarks(DEVICES, side), *tcx_remarks(DEVICES, side)]


def test_what_is_passed_by_and_what_comes_before_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    hook, tcx = told(monkeypatch, INGRESS, {2: 3})
    assert "ingress hook of eth0: the nftables chains there (netdev fw in) neither drop" in hook
    assert "programs of tcx on eth0 (3) come before the filters of the hold" in tcx
    assert len(told(monkeypatch, INGRESS, {})) == 1, "the control: no program"


def test_what_leaves_passes_the_ingress_hook_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch, EGRESS, {}) == []


def test_a_kernel_without_tables_holds_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> list[IngressChain]:
        raise UnsupportedError("no nfnetlink")

    assert told(monkeypatch, INGRESS, {2: 1})[1:]
    monkeypatch.setattr(bypass, "ingress_chains", none)
    assert list(hook_remarks(DEVICES, INGRESS)) == []


class Libc:
    """Answers BPF_PROG_QUERY as ``kernel/bpf/mprog.c`` does."""

    class _Call:
        restype: object = None

        def __init__(self, answer: Callable[[bytes], bytes | None]) -> None:
            self._answer = answer

        def __call__(self, _number: object, command: object, attr: object, _size: object) -> int:
            assert getattr(command, "value", None) == 16  # BPF_PROG_QUERY
            answer = self._answer(attr.raw)  # type: ignore[attr-defined]
            if answer is None:
                return -1
            attr.raw = answer  # type: ignore[attr-defined]
            return 0

    def __init__(self, answer: Callable[[bytes], bytes | None]) -> None:
        self.syscall = self._Call(answer)


@pytest.fixture
def unfiltered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "_is_filtered", lambda: False)
    monkeypatch.setattr(hooks, "bpf_number", lambda _of: 321)


@pytest.mark.usefixtures("unfiltered")
@pytest.mark.parametrize(("side", "attach_type"), [(INGRESS, 46), (EGRESS, 47)])
def test_programs_are_counted_where_the_filters_stand(
    monkeypatch: pytest.MonkeyPatch, side: int, attach_type: int
) -> None:
    def answer(asked: bytes) -> bytes:
        assert len(asked) == 64
        assert struct.unpack_from("=III", asked) == (7, attach_type, 0)
        return asked[:24] + struct.pack("=I", 2) + asked[28:]

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Libc(answer))
    assert tcx_programs(7, side) == 2


@pytest.mark.usefixtures("unfiltered")
def test_a_kernel_without_tcx_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Libc(lambda _asked: None))
    assert tcx_programs(7, INGRESS) == 0


@pytest.mark.parametrize(("line", "asks"), [("Seccomp:\t0\n", True), ("Seccomp:\t2\n", False)])
def test_nobody_is_asked_behind_a_filter_of_system_calls(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, asks: bool
) -> None:
    """One of systemd's (SystemCallFilter=) ends the process that calls what it does not know."""
    status = tmp_path / "status"
    status.write_text(f"Name:\tsynplug\n{line}Seccomp_filters:\t1\n", encoding="ascii")
    calls: list[bytes] = []

    def answer(asked: bytes) -> bytes:
        calls.append(asked)
        return asked

    monkeypatch.setattr(hooks, "_STATUS", str(status))
    monkeypatch.setattr(hooks, "bpf_number", lambda _of: 321)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Libc(answer))
    assert tcx_programs(7, INGRESS) == 0
    assert bool(calls) == asks


# --- NAT


@pytest.mark.parametrize(
    ("hook", "kind", "uses", "counts"),
    [
        (3, "nat", 1, {LEAVING}),
        (0, "nat", 1, {ARRIVING}),
        (3, "nat", 0, set()),
        (3, "filter", 1, set()),
        (4, "nat", 1, set()),
    ],
    ids=["leaving", "arriving", "empty", "another type", "another hook"],
)
def test_chains_that_may_translate_a_connection(
    monkeypatch: pytest.MonkeyPatch, hook: int, kind: str, uses: int, counts: set[int]
) -> None:
    ours = memoryview(
        bytes((2, 0, 0, 0))
        + text(1, "nat")
        + text(3, "OUTPUT")
        + nested(4, be32(1, hook), be32(2, 0))
        + be32(6, uses)
        + text(7, kind)
    )
    monkeypatch.setattr(hooks, "NetlinkSocket", Tables(ours))
    monkeypatch.setattr(hooks, "is_in_use", lambda *_: False)
    for asked in (ARRIVING, LEAVING):
        assert translations(asked) == ["ip nat OUTPUT"] * (asked in counts)


def test_legacy_iptables_may_translate_where_its_table_is_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nobody(_protocol: int) -> Tables:
        raise UnsupportedError("no nf_tables here")

    monkeypatch.setattr(hooks, "NetlinkSocket", nobody)
    monkeypatch.setattr(
        hooks, "is_in_use", lambda family, table: (family.value, table) == (6, "nat")
    )
    for hook in (ARRIVING, LEAVING):
        assert translations(hook) == ["ip6tables-legacy -t nat"]
