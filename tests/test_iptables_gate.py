"""Holding behind legacy iptables rules: real packets, real foreign rules, real contention.

Each test lives in a network namespace of its own, in a forked child: python-iptables and the
tables that it opens stay there.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from synplug.errors import (
    KeeperError,
    LockError,
    PrivilegeError,
    ReleaseError,
    SynplugError,
    UnsupportedError,
    UsageError,
)
from synplug.hold import iptables_gate
from synplug.hold.handle import KeptHold
from synplug.hold.iptables_gate import IptablesGate, port_shares
from synplug.hold.runtime import PortLocks
from synplug.kernel import xtables
from synplug.kernel.namespaces import unshare_network
from synplug.kernel.nfqueue import PacketQueues, queue_states
from synplug.model import PROBE_MARK, BackendName, Endpoint, Family, HoldSpec

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("iptc") is None,
    reason="python-iptables (synplug[iptables]) is not installed",
)

_AT_ONCE_S = 0.5  # less than the first retransmission of a SYN takes
_STILL_WAITS_S = 0.15
_IP_OPTIONS_NOP = b"\x01" * 4
_IPV6_DSTOPTS, _DESTINATION_OPTIONS_PAD = 59, b"\x00\x00\x01\x04\x00\x00\x00\x00"
_TOTAL_RETRANS_OFFSET = 100  # in struct tcp_info, <linux/tcp.h>
_FOREIGN_RULES = """\
*mangle
:PREROUTING ACCEPT [11:22]
:INPUT ACCEPT [33:44]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [55:66]
:POSTROUTING ACCEPT [77:88]
:shop - [0:0]
:a-chain-name-of-28-charactrs - [0:0]
[5:500] -A PREROUTING -m conntrack --ctstate INVALID -m comment --comment "not mine" -j DROP
[123456789012:98765432109876] -A INPUT -p tcp -m tcp --dport 9 -j shop
[6:600] -A INPUT -p udp -m limit --limit 5/min --limit-burst 7 -j RETURN
[7:700] -A INPUT -p tcp -m tcp --dport 9 -j NFQUEUE --queue-num 3 --queue-bypass
[8:800] -A FORWARD -m mark --mark 0x7/0xff -j CONNMARK --save-mark --nfmask 0xff --ctmask 0xff
[9:900] -A shop -m multiport --dports 9,19 -j MARK --set-xmark 0x7/0xffffffff
[1:100] -A shop -g a-chain-name-of-28-charactrs
[2:200] -A a-chain-name-of-28-charactrs -j RETURN
COMMIT
*filter
:INPUT ACCEPT [1:2]
:FORWARD ACCEPT [3:4]
:OUTPUT ACCEPT [5:6]
[10:1000] -A INPUT -p tcp -m tcp --dport 9 -m state --state NEW -j ACCEPT
COMMIT
"""


@pytest.fixture
def apart(request: pytest.FixtureRequest) -> Callable[[Callable[[], None]], None]:
    """Runs a function in a child that has a network namespace of its own."""

    def run(body: Callable[[], None]) -> None:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                unshare_network()
                body()
                status = 0
            except BaseException:
                os.write(writer, traceback.format_exc().encode()[:60_000])
            finally:
                os._exit(status)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            said = pipe.read().decode()
        _, status = os.waitpid(child, 0)
        assert status == 0, said or f"wait status {status}"

    return run


Apart = Callable[[Callable[[], None]], None]


def spec_of(*endpoints: Endpoint, run_id: str = "0badcafe", max_held: int = 1000) -> HoldSpec:
    return HoldSpec(
        endpoints=endpoints,
        run_id=run_id,
        backend=BackendName.NFQUEUE_IPTABLES,
        max_hold_s=20.0,
        max_held_packets=max_held,
    )


@contextmanager
def listener(host: str, *, backlog: int = 512) -> Iterator[int]:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as server:
        server.bind((host, 0))
        server.listen(backlog)
        yield int(server.getsockname()[1])


@contextmanager
def hold_of(spec: HoldSpec) -> Iterator[KeptHold]:
    """An armed hold with a keeper, closed at the end."""
    locks = PortLocks([endpoint.port for endpoint in spec.endpoints])
    locks.take(timeout_s=0)
    hold = KeptHold(spec, locks)
    try:
        hold.arm()
        yield hold
    finally:
        hold.close()
        locks.drop()


def client(host: str, port: int, *, mark: int = 0, odd_headers: bool = False) -> socket.socket:
    """A socket that has begun to connect."""
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.setblocking(False)
    if mark:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    if odd_headers and ":" in host:
        made.setsockopt(socket.IPPROTO_IPV6, _IPV6_DSTOPTS, _DESTINATION_OPTIONS_PAD)
    elif odd_headers:
        made.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, _IP_OPTIONS_NOP)
    made.connect_ex((host, port))
    return made


def is_connected(made: socket.socket, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(made, select.POLLOUT)
    return bool(poll.poll(timeout_s * 1000)) and made.getsockopt(
        socket.SOL_SOCKET, socket.SO_ERROR
    ) == 0  # fmt: skip


def retransmits(made: socket.socket) -> int:
    info = made.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int.from_bytes(info[_TOTAL_RETRANS_OFFSET:], sys.byteorder)


def connects_at_once(host: str, port: int, *, mark: int = 0) -> bool:
    with client(host, port, mark=mark) as made:
        return is_connected(made, _AT_ONCE_S)


def saved(*options: str) -> str:
    """All legacy rules of both IP versions, without the dates."""
    said = ""
    for tool in ("iptables-legacy-save", "ip6tables-legacy-save"):
        done = subprocess.run([tool, *options], check=True, capture_output=True, text=True)
        said += "\n".join(line for line in done.stdout.splitlines() if line[:1] != "#")
    return said


def iptables(*words: str, tool: str = "iptables-legacy") -> None:
    subprocess.run([tool, "-w", "-t", "mangle", *words], check=True)


def put_foreign_rules() -> None:
    for tool in ("iptables-legacy-restore", "ip6tables-legacy-restore"):
        subprocess.run([tool, "-w", "-c"], input=_FOREIGN_RULES, text=True, check=True)


# --- connections


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("odd_headers", [False, True], ids=["plain", "IP options"])
@pytest.mark.parametrize("max_held", [1000, 100_000], ids=["one queue", "two queues"])
def test_a_connection_waits_and_comes_through_without_a_retransmission(
    apart: Apart, host: str, odd_headers: bool, max_held: int
) -> None:
    def body() -> None:
        put_foreign_rules()
        before = saved("-c", "-t", "mangle")
        with listener(host) as port, hold_of(spec_of(Endpoint(port=port), max_held=max_held)) as h:
            assert h.backend == "nfqueue-iptables"
            assert connects_at_once(host, port), "armed, and nothing is held yet"
            h.hold()
            with client(host, port, odd_headers=odd_headers) as waiting:
                assert not is_connected(waiting, _STILL_WAITS_S)
                began_s = time.monotonic()
                result = h.release()
                assert is_connected(waiting, _AT_ONCE_S)
                assert time.monotonic() - began_s < _AT_ONCE_S
                assert retransmits(waiting) == 0
            assert connects_at_once(host, port), "released, and nothing is held any more"
            assert h.finish() == ""
        assert (result.counts.held, result.counts.released) == (1, 1)
        assert (result.counts.lost, result.counts.overflowed) == (0, 0)
        assert rules_only(saved("-t", "mangle")) == rules_only(before)
        assert not queue_states()

    apart(body)


def rules_only(text: str) -> list[str]:
    """Without counters: the connections of these tests met some of the rules."""
    return [line.split("] ")[-1].split(" [")[0] for line in text.splitlines()]


def test_other_ports_other_addresses_and_probes_do_not_wait(apart: Apart) -> None:
    def body() -> None:
        with listener("0.0.0.0") as port, listener("127.0.0.1") as other, ExitStack() as stack:
            held = Endpoint(port=port, address=xtables_address("127.0.0.7"))
            hold = stack.enter_context(hold_of(spec_of(held)))
            hold.hold()
            waiting = stack.enter_context(client("127.0.0.7", port))
            assert connects_at_once("127.0.0.1", other)
            assert connects_at_once("127.0.0.1", port)
            assert connects_at_once("127.0.0.7", port, mark=PROBE_MARK)
            assert not is_connected(waiting, 0)
            assert "synplug" not in saved_one("ip6tables-legacy-save"), "IPv6 is not concerned"
            hold.release()
            assert is_connected(waiting, _AT_ONCE_S)
            assert hold.finish() == ""

    apart(body)


def xtables_address(words: str) -> xtables.Address:
    import ipaddress

    return ipaddress.ip_address(words)


def saved_one(tool: str) -> str:
    return subprocess.run([tool], check=True, capture_output=True, text=True).stdout


def test_one_client_fills_several_queues_evenly(apart: Apart) -> None:
    """Its address is always the same; only its source port tells connections apart."""

    def body() -> None:
        with listener("127.0.0.1") as port, ExitStack() as stack:
            hold = stack.enter_context(hold_of(spec_of(Endpoint(port=port), max_held=100_000)))
            hold.hold()
            clients = [stack.enter_context(client("127.0.0.1", port)) for _ in range(200)]
            waiting = [state.waiting for state in queue_states().values()]
            assert len(waiting) == 2
            assert sum(waiting) == 200
            assert min(waiting) > 50
            result = hold.release()
            assert all(is_connected(made, _AT_ONCE_S) for made in clients)
            assert result.counts.released == 200
            assert result.counts.overflowed == 0

    apart(body)


def test_what_finds_the_queue_full_is_counted(apart: Apart) -> None:
    def body() -> None:
        with listener("127.0.0.1") as port, ExitStack() as stack:
            hold = stack.enter_context(hold_of(spec_of(Endpoint(port=port), max_held=16)))
            hold.hold()
            for _ in range(20):
                stack.enter_context(client("127.0.0.1", port))
            counts = hold.release().counts
            assert (counts.held, counts.overflowed) == (16, 4)

    apart(body)


# --- death


def test_after_sigkill_new_connections_pass_and_the_rest_is_cleaned_up(apart: Apart) -> None:
    def body() -> None:
        put_foreign_rules()
        before = saved()
        with listener("127.0.0.1") as port, ExitStack() as stack:
            hold = stack.enter_context(hold_of(spec_of(Endpoint(port=port))))
            hold.hold()
            stack.enter_context(client("127.0.0.1", port))
            os.kill(hold.keeper_pid, signal.SIGKILL)
            wait_until(lambda: not queue_states(), "the kernel has taken the queue back")
            assert "synplug" in saved(), "the rules are still there, and inert"
            for host in ("127.0.0.1", "127.0.0.2"):
                with client(host, port) as made:
                    assert is_connected(made, _AT_ONCE_S) or host == "127.0.0.2"
            with pytest.raises(KeeperError):
                hold.release()
            assert rules_only(saved()) == rules_only(before)
            IptablesGate(spec_of(Endpoint(port=1))).clean_up_after_death()  # a second time
            assert rules_only(saved()) == rules_only(before)

    apart(body)


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline_s, what
        select.select([], [], [], 0.005)


def test_cleaning_up_where_nothing_is_leaves_no_table_behind(apart: Apart) -> None:
    def body() -> None:
        IptablesGate(spec_of(Endpoint(port=1))).clean_up_after_death()
        assert not xtables.is_in_use(Family.IPV4)
        assert not xtables.is_in_use(Family.IPV6)
        assert "iptc" not in sys.modules

    apart(body)


# --- others


@pytest.mark.parametrize("extensions", ["found", "unknown"])
def test_foreign_rules_keep_their_bytes_and_counters(apart: Apart, extensions: str) -> None:
    """Whether or not their extensions can be loaded here."""

    def body() -> None:
        if extensions == "unknown":
            os.environ["XTABLES_LIBDIR"] = "/nonexistent"
        put_foreign_rules()
        before = saved("-c")
        assert "[123456789012:98765432109876]" in before
        gate = IptablesGate(spec_of(Endpoint(port=80), Endpoint(port=443)))
        gate.prepare((20_000, 20_001))
        gate.hold()
        assert saved("-c").replace("synplug", "") != before
        gate.open()
        gate.remove()
        gate.close()
        assert saved("-c") == before

    def with_extensions_for_iptables_itself() -> None:
        global saved  # noqa: PLW0603 -- restored by the end of this process
        body()

    apart(with_extensions_for_iptables_itself)
