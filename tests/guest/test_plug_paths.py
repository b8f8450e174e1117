"""By which ways SYNs reach a plug, and what else is on these ways; inside the guest."""

from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from netlab.program import wait_until
from netlab.snapshot import NetworkState
from netlab.topology import ClientServer
from tests.guest.plug import PLUG, device, hold, ifb, listen_at, waits
from tests.integration import shell
from tests.integration.conftest import SimpleService
from tests.integration.connect import connect_s, connecting, connects_within, holds_in_force

pytestmark = [pytest.mark.guests_only, pytest.mark.usefixtures("simple")]
#: The rest is a selection, one test a way, that every change passes.
_ON_EVERY_KERNEL = pytest.mark.kernels

_CONNECT_WITH = """
import socket, sys, time
host, level, name = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
data = bytes.fromhex(sys.argv[4])
with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as ours:
    ours.settimeout(60)
    ours.setsockopt(level, name, data)
    began = time.monotonic()
    ours.connect((host, 8080))
    print(time.monotonic() - began)
"""
_CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], 8080), 60)"
#: Makes two tun devices, and carries what is sent by the one to the other.
_TUNNEL = """
import contextlib, fcntl, os, select, struct, sys
def opened(name, TUNSETIFF=0x400454CA, IFF_TUN=1, IFF_NO_PI=0x1000):
    ours = os.open(sys.argv[1], os.O_RDWR)
    fcntl.ioctl(ours, TUNSETIFF, struct.pack("16sH14x", name.encode(), IFF_TUN | IFF_NO_PI))
    return ours
ends = [opened(name) for name in sys.argv[2:]]
while True:
    for end in select.select(ends, [], [])[0]:
        with contextlib.suppress(OSError):  # the other one is down yet
            os.write(ends[1 - ends.index(end)], os.read(end, 65536))
"""
_IP, _IP_OPTIONS = 0, 4
_IPV6, _IPV6_HOP_OPTIONS, _IPV6_DESTINATION_OPTIONS = 41, 54, 59
#: Two no-operations and the end of the list (RFC 791); a header of padding (RFC 8200, 4.2).
_NOPS, _PADDING = "01010100", "0000010400000000"


@pytest.mark.parametrize(
    ("version", "option", "data"),
    [
        (4, (_IP, _IP_OPTIONS), _NOPS),
        (6, (_IPV6, _IPV6_HOP_OPTIONS), _PADDING),
        pytest.param(6, (_IPV6, _IPV6_DESTINATION_OPTIONS), _PADDING, marks=pytest.mark.kernels),
    ],
    ids=["IP options", "hop-by-hop header", "destination options header"],
)
def test_a_syn_behind_other_headers_waits(
    lab: ClientServer, version: int, option: tuple[int, int], data: str
) -> None:
    host = lab.server_ipv4 if version == 4 else lab.server_ipv6
    argv = [sys.executable, "-c", _CONNECT_WITH, host, *map(str, option), data]
    plainly = lab.client.run(argv, timeout_s=60).stdout
    assert float(plainly) < 5, "the control: with these headers it connects"
    hold(lab)
    client = lab.client.popen(argv, stdout=subprocess.PIPE)
    waits(lab, 1)
    _let_go(lab)
    assert float(client.communicate(timeout=60)[0]) > float(plainly)


def test_a_tagged_frame_waits_where_its_device_shows_it(lab: ClientServer) -> None:
    for side, address in ((lab.client, "10.77.0.1/24"), (lab.server, "10.77.0.2/24")):
        side.run(
            ["ip", "link", "add", "link", "veth0", "name", "veth0.7", "type", "vlan", "id", "7"]
        )
        side.run(f"ip address add {address} dev veth0.7".split())
        side.run(["ip", "link", "set", "veth0.7", "up"])
    hold(lab)
    client = connecting(lab.client, ("10.77.0.2", 8080), 60)
    waits(lab, 1)
    assert _let_go(lab) == 1
    assert float(client.communicate(timeout=60)[0]) < 60
    lab.server.run(["ip", "link", "del", "veth0.7"])


