"""A plug beside the devices, qdiscs and filters of others; inside the guest."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from netlab.counters import tcp_counters
from netlab.program import wait_until
from netlab.snapshot import NetworkState
from netlab.topology import ClientServer, Namespace, VethPair
from synplug.holding.ownership import first_handle
from tests.guest.plug import PLUG, device, hold, kill_everything, listen_at, waits
from tests.integration import shell
from tests.integration.connect import connect_s, connecting, connects_within, holds_in_force

pytestmark = [pytest.mark.guests_only, pytest.mark.usefixtures("simple")]

_MARK = 0x77


#: bpf(2), x86_64: load ``r0 = 0; exit``, which is TCX_PASS, and attach it by a link.
_TCX = """
import ctypes, socket, struct, sys, time
code = bytes.fromhex("b700000000000000" "9500000000000000")
kept = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"Apache-2.0")
libc = ctypes.CDLL(None)
def bpf(command, data):
    return libc.syscall(321, command, ctypes.create_string_buffer(data, len(data)), len(data))
where = map(ctypes.addressof, kept)
program = bpf(5, struct.pack("=IIQQIIQII", 3, len(code) // 8, *where, 0, 0, 0, 0, 0))
assert program >= 0
link = struct.pack("=IIII", program, socket.if_nametoindex(sys.argv[1]), 46, 0) + bytes(32)
print("attached" if bpf(28, link) >= 0 else "refused", flush=True)
time.sleep(300)
"""


@contextmanager
def _place(server: Namespace, wire: str, *options: str) -> Iterator[None]:
    """A clsact of somebody else."""
    server.run(["tc", "qdisc", "add", "dev", wire, *options, "clsact"])
    try:
        yield
    finally:
        server.run(["tc", "qdisc", "del", "dev", wire, "clsact"])


def _filter(server: Namespace, wire: str, words: str) -> None:
    server.run(f"tc filter add dev {wire} ingress protocol ip {words}".split())


def _let_go(lab: ClientServer) -> dict[str, Any]:
    outcome = shell.run(lab.server, "release", "--name", "web", "--json", "-")
    assert outcome.status == 0, outcome
    return outcome.report


def _has_filters(lab: ClientServer, wire: str, to: str = "") -> bool:
    """Whether it has some. :param to: for that address: one that comes is followed a bit later."""
    show = ["tc", "filter", "show", "dev", wire, "ingress"]
    shown = lab.server.run(show, check=False).stdout
    return "Redirect" in shown and f"dst_ip {to}" in shown


@pytest.mark.needs("nfqueue-iptables")
def test_a_foreign_qdisc_and_its_filters_stay_and_work(lab: ClientServer) -> None:
    """They drop one port, and mark what comes to the other; a root qdisc delays.

    The mark of a held SYN alone is not set: it passes by what stands behind. That is told.
    """
    wire, other, delay_s = device(lab), (lab.server_ipv4, 9090), 0.3
    listen_at(lab.server, 9090)
    assert connect_s(lab.client, other) < delay_s, "the control"
    delay = f"root netem delay {delay_s * 1000:.0f}ms"
    lab.server.run(f"tc qdisc add dev {wire} {delay}".split())
    try:
        with _place(lab.server, wire), _counted(lab.server):
            _filter(lab.server, wire, "pref 7 flower ip_proto tcp dst_port 9 action drop")
            marking = f"action skbedit mark {_MARK}"
            _filter(lab.server, wire, f"pref 8 flower ip_proto tcp dst_port 8080 {marking}")
            before = NetworkState.capture(lab.server)
            assert connects_within(lab.client, (lab.server_ipv4, 8080), 5)
            syns, others = _marked(lab.server)
            assert (syns, others > 0) == (1, True), "the control: all of it is marked"
            hold(lab)
            assert connect_s(lab.client, other) > delay_s, "who is not held is delayed"
            dropped = connecting(lab.client, (lab.server_ipv4, 9), 2)
            assert dropped.communicate(timeout=60)[0].strip() == "TimeoutError", "nobody refuses"
            show = ["tc", "-s", "filter", "show", "dev", wire, "ingress", "pref", "7"]
            shown = lab.server.run(show).stdout
            assert re.search(r"Sent \d+ bytes [1-9]\d* pkt", shown), shown
            sent_again = tcp_counters(lab.client)["TCPSynRetrans"]
            client = connecting(lab.client, (lab.server_ipv4, 8080), 60)
            waits(lab, 1)
            report = _let_go(lab)
            (told,) = report["warnings"]
            assert f"on {wire} filters of somebody else come behind" in told
            assert "(preference 7, 8)" in told
            assert float(client.communicate(timeout=60)[0]) < 60
            sent_again = tcp_counters(lab.client)["TCPSynRetrans"] - sent_again
            # It may be sent once more after the release, before the delayed answer is there.
            syns += 1 + sent_again - report["hold"]["held"]
            assert _marked(lab.server)[0] == syns, "the held SYN is not"
            assert _marked(lab.server)[1] > others, "what follows it is"
            assert connect_s(lab.client, (lab.server_ipv4, 8080)) > delay_s
            assert _marked(lab.server)[0] == syns + 1, "they work as before"
            assert not before.difference(NetworkState.capture(lab.server))
    finally:
        lab.server.run(["tc", "qdisc", "del", "dev", wire, "root"])


@pytest.mark.parametrize("is_killed", [False, True])
def test_foreign_filters_with_handles_of_the_run_stay(lab: ClientServer, is_killed: bool) -> None:
    """One of another kind, as tc's first u32 of 0x80000800 may be, and one that redirects."""
    wire = device(lab)
    with _place(lab.server, wire):
        hold(lab)
        handle = first_handle(holds_in_force(lab.server)[0]["run_id"]) + 0x7F0
        _filter(lab.server, wire, f"pref 40 handle {handle:#x} matchall action pass")
        to_lo = "flower ip_proto tcp dst_port 9 action mirred egress redirect dev lo"
        _filter(lab.server, wire, f"pref 41 handle {handle + 1:#x} {to_lo}")
        if is_killed:
            kill_everything(lab)
            assert "cleaned up" in shell.run(lab.server, "recover").stdout
        else:
            _let_go(lab)
        show = ["tc", "-j", "filter", "show", "dev", wire, "ingress"]
        found = json.loads(lab.server.run(show).stdout)
        left = {(one["pref"], one["kind"]) for one in found if "options" in one}
        assert left == {(40, "matchall"), (41, "flower")}


@contextmanager
def _counted(server: Namespace) -> Iterator[None]:
    """Rules that count what has the mark: SYNs, and the rest."""
    rules = [
        f"INPUT -p tcp --dport 8080 {which} -m mark --mark {_MARK}"
        for which in ("--syn", "! --syn")
    ]
    for rule in rules:
        server.run(f"iptables-legacy -t mangle -A {rule}".split())
    try:
        yield
    finally:
        for rule in rules:
            server.run(f"iptables-legacy -t mangle -D {rule}".split())


def _marked(server: Namespace) -> tuple[int, int]:
    shown = server.run(["iptables-legacy", "-t", "mangle", "-nvxL", "INPUT"]).stdout
    first, second = (int(line.split()[0]) for line in shown.splitlines() if "mark match" in line)
    return first, second


@pytest.mark.kernels
def test_a_client_that_a_filter_behind_bans_is_held_and_that_is_told(lab: ClientServer) -> None:
    wire = device(lab)
    with _place(lab.server, wire):
        ban = f"pref 7 flower ip_proto tcp src_ip {lab.client_ipv4} dst_port 8080 action drop"
        _filter(lab.server, wire, ban)
        assert not connects_within(lab.client, (lab.server_ipv4, 8080), 2), "the control"
        hold(lab)
        client = connecting(lab.client, (lab.server_ipv4, 8080), 2)
        waits(lab, 1)
        report = _let_go(lab)
        client.communicate(timeout=60)
    assert report["hold"]["held"] >= 1
    assert any("come behind those of the hold (preference 7)" in it for it in report["warnings"])


def test_a_filter_before_ours_has_its_way_and_that_is_told(lab: ClientServer) -> None:
    wire = device(lab)
    hold(lab)
    client = connecting(lab.client, (lab.server_ipv4, 8080), 60)
    waits(lab, 1)
    assert _let_go(lab)["warnings"] == [], "the control: it waits, and there is nothing to tell"
    assert float(client.communicate(timeout=60)[0]) < 60
    with _place(lab.server, wire):
        _filter(lab.server, wire, "pref 1 matchall action pass")
        hold(lab)
        assert connects_within(lab.client, (lab.server_ipv4, 8080), 5), "it does not wait"
        report = _let_go(lab)
    assert report["hold"]["held"] == 0
    (told,) = report["warnings"]
    assert f"on {wire} filters of somebody else come before" in told
    assert "(preference 1)" in told


@pytest.mark.kernels
@pytest.mark.stock(only=True)
def test_a_client_that_the_ingress_hook_bans_is_held_and_that_is_told(lab: ClientServer) -> None:
    wire = device(lab)
    chain = f"{{ type filter hook ingress device {wire} priority 0; policy accept; }}"
    ban = f"ip saddr {lab.client_ipv4} tcp dport 8080 tcp flags & (syn | ack) == syn drop"
    for words in ("table netdev fw", f"chain netdev fw in {chain}", f"rule netdev fw in {ban}"):
        lab.server.run(["nft", f"add {words}"])
    try:
        assert not connects_within(lab.client, (lab.server_ipv4, 8080), 2), "the control"
        hold(lab)
        client = connecting(lab.client, (lab.server_ipv4, 8080), 60)
        waits(lab, 1)
        report = _let_go(lab)
        assert float(client.communicate(timeout=60)[0]) < 60, "it is served"
    finally:
        lab.server.run(["nft", "delete table netdev fw"])
    (told,) = report["warnings"]
    assert f"pass by the ingress hook of {wire}" in told
    assert "(netdev fw in)" in told


@pytest.mark.kernels
@pytest.mark.stock
def test_a_program_of_tcx_has_its_way_and_that_is_told(lab: ClientServer) -> None:
    wire = device(lab)
    program = lab.server.popen([sys.executable, "-S", "-c", _TCX, wire], stdout=subprocess.PIPE)
    try:
        assert program.stdout is not None
        is_attached = program.stdout.readline() == "attached\n"
        release = tuple(map(int, platform.release().split(".")[:2]))
        assert is_attached == (release >= (6, 6)), "Linux 6.6 brought it"
        hold(lab)
        if is_attached:
            assert connects_within(lab.client, (lab.server_ipv4, 8080), 5), "it does not wait"
        told = _let_go(lab)["warnings"]
    finally:
        program.terminate()
        program.communicate(timeout=60)
    assert len(told) == is_attached
    assert all(f"programs of tcx on {wire} (1) come before" in it for it in told)


def test_where_a_block_is_shared_nothing_is_held_and_nothing_left(lab: ClientServer) -> None:
    """Such a block takes no filters by its device (``ingress_block``, tc(8))."""
    with _place(lab.server, device(lab), "ingress_block", "22"):
        before = NetworkState.capture(lab.server)
        refused = shell.run(lab.server, "wrap", "-p", "8080", *PLUG, "--", "echo", "it ran")
        assert refused.status == 125, refused
        assert "shared" in refused.stderr
        assert "it ran" not in refused.stdout
        assert not before.difference(NetworkState.capture(lab.server))


def test_a_device_that_can_have_no_filters_keeps_nobody_else_from_being_held(
    lab: ClientServer,
) -> None:
    """It appears during the hold, with a block that is shared; its peer has none."""
    hold(lab)
    (entry,) = holds_in_force(lab.server)
    os.kill(entry["keeper"], signal.SIGSTOP)
    lab.server.run(["ip", "link", "add", "la0", "type", "veth", "peer", "name", "lb0"])
    with _place(lab.server, "la0", "ingress_block", "23"):
        os.kill(entry["keeper"], signal.SIGCONT)
        wait_until(lambda: _has_filters(lab, "lb0"), 20, "its peer has filters")
        client = connecting(lab.client, (lab.server_ipv4, 8080), 60)
        waits(lab, 1)
        (told,) = _let_go(lab)["warnings"]
        assert "what la0 brings is not held" in told
        assert "shared" in told
        assert float(client.communicate(timeout=60)[0]) < 60
        wait_until(lambda: _places(lab.server) == ["la0"], 20, "there is only somebody else's")
    lab.server.run(["ip", "link", "del", "la0"])


def _places(server: Namespace) -> list[str]:
    qdiscs = json.loads(server.run(["tc", "-j", "qdisc", "show"]).stdout)
    return [qdisc["dev"] for qdisc in qdiscs if qdisc["kind"] == "clsact"]


def test_recover_finds_a_device_that_has_another_name(lab: ClientServer) -> None:
    lab.server.run(["ip", "link", "add", "la0", "type", "veth", "peer", "name", "lb0"])
    hold(lab)
    assert "la0" in _places(lab.server)
    lab.server.run(["ip", "link", "set", "la0", "name", "wan0"])
    kill_everything(lab)
    assert "wan0" in _places(lab.server)
    assert "cleaned up" in shell.run(lab.server, "recover").stdout
    assert _places(lab.server) == []
    lab.server.run(["ip", "link", "del", "wan0"])


@pytest.mark.kernels
def test_who_waits_that_came_by_a_device_that_is_gone_is_lost(lab: ClientServer) -> None:
    hold(lab)
    _wire_appears(lab)
    client = connecting(lab.client, ("10.79.0.2", 8080), 60)
    waits(lab, 1)
    lab.server.run(["ip", "link", "del", "late0"])
    report = _let_go(lab)
    client.terminate()
    client.communicate(timeout=60)
    assert report["hold"]["released"] == 0
    assert report["hold"]["lost"] == report["hold"]["held"] >= 1
    assert any("the device that had brought them" in text for text in report["warnings"])


def test_a_device_that_appears_is_held_too(lab: ClientServer) -> None:
    hold(lab)
    _wire_appears(lab)
    theirs = lab.server.run(["tc", "qdisc", "add", "dev", "late0", "clsact"], check=False)
    assert theirs.returncode != 0, "as docs/failure-modes.md says"
    client = connecting(lab.client, ("10.79.0.2", 8080), 60)
    waits(lab, 1)
    assert _let_go(lab)["hold"]["released"] >= 1
    assert float(client.communicate(timeout=60)[0]) < 60
    lab.server.run(["ip", "link", "del", "late0"])


@pytest.mark.kernels
def test_what_is_forwarded_to_a_named_address_passes_and_that_is_told(lab: ClientServer) -> None:
    lab.client.run(["ip", "route", "add", "10.50.0.0/24", "via", lab.server_ipv4])
    with Namespace("back") as back, VethPair(lab.server, back, first_interface="veth1"):
        lab.server.run(["ip", "address", "add", "10.50.0.1/24", "dev", "veth1"])
        back.run(["ip", "address", "add", "10.50.0.2/24", "dev", "veth0"])
        back.run(["ip", "route", "add", "default", "via", "10.50.0.1"])
        lab.server.set_sysctl("net.ipv4.ip_forward", 1)
        listen_at(back, 9090)
        behind = ("10.50.0.2", 9090)
        wait_until(lambda: connects_within(lab.client, behind, 2), 30, "the control: it forwards")
        hold(lab, "-p", "10.50.0.2:9090")
        client = connecting(lab.client, (lab.server_ipv4, 8080), 60)
        waits(lab, 1)
        assert connects_within(lab.client, behind, 5), "it does not wait"
        told = _let_go(lab)["warnings"]
        assert any("10.50.0.2:9090 is not held" in it for it in told), told
        assert float(client.communicate(timeout=60)[0]) < 60
        back.end_everything()
    lab.server.set_sysctl("net.ipv4.ip_forward", 0)
    lab.client.run(["ip", "route", "del", "10.50.0.0/24"])


@pytest.mark.kernels
def test_addresses_that_a_local_route_makes_ours_during_the_hold_are_held(
    lab: ClientServer,
) -> None:
    """Of the ports that are held at any address, and of one that is named."""
    lab.client.run(["ip", "route", "add", "10.98.0.0/24", "via", lab.server_ipv4])
    wire = device(lab)
    hold(lab, "-p", "10.98.0.2:9090")
    before = _filters(lab, wire)
    lab.server.run(["ip", "route", "add", "local", "10.98.0.0/24", "dev", "lo"])
    wait_until(lambda: _filters(lab, wire) > before, 20, "it has filters")
    client = connecting(lab.client, ("10.98.0.1", 8080), 60)
    waits(lab, 1)
    report = _let_go(lab)
    assert (report["hold"]["lost"], report["hold"]["released"] >= 1) == (0, True)
    assert not any("does not answer for" in it for it in report["warnings"])
    assert float(client.communicate(timeout=60)[0]) < 60
    lab.server.run(["ip", "route", "del", "local", "10.98.0.0/24", "dev", "lo"])
    lab.client.run(["ip", "route", "del", "10.98.0.0/24"])


def _filters(lab: ClientServer, wire: str) -> int:
    return lab.server.run(["tc", "filter", "show", "dev", wire, "ingress"]).stdout.count("Redirect")


@pytest.mark.kernels
def test_who_waits_outlasts_a_wire_that_goes_down_and_comes_up(lab: ClientServer) -> None:
    hold(lab)
    _wire_appears(lab)
    client = connecting(lab.client, ("10.79.0.2", 8080), 60)
    waits(lab, 1)
    for state in ("down", "up"):
        lab.server.run(["ip", "link", "set", "late0", state])
    report = _let_go(lab)
    assert (report["hold"]["lost"], report["warnings"]) == (0, [])
    assert float(client.communicate(timeout=60)[0]) < 60
    lab.server.run(["ip", "link", "del", "late0"])


@pytest.mark.kernels
def test_a_bond_that_appears_is_held_and_its_port_is_not(lab: ClientServer) -> None:
    """The port goes down while somebody waits, who came by the bond."""
    hold(lab)
    lab.server.run(
        ["ip", "link", "add", "bond9", "type", "bond", "mode", "active-backup", "miimon", "50"]
    )
    _wire_appears(lab, "bond9")
    client = connecting(lab.client, ("10.79.0.2", 8080), 60)
    waits(lab, 1)
    assert not _has_filters(lab, "late0"), "it would be held twice"
    for state in ("down", "up"):
        lab.server.run(["ip", "link", "set", "late0", state])
    report = _let_go(lab)
    assert (report["hold"]["lost"], report["warnings"]) == (0, [])
    assert float(client.communicate(timeout=60)[0]) < 60
    lab.server.run(["ip", "link", "del", "late0"])
    lab.server.run(["ip", "link", "del", "bond9"])


@pytest.mark.kernels
def test_a_macvlan_that_appears_is_held_too(lab: ClientServer) -> None:
    """What it brings may go through the plug twice, by the wire and by itself, and count twice."""
    wire = device(lab)
    hold(lab)
    lab.server.run(f"ip link add late0 link {wire} type macvlan mode bridge".split())
    lab.client.run(["ip", "address", "add", "10.79.0.1/24", "dev", wire])
    lab.server.run(["ip", "address", "add", "10.79.0.2/24", "dev", "late0"])
    lab.server.run(["ip", "link", "set", "late0", "up"])
    wait_until(lambda: _has_filters(lab, "late0", "10.79.0.2"), 20, "it has filters")
    client = connecting(lab.client, ("10.79.0.2", 8080), 60)
    waits(lab, 1)
    report = _let_go(lab)
    assert (report["hold"]["lost"], report["warnings"]) == (0, [])
    assert report["hold"]["held"] == report["hold"]["released"] >= 1
    assert float(client.communicate(timeout=60)[0]) < 60
    lab.server.run(["ip", "link", "del", "late0"])
    lab.client.run(["ip", "address", "del", "10.79.0.1/24", "dev", wire])


def _wire_appears(lab: ClientServer, master: str = "") -> None:
    """One more, with addresses of 10.79.0.0/24; on the server as a port of *master*."""
    peer = ["peer", "name", "late1", "netns", lab.client.name]
    lab.server.run(["ip", "link", "add", "late0", "type", "veth", *peer])
    if master:
        lab.server.run(["ip", "link", "set", "late0", "master", master])
    at_server = master or "late0"
    for side, wire, end in ((lab.server, at_server, 2), (lab.client, "late1", 1)):
        side.run(["ip", "address", "add", f"10.79.0.{end}/24", "dev", wire])
        side.run(["ip", "link", "set", wire, "up"])
    wait_until(lambda: _has_filters(lab, at_server, "10.79.0.2"), 20, "it has filters")


@pytest.mark.needs("nfqueue-iptables")
def test_own_clients_that_nat_translates_are_left_alone_and_that_is_told() -> None:
    """Diverted to any ifb, they cannot connect: the control. The others of this host can.

    mirred leaves a SYN its entry of conntrack until Linux 5.14 and its stable releases.
    """
    resets = tuple(map(int, platform.release().split(".")[:2])) > (5, 10)
    with ClientServer() as lab:
        server, translated = lab.server, ("127.0.0.1", 80)
        listen_at(server, 8080)
        nat = "iptables-legacy -t nat -A OUTPUT -p tcp --dport 80 -j REDIRECT --to-ports 8080"
        server.run(nat.split())
        assert connects_within(server, translated, 5)
        server.run(["ip", "link", "add", "ifb9", "up", "type", "ifb"])
        with _place(server, "lo"):
            to_ifb = "ip_proto tcp dst_port 8080 tcp_flags 0x2/0x17 action mirred egress redirect"
            _filter(server, "lo", f"flower {to_ifb} dev ifb9")
            assert connects_within(server, ("127.0.0.1", 8080), 5)
            assert connects_within(server, translated, 3) != resets
        server.run(["ip", "link", "del", "ifb9"])
        hold(lab)
        assert connects_within(server, translated, 5)
        client = connecting(lab.client, (lab.server_ipv4, 8080), 60)
        waits(lab, 1)
        report = _let_go(lab)
        assert float(client.communicate(timeout=60)[0]) < 60
        left_out, waits_too = sorted(report["warnings"])
        assert "connections from this host are not held: iptables-legacy -t nat may" in left_out
        assert "what iptables-legacy -t nat sends elsewhere" in waits_too


@pytest.mark.needs("nfqueue-iptables")
def test_what_nat_sends_elsewhere_behind_the_filters_waits_too_and_that_is_told() -> None:
    """As a port that an engine publishes at one of this host's addresses."""
    with ClientServer() as lab:
        for port in (8080, 9090):
            listen_at(lab.server, port)
        nat = "iptables-legacy -t nat -A PREROUTING -p tcp --dport 8080 -j REDIRECT --to-ports 9090"
        lab.server.run(nat.split())
        assert connects_within(lab.client, (lab.server_ipv4, 8080), 5), "the control: it is served"
        hold(lab)
        client = connecting(lab.client, (lab.server_ipv4, 8080), 60)
        waits(lab, 1)
        assert connects_within(lab.client, (lab.server_ipv4, 9090), 5), "nobody holds that port"
        assert [words for words in _let_go(lab)["warnings"] if "sends elsewhere" in words]
        assert float(client.communicate(timeout=60)[0]) < 60
