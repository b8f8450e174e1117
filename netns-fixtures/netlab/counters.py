"""What the kernel counts of TCP in a namespace: ``/proc/net/netstat``."""

from __future__ import annotations

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