def test_what_a_tunnel_brings_waits(lab: ClientServer, tmp_path: Path) -> None:
    """A device of packets, not of frames: it has no header of its own before them."""
    lab.server.run(["modprobe", "--dirname", os.environ["GUEST_MODULES"], "tun"])
    os.mknod(node := str(tmp_path / "tun"), stat.S_IFCHR | 0o600, os.makedev(10, 200))
    tunnel = lab.server.popen([sys.executable, "-S", "-c", _TUNNEL, node, "tun8", "tun9"])
    try:
        shown = ["ip", "link", "show", "tun9"]
        wait_until(lambda: not lab.server.run(shown, check=False).returncode, 30, "it is there")
        lab.server.run(["ip", "link", "set", "tun9", "netns", lab.client.name])
        for side, name, end in ((lab.server, "tun8", 2), (lab.client, "tun9", 1)):
            for address in (f"10.75.0.{end}/24", f"fd75::{end}/64"):
                side.run(["ip", "address", "add", address, "dev", name, "nodad"])
            side.run(["ip", "link", "set", name, "up"])
        for host in ("10.75.0.2", "fd75::2"):
            assert connects_within(lab.client, (host, 8080), 10), "the control"
        hold(lab)
        clients = [connecting(lab.client, (host, 8080), 60) for host in ("10.75.0.2", "fd75::2")]
        waits(lab, 2)
        assert _let_go(lab) >= 2
        for client in clients:
            assert float(client.communicate(timeout=60)[0]) < 60
    finally:
        tunnel.kill()
        tunnel.wait()


@_ON_EVERY_KERNEL
def test_what_a_vrf_brings_to_an_address_that_is_named_waits(lab: ClientServer) -> None:
    """To a listener of all VRFs (net.ipv4.tcp_l3mdev_accept)."""
    server, client = lab.server, lab.client
    server.run(["ip", "link", "add", "vrf9", "type", "vrf", "table", "99"])
    peer = ["peer", "name", "late1", "netns", client.name]
    server.run(["ip", "link", "add", "late0", "type", "veth", *peer])
    accepts = "net.ipv4.tcp_l3mdev_accept"
    try:
        server.run(["sysctl", "-qw", f"{accepts}=1"])
        server.run(["ip", "link", "set", "late0", "master", "vrf9"])
        for side, names, end in ((server, ("vrf9", "late0"), 2), (client, ("late1",), 1)):
            side.run(["ip", "address", "add", f"10.75.0.{end}/24", "dev", names[-1]])
            for name in names:
                side.run(["ip", "link", "set", name, "up"])
        assert connects_within(client, ("10.75.0.2", 8080), 10), "the control"
        named = ["-p", "10.75.0.2:8080", "--name", "web", *PLUG]
        assert shell.run(server, "hold", *named).status == 0
        waiting = connecting(client, ("10.75.0.2", 8080), 60)
        waits(lab, 1)
        assert _let_go(lab) >= 1
        assert float(waiting.communicate(timeout=60)[0]) < 60
    finally:
        server.run(["sysctl", "-qw", f"{accepts}=0"])
        for name in ("late0", "vrf9"):
            server.run(["ip", "link", "del", name])


@_ON_EVERY_KERNEL
def test_a_frame_with_a_priority_tag_waits(lab: ClientServer) -> None:
    """VLAN 0 is none: the wire brings it as if it had no tag (IEEE 802.1Q, 6.9)."""
    words = "link add link veth0 name veth0.0 type vlan id 0 egress-qos-map 0:5"
    lab.client.run(["ip", *words.split()])
    lab.client.run(["ip", "address", "add", "10.76.0.1/24", "dev", "veth0.0"])
    lab.client.run(["ip", "link", "set", "veth0.0", "up"])
    lab.server.run(["ip", "address", "add", "10.76.0.2/24", "dev", "veth0"])
    (link,) = json.loads(lab.server.run(["ip", "-j", "link", "show", "veth0"]).stdout)
    # an answer comes without a tag, and so by another device than the question left by
    neighbour = f"ip neighbour add 10.76.0.2 lladdr {link['address']} dev veth0.0"
    lab.client.run(neighbour.split())
    try:
        assert connects_within(lab.client, ("10.76.0.2", 8080), 10), "the control"
        hold(lab)
        client = connecting(lab.client, ("10.76.0.2", 8080), 60)
        waits(lab, 1)
        assert _let_go(lab) >= 1
        assert float(client.communicate(timeout=60)[0]) < 60
    finally:
        lab.client.run(["ip", "link", "del", "veth0.0"])
        lab.server.run(["ip", "address", "del", "10.76.0.2/24", "dev", "veth0"])


@pytest.fixture
def bridge(lab: ClientServer) -> Iterator[str]:
    """A bridge of the server's, and its address; the client has one beside it."""
    lab.server.run(["ip", "link", "add", "br0", "type", "bridge"])
    lab.server.run(["ip", "address", "add", "10.78.0.2/24", "dev", "br0"])
    lab.server.run(["ip", "link", "set", "br0", "up"])
    lab.client.run(["ip", "address", "add", "10.78.0.1/24", "dev", "veth0"])
    yield "10.78.0.2"
    lab.client.run(["ip", "address", "del", "10.78.0.1/24", "dev", "veth0"])
    lab.server.run(["ip", "link", "del", "br0"])


