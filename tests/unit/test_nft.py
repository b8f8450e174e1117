"""The nftables requests, run over packets by a machine that knows only the kernel's header."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from synplug.errors import KernelError, PrivilegeError, UnsupportedError
from synplug.kernel import nft
from synplug.kernel.netlink_codec import attribute, nested, text
from synplug.kernel.nft import HoldTable
from synplug.model import PROBE_MARK, Endpoint, Hook
from tests.unit.nft_machine import Machine, Packet
from tests.unit.packets import ipv4, ipv6, tcp


class Kernel:
    """A socket whose batches go to a machine; *refuse* says which expressions it lacks."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.batches: list[tuple[str, list[int]]] = []
        self.refuse: dict[bytes, Exception] = {}
        self.answers: list[memoryview] = []
        self.completely: bool | None = None
        self.closed = False

    def batch(
        self,
        action: str,
        subsystem: int,
        requests: Sequence[tuple[int, int, bytes]],
        *,
        just_before: Callable[[], None],
    ) -> None:
        just_before()
        assert subsystem == 10
        for needle, error in self.refuse.items():
            if any(needle in body for _, _, body in requests):
                raise error
        self.batches.append((action, [kind & 0xFF for kind, _, _ in requests]))
        for kind, _, body in requests:
            self.machine.apply(kind, body)

    def dump(
        self, action: str, kind: int, body: bytes, *, complete: bool = True
    ) -> list[memoryview]:
        self.completely = complete
        return self.answers

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What tells which modules and which targets there are."""
    monkeypatch.setattr(nft, "_MODULES", str(tmp_path / "modules"))
    monkeypatch.setattr(nft, "_TARGETS", str(tmp_path / "targets"))
    return tmp_path


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(nft, "NetlinkSocket", lambda protocol: made)
    return made


def hold(*endpoints: str, queues: Sequence[int] = (20_000,), hook: Hook = Hook.INPUT) -> HoldTable:
    parsed = []
    for name in endpoints:
        host, _, port = name.rpartition(":")
        address = None if host == "*" else ip_address(host.strip("[]"))
        parsed.append(Endpoint(port=int(port), address=address))
    table = HoldTable("synplug-0123abcd")
    table.prepare(parsed, queues, probe_mark=PROBE_MARK, hook=hook)
    table.hold("synplug run 0123abcd")
    return table


def syn(to: str, port: int = 80, *, source: int = 40_000, flags: int = 0x02) -> Packet:
    segment = tcp(source, port, flags)
    if ip_address(to).version == 4:
        return Packet(ipv4(segment, "192.0.2.1", to))
    return Packet(ipv6(segment, "2001:db8::1", to))


# --- by which statement


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, "queue"),
        ({"targets": "DNAT\nNFQUEUE\n"}, "target"),
        ({"targets": "DNAT\nXNFQUEUE\n"}, "queue"),
        ({"targets": "NFQUEUE\n", "modules": ""}, "queue"),
    ],
)
def test_nothing_is_tried_in_vain_where_the_kernel_has_no_modules(
    kernel: Kernel, proc: Path, files: dict[str, str], expected: str
) -> None:
    for name, text_of_it in files.items():
        (proc / name).write_text(text_of_it)
    hold("*:80")
    (rule,) = kernel.machine.chains["synplug-0123abcd", "queues"]
    assert rule.expressions[-1][0] == expected


def test_the_target_that_is_listed_may_be_refused_all_the_same(kernel: Kernel, proc: Path) -> None:
    (proc / "targets").write_text("NFQUEUE\n")
    kernel.refuse = {text(1, "NFQUEUE"): KernelError("create", errno.ENOENT)}
    hold("*:80")
    (rule,) = kernel.machine.chains["synplug-0123abcd", "queues"]
    assert rule.expressions[-1][0] == "queue"


# --- which packets wait


@pytest.mark.parametrize(
    ("endpoint", "waits", "passes"),
    [
        ("*:80", ["10.0.0.1", "fd00::1"], []),
        ("0.0.0.0:80", ["10.0.0.1", "127.0.0.1"], ["fd00::1"]),
        ("[::]:80", ["fd00::1", "::1"], ["10.0.0.1"]),
        ("10.0.0.1:80", ["10.0.0.1"], ["10.0.0.2", "fd00::1"]),
        ("[fd00::1]:80", ["fd00::1"], ["fd00::2", "10.0.0.1"]),
    ],
)
@pytest.mark.parametrize("native", [True, False])
def test_syns_to_the_endpoint_wait_and_no_others(
    kernel: Kernel, endpoint: str, waits: list[str], passes: list[str], native: bool
) -> None:
    if not native:
        kernel.refuse = {text(1, "queue"): KernelError("create", errno.ENOENT)}
    hold(endpoint)
    machine = kernel.machine
    (rule,) = machine.chains["synplug-0123abcd", "queues"]
    assert rule.expressions[-1][0] == ("queue" if native else "target")
    assert [to for to in waits if machine.queue_for(syn(to)) != 20_000] == []
    assert [to for to in passes if machine.queue_for(syn(to)) is not None] == []
    assert machine.queue_for(syn(waits[0], port=81)) is None


PREROUTING, INPUT, FORWARD, OUTPUT = range(4)


def test_before_dnat_what_others_bring_and_what_local_clients_send_waits(kernel: Kernel) -> None:
    hold("*:80", hook=Hook.PREROUTING)
    machine = kernel.machine
    assert {chain: of[1:] for chain, of in machine.hooks.items()} == {
        "prerouting": (PREROUTING, -150),
        "output": (OUTPUT, -150),
    }
    for address in ("10.0.0.1", "fd00::1"):
        packet = syn(address)
        assert machine.queue_for(replace(packet, hook=PREROUTING)) == 20_000
        assert machine.queue_for(replace(packet, hook=OUTPUT)) == 20_000
        # it has come through OUTPUT
        assert machine.queue_for(replace(packet, hook=PREROUTING, device=1)) is None
        for hook in (PREROUTING, OUTPUT):
            assert machine.queue_for(replace(packet, hook=hook, is_for_us=False)) is None
            assert machine.queue_for(replace(packet, hook=hook, mark=PROBE_MARK)) is None
        for hook in (INPUT, FORWARD):
            assert machine.queue_for(replace(packet, hook=hook)) is None


def test_before_dnat_a_named_address_need_not_be_ours(kernel: Kernel) -> None:
    """One that is routed to a container, say; and no fib expression is needed for it."""
    kernel.refuse = {text(1, "fib"): KernelError("create", errno.ENOENT)}
    hold("10.0.0.1:80", hook=Hook.PREROUTING)
    packet = replace(syn("10.0.0.1"), hook=PREROUTING, is_for_us=False)
    assert kernel.machine.queue_for(packet) == 20_000
    with pytest.raises(UnsupportedError, match="no fib expression") as error:
        hold("*:80", hook=Hook.PREROUTING)
    assert "-p ADDRESS:PORT" in error.value.remedy


def test_what_is_forwarded_waits_by_its_address(kernel: Kernel) -> None:
    table = hold("10.0.0.1:80", hook=Hook.FORWARD)
    machine = kernel.machine
    packet = replace(syn("10.0.0.1"), hook=FORWARD, is_for_us=False)
    assert machine.queue_for(packet) == 20_000
    for hook in (PREROUTING, INPUT, OUTPUT):
        assert machine.queue_for(replace(packet, hook=hook)) is None
    table.open()
    assert machine.queue_for(packet) is None


def test_both_chains_are_opened_at_once(kernel: Kernel) -> None:
    table = hold("*:80", hook=Hook.PREROUTING)
    table.open()
    assert kernel.batches[-1] == ("delete the holding rule", [8, 8])
    for hook in (PREROUTING, OUTPUT):
        assert kernel.machine.queue_for(replace(syn("10.0.0.1"), hook=hook)) is None


def test_with_ip_options_the_ports_are_still_found(kernel: Kernel) -> None:
    hold("10.0.0.1:80")
    packet = Packet(ipv4(tcp(), "192.0.2.1", "10.0.0.1", options=bytes(12)))
    assert kernel.machine.queue_for(packet) == 20_000


@pytest.mark.parametrize("flags", range(64))
def test_only_bare_syns_wait(kernel: Kernel, flags: int) -> None:
    """FIN, SYN, RST and ACK are looked at; PSH, URG and ECN's bits are not."""
    hold("*:80")
    is_bare_syn = flags & 0x17 == 0x02
    queue = kernel.machine.queue_for(syn("10.0.0.1", flags=flags))
    assert queue == (20_000 if is_bare_syn else None)


