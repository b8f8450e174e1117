"""A host that publishes a container's port, laid out as container engines do it.

::

    client ──veth── host ──bridge── container A        published: host:8080 → container:8081
                     │       └───── container B        by DNAT; masquerade for what leaves
                     └ DNAT in PREROUTING and OUTPUT, forwarding but for that port forbidden
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from netlab.program import wait_until
from netlab.topology import Namespace, VethPair
from tests.integration.conftest import SERVER
from tests.integration.connect import connects_within

PUBLISHED, PORT = 8080, 8081
#: Of the host, towards its clients and towards its containers.
HOST = ("10.232.0.2", "fd24::2")
_GATEWAY = ("172.31.0.1", "fd31::1")
#: Engines derive it from the address; here the same one is given to who gets the same address.
_MAC = "02:42:ac:1f:00:02"


@dataclass(frozen=True, kw_only=True)
class Container:
    """A network namespace on the host's bridge, with a server in it, or none."""

    namespace: Namespace
    device: str
    addresses: tuple[str, str]
    pidfile: Path

    def plug_in(self) -> str:
        """Shell lines that give it its addresses, and put it on the bridge."""
        inside = f"nsenter --net={self.namespace.path}"
        four, six = self.addresses
        return "\n".join(
            (
                f"{inside} ip address replace {four}/24 dev eth0",
                f"{inside} ip address replace {six}/64 dev eth0 nodad",
                f"ip link set {self.device} up",
                f"{inside} ip route replace default via {_GATEWAY[0]}",
                f"{inside} ip route replace default via {_GATEWAY[1]}",
            )
        )

    def start(self, *options: str) -> str:
        """A shell line that starts the server in the background."""
        server = [sys.executable, str(SERVER), str(PORT), "--pidfile", str(self.pidfile), *options]
        argv = ["setsid", *self.namespace.command(server)]
        return f"{shlex.join(argv)} </dev/null >/dev/null 2>&1 &"

    def remove(self) -> str:
        """Shell lines that end the server, wait for that, and take the wire off."""
        gone = "! grep -qs '^State:[[:space:]]*[^ZX[:space:]]' /proc/$pid/status"
        return "\n".join(
            (
                f"pid=$(cat {self.pidfile}); rm {self.pidfile}; kill $pid",
                f"until {gone}; do sleep 0.01; done",
                f"ip link set {self.device} down",
            )
        )


class Engine:
    """The host with its rules; what a container engine does to them."""

    def __init__(self, client: Namespace, host: Namespace, old: Container, new: Container) -> None:
        self.client = client
        self.host = host
        self.old = old
        self.new = new

    def answers(self) -> bool:
        """Whether the published port does, from outside and from the host, on both IP versions."""
        return all(
            connects_within(namespace, (address, PUBLISHED), 1.0)
            for namespace in (self.client, self.host)
            for address in HOST
        )

    def replace_argv(self, *options: str) -> list[str]:
        """A command that replaces the container, in the order in which engines do it.

        The port leads to the new one before its server listens there; and always to the same
        address, if they have the same.
        """
        moves = self.old.addresses != self.new.addresses
        steps = (
            "set -e",
            self.old.remove(),
            self.unpublish(self.old) if moves else "",
            self.new.plug_in(),
            self.publish(self.new) if moves else "",
            self.new.start(*options),
        )
        return ["sh", "-c", "\n".join(steps)]

    def publish(self, container: Container) -> str:
        """Shell lines that have the published port lead there."""
        return self._rules("-A", container)

    def unpublish(self, container: Container) -> str:
        """Shell lines that undo that."""
        return self._rules("-D", container)

    def _rules(self, option: str, container: Container) -> str:
        lines = []
        for tool, address in zip(_TOOLS, container.addresses, strict=True):
            to = f"[{address}]:{PORT}" if ":" in address else f"{address}:{PORT}"
            port = f"-p tcp --dport {PUBLISHED}"
            lines += [
                f"{tool} -w -t nat {option} ENGINE ! -i br0 {port} -j DNAT --to-destination {to}",
                f"{tool} -w {option} FORWARD -d {address} ! -i br0 -o br0 -p tcp --dport {PORT} "
                "-j ACCEPT",
            ]
        return "\n".join(lines)


_TOOLS = ("iptables-legacy", "ip6tables-legacy")
_LOOPBACK = {"iptables-legacy": "127.0.0.0/8", "ip6tables-legacy": "::1/128"}
_SUBNETS = {"iptables-legacy": "172.31.0.0/24", "ip6tables-legacy": "fd31::/64"}


def _layout() -> str:
    """Shell lines with the rules that are there whatever containers there are."""
    lines = ["set -e"]
    for tool in _TOOLS:
        local = "-m addrtype --dst-type LOCAL -j ENGINE"
        lines += [
            f"{tool} -w -t nat -N ENGINE",
            f"{tool} -w -t nat -A PREROUTING {local}",
            f"{tool} -w -t nat -A OUTPUT ! -d {_LOOPBACK[tool]} {local}",
            f"{tool} -w -t nat -A POSTROUTING -s {_SUBNETS[tool]} ! -o br0 -j MASQUERADE",
            f"{tool} -w -P FORWARD DROP",
            f"{tool} -w -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            f"{tool} -w -A FORWARD -i br0 ! -o br0 -j ACCEPT",
        ]
    return "\n".join(lines)


@contextmanager
def engine(directory: Path, *, same_address: bool = False) -> Iterator[Engine]:
    """The whole of it, with the old container in place.

    :param same_address: the new one gets the old one's.
    """
    with ExitStack() as stack:
        client, host, *inner = (
            stack.enter_context(Namespace(label)) for label in ("client", "host", "old", "new")
        )
        for namespace in (client, host, *inner):  # nobody here waits for a second one to answer
            namespace.set_sysctl("net.ipv6.conf.default.accept_dad", 0)
        stack.enter_context(VethPair(client, host))
        host.run(["ip", "link", "add", "br0", "type", "bridge", "mcast_snooping", "0"])
        made = []
        for number, namespace in enumerate(inner):
            device = f"vc{number}"
            last = "2" if same_address else str(2 + number)
            pair = VethPair(host, namespace, first_interface=device, second_interface="eth0")
            stack.enter_context(pair)
            host.run(["ip", "link", "set", device, "down", "master", "br0"])
            if same_address:
                namespace.run(["ip", "link", "set", "eth0", "address", _MAC])
            addresses = (f"172.31.0.{last}", f"fd31::{last}")
            made.append(
                Container(
                    namespace=namespace,
                    device=device,
                    addresses=addresses,
                    pidfile=directory / f"pid-{number}",
                )
            )
        _address(client, "veth0", "10.232.0.1", "fd24::1")
        _address(host, "veth0", *HOST)
        _address(host, "br0", *_GATEWAY)
        host.run(["ip", "link", "set", "br0", "up"])
        for name in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
            host.set_sysctl(name, 1)
        for words in (["default", "via", HOST[0]], ["default", "via", HOST[1]]):
            client.run(["ip", "route", "add", *words])
        host.run(["sh", "-c", _layout()])
        made_engine = Engine(client, host, *made)
        old = made_engine.old
        host.run(["sh", "-c", f"{old.plug_in()}\n{made_engine.publish(old)}\n{old.start()}"])
        wait_until(made_engine.answers, 20, "the old container answers")
        yield made_engine


def _address(namespace: Namespace, device: str, four: str, six: str) -> None:
    namespace.run(["ip", "address", "add", f"{four}/24", "dev", device])
    namespace.run(["ip", "address", "add", f"{six}/64", "dev", device, "nodad"])