@pytest.fixture
def bridged(lab: ClientServer, bridge: str) -> str:
    """The same, and the server's wire is a port of it."""
    lab.server.run(["ip", "link", "set", "veth0", "master", "br0"])
    return bridge


def test_what_a_bridge_brings_waits_once(lab: ClientServer, bridged: str) -> None:
    wait_until(lambda: connects_within(lab.client, (bridged, 8080), 2), 60, "the bridge forwards")
    hold(lab)
    before = _retransmitted(lab)
    client = connecting(lab.client, (bridged, 8080), 60)
    waits(lab, 1)
    released = _let_go(lab)
    assert 1 <= released <= 1 + _retransmitted(lab) - before
    assert float(client.communicate(timeout=60)[0]) < 60


@_ON_EVERY_KERNEL
def test_a_wire_that_becomes_a_port_during_the_hold_brings_everybody_afterwards(
    lab: ClientServer, bridge: str
) -> None:
    hold(lab)
    lab.server.run(["ip", "link", "set", "veth0", "master", "br0"])
    assert _let_go(lab) == 0
    wait_until(lambda: connects_within(lab.client, (bridge, 8080), 2), 60, "nothing is lost")


def _retransmitted(lab: ClientServer) -> int:
    """Segments that the client has sent again: RetransSegs of proc_net_snmp(5)."""
    lines = lab.client.run(["cat", "/proc/net/snmp"]).stdout.splitlines()
    names, values = (line.split()[1:] for line in lines if line.startswith("Tcp:"))
    return int(dict(zip(names, values, strict=True))["RetransSegs"])


def test_what_local_clients_send_waits_where_they_send_it(lab: ClientServer) -> None:
    """And nobody else's."""
    hold(lab, "--loopback-egress")
    assert connects_within(lab.client, (lab.server_ipv4, 8080), 5), "what others send passes"
    clients = [connecting(lab.server, (host, 8080), 60) for host in ("127.0.0.1", "::1")]
    waits(lab, 2)
    assert _let_go(lab) >= len(clients)
    for client in clients:
        assert float(client.communicate(timeout=60)[0]) < 60


def test_a_foreign_qdisc_of_loopback_stays_and_works(lab: ClientServer) -> None:
    """Who is not held is delayed by it meanwhile, and afterwards everybody is."""
    other, delay_s = ("127.0.0.1", 9090), 0.3
    listen_at(lab.server, 9090)
    assert connect_s(lab.server, other) < delay_s, "the control"
    lab.server.run(f"tc qdisc add dev lo root netem delay {delay_s * 1000:.0f}ms".split())
    before = NetworkState.capture(lab.server)
    hold(lab, "--loopback-egress")
    client = connecting(lab.server, ("127.0.0.1", 8080), 60)
    waits(lab, 1)
    assert connect_s(lab.server, other) > 2 * delay_s, "there and back"
    _let_go(lab)
    assert float(client.communicate(timeout=60)[0]) < 60
    assert connect_s(lab.server, ("127.0.0.1", 8080)) > 2 * delay_s
    wait_until(  # what loopback has to send by then goes first
        lambda: not before.difference(NetworkState.capture(lab.server)), 10, "all is as before"
    )
    lab.server.run(["tc", "qdisc", "del", "dev", "lo", "root"])


@_ON_EVERY_KERNEL
def test_chosen_devices_and_another_namespace(lab: ClientServer) -> None:
    """Held from outside of the namespace, and what another device brings passes."""
    words = ["hold", "--netns", lab.server.name, "-p", "8080", "--name", "web", *PLUG]
    held = shell.run(lab.client, *words, "--dev", device(lab))
    assert held.status == 0, held
    assert connects_within(lab.server, ("127.0.0.1", 8080), 5), "lo was not chosen"
    client = connecting(lab.client, (lab.server_ipv6, 8080), 60)
    waits(lab, 1)
    _let_go(lab)
    assert float(client.communicate(timeout=60)[0]) < 60