def test_ecn_and_other_protocols(kernel: Kernel) -> None:
    hold("*:80")
    assert kernel.machine.queue_for(syn("10.0.0.1", flags=0xC2)) == 20_000
    udp = bytearray(syn("10.0.0.1").data)
    udp[9] = 17
    assert kernel.machine.queue_for(Packet(bytes(udp))) is None


def test_packets_of_the_probe_pass(kernel: Kernel) -> None:
    hold("*:80")
    packet = syn("10.0.0.1")
    packet.mark = PROBE_MARK
    assert kernel.machine.queue_for(packet) is None
    packet.mark = PROBE_MARK + 1
    assert kernel.machine.queue_for(packet) == 20_000


def test_several_endpoints(kernel: Kernel) -> None:
    hold("10.0.0.1:80", "[fd00::1]:443", "*:8080")
    found = [
        kernel.machine.queue_for(syn(to, port))
        for to, port in (
            ("10.0.0.1", 80),
            ("fd00::1", 443),
            ("10.9.9.9", 8080),
            ("10.0.0.1", 443),
            ("fd00::1", 80),
        )
    ]
    assert found == [20_000, 20_000, 20_000, None, None]


@pytest.mark.parametrize("count", [2, 4, 64])
def test_several_queues_share_the_source_ports(kernel: Kernel, count: int) -> None:
    queues = range(20_000, 20_000 + count)
    hold("*:80", queues=queues)
    ports = range(32_768, 32_768 + 16 * count * 4, 2)  # connect(2) takes even ones
    shares = [kernel.machine.queue_for(syn("10.0.0.1", source=port)) for port in ports]
    assert {shares.count(queue) for queue in queues} == {len(ports) // count}
    again = [kernel.machine.queue_for(syn("fd00::1", source=port)) for port in ports]
    assert again == shares


def test_rules_grow_with_endpoints_and_queues_and_not_with_their_product(kernel: Kernel) -> None:
    hold(*(f"*:{port}" for port in range(1000, 1064)), queues=range(20_000, 20_064))
    assert sum(len(rules) for rules in kernel.machine.chains.values()) == 64 + 64 + 1
    for port in (1000, 1063):
        for share in (0, 63):
            packet = syn("10.0.0.1", port=port, source=share << 4)
            assert kernel.machine.queue_for(packet) == 20_000 + share


# --- the table's life


def test_nothing_waits_before_hold_nor_after_open(kernel: Kernel) -> None:
    table = HoldTable("synplug-0123abcd")
    table.prepare([Endpoint(port=80)], [20_000], probe_mark=PROBE_MARK)
    assert kernel.machine.queue_for(syn("10.0.0.1")) is None
    table.hold("words")
    assert kernel.machine.queue_for(syn("10.0.0.1")) == 20_000
    table.open()
    assert kernel.machine.queue_for(syn("10.0.0.1")) is None
    assert "input" in kernel.machine.hooks, "the chain stays: removing it drops what is held"
    table.remove()
    assert kernel.machine.flags == {}


def test_the_table_dies_with_its_owner_and_hooks_in_before_the_filters(kernel: Kernel) -> None:
    hold("*:80")
    assert kernel.machine.flags == {"synplug-0123abcd": 0x2}
    assert kernel.machine.hooks == {"input": ("synplug-0123abcd", 1, -150)}


def test_the_rule_says_whose_it_is(kernel: Kernel) -> None:
    hold("*:80")
    (rule,) = kernel.machine.chains["synplug-0123abcd", "input"]
    assert rule.comment == "synplug run 0123abcd"


def test_a_long_comment_is_cut(kernel: Kernel) -> None:
    table = HoldTable("t")
    table.prepare([Endpoint(port=80)], [20_000], probe_mark=1)
    table.hold("x" * 500)
    (rule,) = kernel.machine.chains["t", "input"]
    assert rule.comment == "x" * 120


def test_the_base_chain_is_made_alone_and_last(kernel: Kernel) -> None:
    """An aborted transaction that made one would drop what every queue holds."""
    hold("*:80", "10.0.0.1:81")
    assert [kinds for _, kinds in kernel.batches] == [[0, 3, 3, 6, 6, 6], [3], [6]]


# --- kernels that lack something


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_kernel_without_owner_tables(kernel: Kernel, code: int) -> None:
    kernel.refuse = {b"synplug": KernelError("create", code)}
    with pytest.raises(UnsupportedError, match="die with their owner"):
        hold("*:80")


def test_a_kernel_with_neither_way_to_queue(kernel: Kernel) -> None:
    kernel.refuse = {b"synplug": KernelError("create", errno.ENOENT)}
    with pytest.raises(UnsupportedError, match="neither the queue statement nor") as error:
        hold("*:80")
    assert "nft_queue" in error.value.remedy


@pytest.mark.parametrize(
    "error",
    [KernelError("create", errno.ENOMEM), PrivilegeError("create", capability="CAP_NET_ADMIN")],
)
def test_other_refusals_are_passed_on(kernel: Kernel, error: Exception) -> None:
    kernel.refuse = {b"synplug": error}
    with pytest.raises(type(error)):
        hold("*:80")


# --- reading


def counted(packets: int) -> memoryview:
    """A rule with a counter, as a dump shows it."""
    counter = attribute(1, bytes(8)) + attribute(2, packets.to_bytes(8, "big"))
    expression = nested(1, text(1, "counter"), nested(2, counter))
    other = nested(1, text(1, "cmp"), nested(2, attribute(1, b"abcd")))
    return memoryview(bytes(4) + text(1, "t") + nested(4, other, expression))


def test_the_packets_that_met_the_rules(kernel: Kernel) -> None:
    table = HoldTable("t")
    kernel.answers = [counted(5), counted(1 << 40), memoryview(bytes(4) + text(1, "t"))]
    assert table.matched() == 5 + (1 << 40)
    assert kernel.completely is False, "somebody else's change must not end a hold"


def test_the_names_of_tables(kernel: Kernel) -> None:
    kernel.answers = [memoryview(bytes(4) + text(1, word)) for word in ("filter", "synplug-1")]
    assert nft.tables() == ["filter", "synplug-1"]
    assert kernel.completely is True, "whether a table is gone is read from this"
    assert kernel.closed
