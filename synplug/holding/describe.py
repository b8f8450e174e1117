"""A hold in the words of nft(8), iptables(8) and tc(8), for those who want to know what it does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from synplug.holding.queue_plan import queue_plan
from synplug.kernel.nft_rules import BALANCE_SHIFT
from synplug.model import BackendName, Endpoint, HoldSpec, Hook

#: Where SYNs are met, and which of them, for each hook.
_BASE_CHAINS = {
    Hook.INPUT: {"input": ""},
    Hook.FORWARD: {"forward": ""},
    Hook.PREROUTING: {"prerouting": "iif != lo ", "output": ""},
}


def equivalent_commands(spec: HoldSpec) -> list[str]:
    """Lines that would hold, and release, as *spec* says; N stands for a free queue number."""
    if spec.backend is BackendName.NFQUEUE_IPTABLES:
        return _iptables(spec)
    if spec.backend is BackendName.PLUG:
        return _plug(spec)
    table = f"inet synplug-{spec.run_id}"
    queues, _ = queue_plan(spec.max_held_packets)
    shares = [
        f"    {_nft_share(index, queues)}counter queue num {_number(index)} bypass;"
        for index in range(queues)
    ]
    matches = [f"    {_nft_match(endpoint, spec.hook)}jump queues;" for endpoint in spec.endpoints]
    chains = _BASE_CHAINS[spec.hook]
    return [
        "# prepare; a program must be bound to the queue and hold its verdicts back",
        f"nft 'table {table} {{",
        "  chain queues {",
        *shares,
        "  }",
        "  chain hold {",
        *matches,
        "  }",
        *(
            f"  chain {chain} {{ type filter hook {chain} priority mangle; policy accept; }}"
            for chain in chains
        ),
        "}'",
        "# hold",
        *(
            f"nft 'add rule {table} {chain} {more}tcp flags & (fin|syn|rst|ack) == syn "
            f"meta mark != {spec.probe_mark:#x} jump hold'"
            for chain, more in chains.items()
        ),
        "# release: no new SYN waits; give the verdicts; when the queue is empty, remove",
        *(f"nft 'flush chain {table} {chain}'" for chain in chains),
        f"nft 'delete table {table}'",
    ]


def _number(index: int) -> str:
    return f"N+{index}" if index else "N"


def _nft_match(endpoint: Endpoint, hook: Hook) -> str:
    match = ""
    if endpoint.exact_address is not None:
        family = "ip" if endpoint.exact_address.version == 4 else "ip6"
        match = f"{family} daddr {endpoint.exact_address} "
    elif endpoint.address is not None:
        match = f"meta nfproto ipv{endpoint.address.version} "
    if hook is Hook.PREROUTING and endpoint.exact_address is None:
        match += "fib daddr type local "
    return f"{match}tcp dport {endpoint.port} "


def _nft_share(index: int, queues: int) -> str:
    if queues == 1:
        return ""
    mask = (queues - 1) << BALANCE_SHIFT
    return f"tcp sport & {mask:#x} == {index << BALANCE_SHIFT:#x} "


def _filters(spec: HoldSpec, devices: Sequence[str], ifb: str) -> Iterator[tuple[str, str]]:
    """Of each filter how it is added, and how it is removed."""
    ours = "pref N handle N flower"
    side = "egress" if spec.loopback_egress else "ingress"
    for endpoint in spec.endpoints:
        for family in endpoint.families:
            protocol, example = ("ip", "ADDRESS") if family.value == 4 else ("ipv6", "ADDRESS6")
            kinds = {protocol: ours}
            tagged = {"802.1Q": f"{ours} vlan_id 0 vlan_ethtype {protocol}"}
            for device in devices:
                for kind, keys in (kinds | (tagged if device != "lo" else {})).items():
                    where = f"dev {device} {side} protocol {kind}"
                    yield (
                        f"tc filter add {where} {keys} ip_proto tcp "
                        f"dst_ip {endpoint.exact_address or example} dst_port {endpoint.port} "
                        f"tcp_flags 0x2/0x17 action mirred egress redirect dev {ifb}",
                        f"tc filter del {where} {ours}",
                    )


def _plug(spec: HoldSpec) -> list[str]:
    from synplug.holding.plug_limits import limit_bytes

    ifb = f"synplug{spec.run_id}"
    devices = ("lo",) if spec.loopback_egress else spec.devices or ("DEV",)
    filters = list(_filters(spec, devices, ifb))
    side = "egress" if spec.loopback_egress else "ingress"
    # DEV stands for lo, too: a mark that a probe carries does not leave the machine.
    marked = [f"dev lo {side} pref N protocol all"] if {"lo", "DEV"} & set(devices) else []
    return [
        "# prepare; for each network device DEV, and each address of this machine; N is free there",
        f"ip link add {ifb} mtu 1000 type ifb && ip link set {ifb} up",
        f"tc qdisc add dev {ifb} root plug limit {limit_bytes(spec)} "
        f"&& tc qdisc change dev {ifb} root plug release_indefinite",
        *(f"tc qdisc add dev {device} clsact  # unless it has one" for device in devices),
        *(f"tc filter add {where} handle {spec.probe_mark:#x} fw action pass" for where in marked),
        *(added for added, _ in filters),
        "# hold",
        f"tc qdisc change dev {ifb} root plug block",
        "# release; remove the filters; when the plug is empty, remove the rest",
        f"tc qdisc change dev {ifb} root plug release_indefinite",
        *(f"tc filter del {where} handle {spec.probe_mark:#x} fw" for where in marked),
        *dict.fromkeys(removed for _, removed in filters),
        f"ip link del {ifb}",
        "# then remove each clsact that was made above and that is empty",
    ]


def _iptables(spec: HoldSpec) -> list[str]:
    chain = f"synplug-{spec.run_id}"
    lines = []
    for endpoint in spec.endpoints:
        for family in endpoint.families:
            tool = "iptables-legacy" if family.value == 4 else "ip6tables-legacy"
            address = f"-d {endpoint.exact_address} " if endpoint.exact_address else ""
            if spec.hook is Hook.PREROUTING and not address:
                address = "-m addrtype --dst-type LOCAL "
            lines.append(
                f"{tool} -t mangle -A {chain} -p tcp {address}--dport {endpoint.port} "
                "-j NFQUEUE --queue-num N --queue-bypass"
            )
    jump = (
        "-p tcp --tcp-flags FIN,SYN,RST,ACK SYN "
        f"-m mark ! --mark {spec.probe_mark:#x} "
        f'-m comment --comment "synplug run {spec.run_id}" -j {chain}'
    )
    jumps = [
        f"{chain.upper()} {'! -i lo ' if more else ''}{jump}"
        for chain, more in _BASE_CHAINS[spec.hook].items()
    ]
    return [
        "# prepare (each for ip6tables-legacy, too, where IPv6 is held)",
        f"iptables-legacy -t mangle -N {chain}",
        *lines,
        "# hold",
        *(f"iptables-legacy -t mangle -I {rule}" for rule in jumps),
        "# release; give the verdicts; then remove",
        *(f"iptables-legacy -t mangle -D {rule}" for rule in jumps),
        f"iptables-legacy -t mangle -F {chain}",
        f"iptables-legacy -t mangle -X {chain}",
    ]