@_ON_EVERY_KERNEL
def test_the_device_of_the_run_goes_down_and_holds_again(lab: ClientServer) -> None:
    hold(lab)
    client = connecting(lab.client, (lab.server_ipv4, 8080), 60)
    waits(lab, 1)
    holds_in_force(lab.server)  # which takes longer than until the keeper looks again
    lab.server.run(["ip", "link", "set", ifb(lab), "down"])
    waits(lab, 1)  # its next SYN
    outcome = shell.run(lab.server, "release", "--name", "web", "--json", "-")
    assert outcome.report["hold"]["lost"] >= 1
    assert float(client.communicate(timeout=60)[0]) > 0.9


def test_several_ports_and_addresses_behind_an_ingress_qdisc_of_somebody_else(
    lab: ClientServer,
) -> None:
    """It stays, and its filter; no clsact can stand beside it."""
    wire, (host4, host6) = device(lab), lab.server_addresses
    for port in (9090, 9091):
        listen_at(lab.server, port)
    lab.server.run(f"tc qdisc add dev {wire} ingress".split())
    try:
        drop = "u32 match ip dport 9 0xffff action drop"
        lab.server.run(f"tc filter add dev {wire} ingress protocol ip pref 7 {drop}".split())
        before = NetworkState.capture(lab.server)
        hold(lab, "-p", "9090", "-p", f"[{host6}]:9091")
        targets = [(host, port) for host in (host4, host6) for port in (8080, 9090)]
        clients = [connecting(lab.client, target, 60) for target in [*targets, (host6, 9091)]]
        waits(lab, len(clients))
        assert connects_within(lab.client, (host4, 9091), 5), "it was not named"
        assert all(client.poll() is None for client in clients)
        outcome = shell.run(lab.server, "release", "--name", "web", "--json", "-")
        assert outcome.status == 0, outcome
        assert outcome.report["hold"]["released"] >= len(clients)
        for client in clients:
            assert float(client.communicate(timeout=60)[0]) < 60
        left = before.difference(NetworkState.capture(lab.server))
        assert not left, "\n".join(left)
    finally:
        lab.server.run(["tc", "qdisc", "del", "dev", wire, "ingress"])


@pytest.mark.parametrize("first", ["one", pytest.param("two", marks=_ON_EVERY_KERNEL)])
def test_two_runs_share_what_was_made_for_one(lab: ClientServer, first: str) -> None:
    """Each lets go its own, and the last one that goes removes it: the lab looks."""
    ports = {"one": 8080, "two": 8081}
    clients = {}
    listen_at(lab.server, ports["two"])
    for name, port in ports.items():
        held = shell.run(lab.server, "hold", "-p", str(port), "--name", name, *PLUG)
        assert held.status == 0, held
        clients[name] = connecting(lab.client, (lab.server_ipv4, port), 60)
    unanswered = ["ss", "-Htn", "state", "syn-sent"]
    wait_until(lambda: len(lab.client.run(unanswered).stdout.splitlines()) == 2, 30, "both wait")
    last = {"one": "two", "two": "one"}[first]
    for name in (first, last):
        released = shell.run(lab.server, "release", "--now", "--name", name, "--json", "-")
        assert released.report["hold"]["released"] >= 1
        assert float(clients[name].communicate(timeout=60)[0]) < 60
        if name == first:
            assert not connects_within(lab.client, (lab.server_ipv4, ports[last]), 2)
            assert clients[last].poll() is None
    qdiscs = json.loads(lab.server.run(["tc", "-j", "qdisc", "show"]).stdout)
    assert [qdisc["kind"] for qdisc in qdiscs if qdisc["kind"] == "clsact"] == []


def _let_go(lab: ClientServer) -> int:
    outcome = shell.run(lab.server, "release", "--name", "web", "--json", "-")
    assert outcome.status == 0, outcome
    return int(outcome.report["hold"]["released"])


@pytest.mark.parametrize(
    "to",
    [
        pytest.param("127.0.0.1", marks=_ON_EVERY_KERNEL),
        pytest.param("::1", marks=_ON_EVERY_KERNEL),
        "a wire's",
    ],
)
def test_a_check_of_the_restarts_own_passes_the_hold(
    lab: ClientServer, simple: SimpleService, to: str
) -> None:
    """At its second SYN: the first one waits already. With each there would be a deadline.

    That is a minute: an emulated kernel takes half of it to start what is to be run.
    """
    host = lab.server_ipv4 if to == "a wire's" else to
    check = [sys.executable, "-S", "-c", _CONNECT, host]
    options = ["-p", "8080", *PLUG, "--ready-cmd", shlex.join(check)]
    outcome = shell.wrap(lab.server, options, simple.restart_argv("--delay", "0.3"))
    assert outcome.status == 0, outcome
    assert outcome.report["hold"]["let_through"] >= 1
