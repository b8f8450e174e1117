"""What a kernel has, found by trying it in a throw-away network namespace."""

from __future__ import annotations

import ctypes
import errno
import struct

from netlab.topology import Namespace
from synplug.errors import UnsupportedError
from synplug.kernel.nfqueue import queue_states

_BASE_CHAIN = "'{ type filter hook input priority 0; }'"
_QUEUE = "NFQUEUE --queue-num 5 --queue-bypass"
_ON_IFB = "ip link add ifb9 type ifb && tc qdisc add dev ifb9 root handle 1:"
_CLSACT = "tc qdisc add dev lo clsact && tc filter add dev lo ingress"
_PRIO = "tc qdisc add dev lo root handle 1: prio && tc filter add dev lo parent 1:"

#: Each line of a shell has to succeed for the kernel to have it.
_TRIALS = {
    "nf_tables, family inet": f"nft add table inet t && nft add chain inet t c {_BASE_CHAIN}",
    "nf_tables, family ip": f"nft add table ip t && nft add chain ip t c {_BASE_CHAIN}",
    "nf_tables, family bridge": f"nft add table bridge t && nft add chain bridge t c {_BASE_CHAIN}",
    "nf_tables, tables with an owner": "nft add table bridge t '{ flags owner; }'",
    "nft queue statement": "nft add table bridge t && nft add chain bridge t c"
    " && nft add rule bridge t c queue num 5 bypass",
    "NFQUEUE target in nf_tables": f"iptables-nft -t mangle -A INPUT -p tcp -j {_QUEUE}",
    "legacy iptables with NFQUEUE": f"iptables-legacy -t mangle -A INPUT -p tcp -j {_QUEUE}",
    "legacy ip6tables with NFQUEUE": f"ip6tables-legacy -t mangle -A INPUT -p tcp -j {_QUEUE}",
    "sch_plug": f"{_ON_IFB} plug",
    "sch_prio, cls_fw": f"{_PRIO} protocol all handle 5 fw classid 1:3",
    "sch_netem": "tc qdisc add dev lo root netem delay 1ms",
    "ifb, act_mirred": f"ip link add ifb9 type ifb && {_CLSACT} protocol ip"
    " u32 match u8 0x02 0x12 at 33 action mirred egress redirect dev ifb9",
    "cls_flower": f"{_CLSACT} protocol ip flower ip_proto tcp tcp_flags 0x2/0x17 action pass",
    "cls_bpf": f"{_CLSACT} bpf bytecode '1,6 0 0 4294967295'",
    "veth": "ip link add name v0 type veth peer name v1",
    "VLAN": "ip link add name v0 type dummy && ip link add link v0 name v0.5 type vlan id 5",
    "bonding, bridge": "ip link add name b0 type bond && ip link add name b1 type bridge",
}
_NO_INET = {"nf_tables, family inet", "nf_tables, family ip", "NFQUEUE target in nf_tables"}
_NO_LEGACY = {"legacy iptables with NFQUEUE", "legacy ip6tables with NFQUEUE"}
#: What a guest's kernel lacks. The machine's own may lack anything.
ABSENT: dict[str, set[str]] = {
    "bullseye": _NO_INET | {"nf_tables, tables with an owner"},
    "bookworm": _NO_INET,
    "trixie": _NO_INET,
    "sid": _NO_INET | _NO_LEGACY,
    "stock-bookworm": set(),
    "stock-trixie": set(),
    "stock-sid": set(),
}
#: What each backend cannot do without, in the order in which `auto` tries them.
NEEDS = {
    "nfqueue": {"nf_tables, family inet", "nf_tables, tables with an owner", "nfnetlink_queue"},
    "nfqueue-iptables": _NO_LEGACY | {"nfnetlink_queue"},
    "plug": {"sch_plug", "ifb, act_mirred", "cls_flower"},
}
BACKENDS = list(NEEDS)

_SYS_BPF = 321  # x86_64, as all kernels of the matrix
_BPF_PROG_LOAD, _PROGRAM_SCHED_CLS = 5, 3
_RETURN_ZERO = bytes.fromhex("b700000000000000 9500000000000000".replace(" ", ""))


def backends_of(guest: str) -> list[str]:
    """Those that hold in that guest."""
    return [backend for backend, needs in NEEDS.items() if not needs & ABSENT[guest]]


def features() -> dict[str, bool]:
    """Every feature by name, and whether this kernel has it."""
    found = {}
    for name, line in _TRIALS.items():
        with Namespace() as namespace:
            done = namespace.run(["sh", "-c", line], check=False, timeout_s=60)
            found[name] = done.returncode == 0
    return found | {"nfnetlink_queue": _has_queues(), "bpf(2)": _loads_programs()}


def _has_queues() -> bool:
    try:
        queue_states()
    except UnsupportedError:
        return False
    return True


def _loads_programs() -> bool:
    """Load ``r0 = 0; exit`` for a tc filter: ``union bpf_attr`` of <linux/bpf.h>."""
    instructions = ctypes.create_string_buffer(_RETURN_ZERO, len(_RETURN_ZERO))
    license_ = ctypes.create_string_buffer(b"Apache-2.0")
    data = struct.pack(
        "=IIQQIIQII",
        _PROGRAM_SCHED_CLS,
        len(_RETURN_ZERO) // 8,
        ctypes.addressof(instructions),
        ctypes.addressof(license_),
        *(0, 0, 0, 0, 0),
    )
    attributes = ctypes.create_string_buffer(data, len(data))
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(_SYS_BPF, _BPF_PROG_LOAD, attributes, len(data))
    if descriptor < 0:
        assert ctypes.get_errno() == errno.ENOSYS, f"bpf(2): {errno.errorcode[ctypes.get_errno()]}"
        return False
    libc.close(descriptor)
    return True
