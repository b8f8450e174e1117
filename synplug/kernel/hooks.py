"""What others have hooked into the ways of packets: chains of nftables, and programs of tcx.

Source of the formats: ``include/uapi/linux/netfilter/nf_tables.h``; bpf(2),
``include/uapi/linux/bpf.h``, ``kernel/bpf/tcx.c``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

from synplug.errors import SynplugError
from synplug.kernel.abi import architecture, bpf_number
from synplug.kernel.flower import INGRESS
from synplug.kernel.netlink import NETLINK_NETFILTER, NetlinkSocket
from synplug.kernel.netlink_codec import attributes
from synplug.kernel.xtables import is_in_use
from synplug.model import Family

_GETCHAIN = 10 << 8 | 4
_TABLE, _NAME, _HOOK, _USE, _TYPE = 1, 3, 4, 6, 7
_HOOKNUM, _DEVICE, _DEVICES = 1, 3, 4
_DEVICE_PREFIX = 2  # among the devices, besides their names; Linux 6.17
#: By family, the number of its ingress hook: NF_INET_INGRESS, NF_NETDEV_INGRESS.
_INGRESS_HOOKS = {1: 5, 5: 0}
#: NF_INET_PRE_ROUTING, where NAT meets what arrives, and NF_INET_LOCAL_OUT, where what leaves.
ARRIVING, LEAVING = 0, 3
_FAMILIES = {1: "inet", 2: "ip", 5: "netdev", 10: "ip6"}
_TRANSLATED = (1, 2, 10)
_LEGACY = {"iptables": Family.IPV4, "ip6tables": Family.IPV6}

_STATUS = "/proc/self/status"
_BPF_PROG_QUERY, _TCX_INGRESS, _TCX_EGRESS = 16, 46, 47
#: ``union bpf_attr``, of a query: ifindex, type, two kinds of flags, room for ids, their number.
_QUERY = struct.Struct("=IIIIQI36x")


class IngressChain(NamedTuple):
    """A chain of nftables that sees what devices bring.

    :param name: as nft(8) has it: family, table and chain.
    :param devices: their names. :param prefixes: of the names of more, as nft(8)'s ``"eth*"``.
    """

    name: str
    devices: frozenset[str]
    prefixes: tuple[str, ...] = ()

    def sees(self, device: str) -> bool:
        """Whether that one is among them."""
        return device in self.devices or device.startswith(self.prefixes)


def ingress_chains() -> list[IngressChain]:
    """Those of this network namespace.

    :raises SynplugError: no nf_tables here; or no CAP_NET_ADMIN.
    """
    return [
        _ingress_chain(chain)
        for chain in _base_chains(_INGRESS_HOOKS)
        if chain.hook == _INGRESS_HOOKS[chain.family]
    ]


def translations(hook: int) -> list[str]:
    """What may translate the destination of a connection there: chains of NAT that have rules.

    Of legacy iptables its tables, by the command that lists them: only who uses one has it
    (``net/netfilter/x_tables.c``, xt_find_table_lock).

    :param hook: :data:`ARRIVING`, from elsewhere, or :data:`LEAVING`, from this host.
    """
    found = []
    with suppress(SynplugError):  # without nf_tables nobody has one
        found = [
            chain.name
            for chain in _base_chains(_TRANSLATED)
            if (chain.hook, chain.kind) == (hook, "nat") and chain.uses
        ]
    for command, family in _LEGACY.items():
        with suppress(SynplugError):
            found += [f"{command}-legacy -t nat"] * is_in_use(family, "nat")
    return found


class _BaseChain(NamedTuple):
    """A chain at a hook. *kind*: its type. *uses*: its rules, and more."""

    family: int
    name: str
    kind: str
    hook: int
    uses: int
    parts: dict[int, memoryview]


def _base_chains(families: Iterable[int]) -> Iterator[_BaseChain]:
    asked = NetlinkSocket(NETLINK_NETFILTER)
    try:
        for family in families:
            body = bytes((family, 0, 0, 0))
            for answer in asked.dump("list the nftables chains", _GETCHAIN, body, complete=False):
                shown = dict(attributes(answer[4:]))
                hook = dict(attributes(shown.get(_HOOK, b"")))
                if answer[0] == family and hook:
                    names = (_FAMILIES[family], _text(shown[_TABLE]), _text(shown[_NAME]))
                    number, uses = hook.get(_HOOKNUM, b""), shown.get(_USE, b"")
                    yield _BaseChain(
                        family=family,
                        name=" ".join(names),
                        kind=_text(shown.get(_TYPE, b"")),
                        hook=int.from_bytes(number, "big"),
                        uses=int.from_bytes(uses, "big"),
                        parts=hook,
                    )
    finally:
        asked.close()


def _ingress_chain(chain: _BaseChain) -> IngressChain:
    hook = chain.parts
    found = [(_DEVICE, hook[_DEVICE])] if _DEVICE in hook else []
    found += attributes(hook.get(_DEVICES, b""))
    names, prefixes = set(), []
    for kind, name in found:
        # Linux 6.16 has a prefix as a name without an end (``net/netfilter/nf_tables_api.c``).
        if kind == _DEVICE_PREFIX or bytes(name[-1:]) != b"\0":
            prefixes.append(_text(name))
        else:
            names.add(_text(name))
    return IngressChain(chain.name, frozenset(names), tuple(prefixes))


def _text(payload: memoryview | bytes) -> str:
    return bytes(payload).rstrip(b"\0").decode(errors="replace")


def tcx_programs(device: int, side: int) -> int:
    """How many programs of tcx a device has on that side (Linux 6.6); 0, too, if nobody tells.

    Nobody is asked where system calls are filtered: a filter may end the process that asks.
    """
    number = bpf_number(architecture())
    if number is None or _is_filtered():
        return 0
    import ctypes

    attach_type = _TCX_INGRESS if side == INGRESS else _TCX_EGRESS
    attr = ctypes.create_string_buffer(_QUERY.pack(device, attach_type, 0, 0, 0, 0), _QUERY.size)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    size = ctypes.c_long(_QUERY.size)
    if libc.syscall(ctypes.c_long(number), ctypes.c_long(_BPF_PROG_QUERY), attr, size) != 0:
        return 0  # an older kernel, or not permitted
    found: int = _QUERY.unpack(attr.raw)[-1]
    return found


def _is_filtered() -> bool:
    """Whether there is a seccomp(2) filter, or nobody can say: proc_pid_status(5)."""
    try:
        with open(_STATUS, encoding="ascii", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return True
    return any(line.startswith("Seccomp:") and line.split()[1] != "0" for line in lines)
