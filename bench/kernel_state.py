"""What the kernel and the ledger say from outside while a hold is in force."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from netlab.topology import Namespace


def holding_keepers(server: Namespace) -> list[int]:
    """The keepers of the holds that are in force."""
    entries = json.loads(server.run([sys.executable, "-m", "synplug", "status", "--json"]).stdout)
    return [entry["keeper"] for entry in entries if entry["live"] and entry["state"] == "holding"]


def queues(server: Namespace) -> list[str]:
    """The netfilter queues of a namespace, a line each."""
    return server.run(["cat", "/proc/net/netfilter/nfnetlink_queue"]).stdout.splitlines()


def waiting_packets(server: Namespace) -> int:
    """Packets that wait in the queues."""
    return sum(int(line.split()[2]) for line in queues(server))


def private_mib(pid: int) -> float:
    """The memory that a process has for itself (proc(5), smaps_rollup)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    kib = sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
    return kib / 1024


def _stat(pid: int) -> list[str]:
    """Fields of proc(5)'s stat, from the third on, the state."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()


def cpu_s(pid: int) -> float:
    """Processor time of a process, user and system; in ticks of 10 ms."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def sleeps(pid: int) -> bool:
    """Whether it waits for something to do."""
    return _stat(pid)[0] == "S"
