"""Holding behind legacy iptables rules: real packets, real foreign rules, real contention.

Each test lives in a network namespace of its own, in a forked child: python-iptables and the
tables that it opens stay there.
"""

from __future__ import annotations

import importlib.util
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address

import pytest

from synplug.errors import KeeperError
from synplug.holding.handle import KeptHold
from synplug.holding.iptables_gate import IptablesGate
from synplug.holding.locks import RunLocks
from synplug.kernel import xtables
from synplug.kernel.nfqueue import PacketQueues, queue_states
from synplug.model import PROBE_MARK, Endpoint, Family, HoldSpec
from tests.unit.legacy_tables import (
    apart,
    cycle,
    put_foreign_rules,
    rules_only,
    saved,
    saved_one,
    spec_of,
)

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("iptc") is None,
    reason="python-iptables (synplug[iptables]) is not installed",
)

_AT_ONCE_S = 0.5  # less than the first retransmission of a SYN takes
_STILL_WAITS_S = 0.15
_IP_OPTIONS_NOP = b"\x01" * 4
_IPV6_DSTOPTS, _DESTINATION_OPTIONS_PAD = 59, b"\x00\x00\x01\x04\x00\x00\x00\x00"
_TOTAL_RETRANS_OFFSET = 100  # in struct tcp_info, <linux/tcp.h>


@contextmanager
def listener(host: str, *, backlog: int = 512) -> Iterator[int]:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as server:
        server.bind((host, 0))
        server.listen(backlog)
        yield int(server.getsockname()[1])


@contextmanager
def hold_of(spec: HoldSpec) -> Iterator[KeptHold]:
    """An armed hold with a keeper, closed at the end."""
    locks = RunLocks(spec.endpoints)
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


