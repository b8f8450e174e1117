"""Legacy iptables in a network namespace of one's own, and somebody else's rules in it."""

from __future__ import annotations

import os
import subprocess
import time
import traceback
from collections.abc import Callable

from synplug.errors import LockError
from synplug.holding.iptables_gate import IptablesGate
from synplug.kernel.namespaces import unshare_network
from synplug.model import BackendName, Endpoint, HoldSpec

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
[9:900] -A shop -p tcp -m multiport --dports 9,19 -j MARK --set-xmark 0x7/0xffffffff
[3:300] -A shop -m quota --quota 100000 -j RETURN
[4:400] -A shop -m recent --set --name met --mask 255.255.255.255 --rsource
[5:500] -A shop -p tcp -m string --string "GET /" --algo bm --to 65535 -j ACCEPT
[6:600] -A shop -m hashlimit --hashlimit-upto 5/sec --hashlimit-burst 5 --hashlimit-name many
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


def apart(body: Callable[[], None]) -> None:
    """Run *body* in a child that has a network namespace of its own."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            unshare_network()
            body()
            status = 0
        except BaseException:  # noqa: BLE001 -- the parent shows it
            os.write(writer, traceback.format_exc().encode()[:60_000])
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    assert status == 0, said or f"wait status {status}"


def spec_of(*endpoints: Endpoint, run_id: str = "0badcafe", max_held: int = 1000) -> HoldSpec:
    return HoldSpec(
        endpoints=endpoints,
        run_id=run_id,
        backend=BackendName.NFQUEUE_IPTABLES,
        max_hold_s=20.0,
        max_held_packets=max_held,
    )


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
    for tool, mask in (("iptables", "255.255.255.255"), ("ip6tables", "ffff" + ":ffff" * 7)):
        rules = _FOREIGN_RULES.replace("255.255.255.255", mask)
        subprocess.run([f"{tool}-legacy-restore", "-w", "-c"], input=rules, text=True, check=True)


def rules_only(text: str) -> list[str]:
    """Without counters: the connections of these tests met some of the rules."""
    return [line.split("] ")[-1].split(" [")[0] for line in text.splitlines()]


def saved_one(tool: str) -> str:
    return subprocess.run([tool], check=True, capture_output=True, text=True).stdout


def open_patiently(gate: IptablesGate) -> None:
    """It does not wait for the lock itself: whoever holds has something better to do."""
    for _ in range(500):
        try:
            gate.open()
        except LockError:
            time.sleep(0.01)
        else:
            return
    raise AssertionError("the lock is never free")


def cycle(gate: IptablesGate) -> None:
    gate.prepare((20_000,))
    gate.hold()
    open_patiently(gate)
    assert gate.matched() == 0
    gate.remove()
    gate.close()
