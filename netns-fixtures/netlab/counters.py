"""What the kernel counts of TCP in a namespace: ``/proc/net/netstat``."""

from __future__ import annotations

from pathlib import Path

from netlab.topology import Namespace

#: Of connections that a listener had no room for (Documentation/networking/snmp_counter.rst).
NO_ROOM = (
    "ListenOverflows",
    "ListenDrops",
    "SyncookiesSent",
    "TCPReqQFullDoCookies",
    "TCPReqQFullDrop",
)


def tcp_counters(namespace: Namespace) -> dict[str, int]:
    """The extended ones, by name, since the namespace was made."""
    lines = namespace.run(["cat", "/proc/net/netstat"]).stdout.splitlines()
    names, values = (line.split()[1:] for line in lines if line.startswith("TcpExt:"))
    return {name: int(value) for name, value in zip(names, values, strict=True)}


def dropped_before_ip() -> int:
    """Packets for which a processor's receive backlog was full, on all of the machine.

    What loopback and veth devices deliver goes there (net.core.netdev_max_backlog); the second
    column of ``/proc/net/softnet_stat``, hexadecimal (net/core/net-procfs.c).
    """
    lines = Path("/proc/net/softnet_stat").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1], 16) for line in lines)