# --- connections


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("odd_headers", [False, True], ids=["plain", "IP options"])
@pytest.mark.parametrize("max_held", [1000, 100_000], ids=["one queue", "two queues"])
def test_a_connection_waits_and_comes_through_without_a_retransmission(
    host: str, odd_headers: bool, max_held: int
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


def test_other_ports_other_addresses_and_probes_do_not_wait() -> None:
    def body() -> None:
        with listener("0.0.0.0") as port, listener("127.0.0.1") as other, ExitStack() as stack:
            held = Endpoint(port=port, address=ip_address("127.0.0.7"))
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


def test_one_client_fills_several_queues_evenly() -> None:
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


def test_what_finds_the_queue_full_is_counted() -> None:
    def body() -> None:
        with listener("127.0.0.1") as port, ExitStack() as stack:
            hold = stack.enter_context(hold_of(spec_of(Endpoint(port=port), max_held=16)))
            hold.hold()
            for _ in range(20):
                stack.enter_context(client("127.0.0.1", port))
            counts = hold.release().counts
            assert (counts.held, counts.overflowed) == (16, 4)

    apart(body)


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline_s, what
        select.select([], [], [], 0.005)


# --- death


def test_after_sigkill_new_connections_pass_and_the_rest_is_cleaned_up() -> None:
    def body() -> None:
        put_foreign_rules()
        before = saved()
        with listener("127.0.0.1") as port, ExitStack() as stack:
            hold = stack.enter_context(hold_of(spec_of(Endpoint(port=port))))
            hold.hold()
            stack.enter_context(client("127.0.0.1", port))
            os.kill(hold.keeper_pid, signal.SIGKILL)
            wait_until(lambda: not queue_states(), "the kernel has taken the queue back")
            # The watcher may have removed the rules by now; while they stand they are inert.
            assert connects_at_once("127.0.0.1", port)
            with pytest.raises(KeeperError):
                hold.release()
            assert rules_only(saved()) == rules_only(before)
            IptablesGate(spec_of(Endpoint(port=1))).clean_up_after_death()  # a second time
            assert rules_only(saved()) == rules_only(before)

    apart(body)


def test_after_sigkill_of_an_armed_keeper_nothing_is_left_either() -> None:
    def body() -> None:
        put_foreign_rules()
        before = saved("-c")
        with hold_of(spec_of(Endpoint(port=80))) as hold:
            assert "synplug" in saved()
            os.kill(hold.keeper_pid, signal.SIGKILL)
            with pytest.raises(KeeperError):
                hold.hold()
            assert saved("-c") == before

    apart(body)


def test_cleaning_up_where_nothing_is_leaves_no_table_behind() -> None:
    def body() -> None:
        IptablesGate(spec_of(Endpoint(port=1))).clean_up_after_death()
        assert not xtables.is_in_use(Family.IPV4)
        assert not xtables.is_in_use(Family.IPV6)
        assert "iptc" not in sys.modules

    apart(body)


# --- others


@pytest.mark.parametrize("extensions", ["found", "unknown"])
def test_foreign_rules_keep_their_bytes_and_counters(extensions: str) -> None:
    """Whether or not their extensions can be loaded here."""

    def body() -> None:
        if extensions == "unknown":
            os.environ["XTABLES_LIBDIR"] = "/nonexistent"
            xtables.describe()
            del os.environ["XTABLES_LIBDIR"]  # iptables(8) itself needs them
        put_foreign_rules()
        before = saved("-c")
        assert "[123456789012:98765432109876]" in before
        gate = IptablesGate(spec_of(Endpoint(port=80), Endpoint(port=443)))
        gate.prepare((20_000, 20_001))
        gate.hold()
        held = saved("-c")
        assert held.count("-A INPUT -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -m mark ") == 2
        assert [line for line in held.splitlines() if "synplug" not in line] == before.splitlines()
        gate.open()
        gate.remove()
        gate.close()
        assert saved("-c") == before

    apart(body)


def test_no_other_table_is_touched() -> None:
    """Opening the nat table would switch connection tracking on."""

    def body() -> None:
        gate = IptablesGate(spec_of(Endpoint(port=80)))
        cycle(gate)
        for names in ("ip_tables_names", "ip6_tables_names"):
            with open(f"/proc/thread-self/net/{names}") as file:
                assert file.read().split() == ["mangle"]

    apart(body)


def test_what_a_foreign_queue_holds_stays_there() -> None:
    """Though the first use of the mangle table registers its hooks."""

    def body() -> None:
        queue = PacketQueues(count=1, length_packets=10, fail_open=False)
        number = queue.numbers[0]
        rule = f"INPUT -p tcp --syn -j NFQUEUE --queue-num {number}".split()
        subprocess.run(["iptables-legacy", "-w", "-A", *rule], check=True)
        assert not xtables.is_in_use(Family.IPV4)
        with client("127.0.0.1", 1):
            waiting = 1
            for _ in range(3):
                gate = IptablesGate(spec_of(Endpoint(port=80)))
                assert not gate.flushes_queues
                for step in (lambda g: g.prepare((20_000,)), *_STEPS):
                    step(gate)
                    before, (waiting,) = waiting, [state.waiting for state in queue.states()]
                    assert waiting >= before, "more, once its client sends again; never less"

    apart(body)


_STEPS = (IptablesGate.hold, IptablesGate.open, IptablesGate.remove, IptablesGate.close)


def test_nothing_is_lost_while_iptables_changes_the_same_table() -> None:
    keep = "iptables-legacy -w -t mangle -A INPUT -p udp --dport $n -j DROP"
    come = "iptables-legacy -w -t mangle -I INPUT -p sctp --dport $n -j DROP"
    go = "iptables-legacy -w -t mangle -D INPUT -p sctp --dport $n -j DROP"

    def body() -> None:
        add = f"n=1; while [ $n -le 150 ]; do {keep} || exit 1; n=$((n+1)); done"
        flap = f"n=1; while [ $n -le 100 ]; do {come} && {go} || exit 1; n=$((n+1)); done"
        others = [subprocess.Popen(["sh", "-c", line]) for line in (add, flap)]
        cycles = 0
        while cycles < 20 or any(other.poll() is None for other in others):
            cycle(IptablesGate(spec_of(Endpoint(port=80), run_id=f"{cycles:08x}")))
            cycles += 1
        assert [other.wait() for other in others] == [0, 0]
        after = saved()
        assert after.count("-p udp") == 150
        assert "sctp" not in after
        assert "synplug" not in after

    apart(body)


def test_two_gates_take_turns() -> None:
    def body() -> None:
        first = IptablesGate(spec_of(Endpoint(port=80), run_id="aaaaaaaa"))
        second = IptablesGate(spec_of(Endpoint(port=81), run_id="bbbbbbbb"))
        first.prepare((20_000,))
        second.prepare((20_001,))
        first.hold()
        second.hold()
        first.open()
        first.remove()
        assert saved().count("-j synplug-bbbbbbbb") == 2
        assert "aaaaaaaa" not in saved()
        second.open()
        second.remove()
        assert "synplug" not in saved()

    apart(body)
