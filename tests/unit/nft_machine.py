"""Decodes nftables requests and runs their rules over packets, as the kernel would.

Written from ``include/uapi/linux/netfilter/nf_tables.h``, not from the encoder.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field


def walk(data: bytes) -> list[tuple[int, bytes]]:
    """Attributes; every length must fit, and all of the data must be used."""
    found = []
    while data:
        length, kind = struct.unpack_from("=HH", data)
        assert 4 <= length <= len(data)
        found.append((kind & 0x3FFF, data[4:length]))
        data = data[(length + 3) & ~3 :]
    return found


def number(data: bytes) -> int:
    """An unsigned number in network byte order."""
    return int.from_bytes(data, "big")


def name(data: bytes) -> str:
    """A NUL-terminated name."""
    assert data.endswith(b"\0")
    return data[:-1].decode()


@dataclass
class Packet:
    """A packet at a hook (``enum nf_inet_hooks``), that a device has brought."""

    data: bytes
    mark: int = 0
    hook: int = 1
    device: int = 2
    is_for_us: bool = True

    @property
    def is_ipv4(self) -> bool:
        return self.data[0] >> 4 == 4

    @property
    def transport(self) -> int:
        """Where TCP begins (no extension headers here)."""
        return (self.data[0] & 15) * 4 if self.is_ipv4 else 40


@dataclass
class Rule:
    """A rule: expressions as name and attributes."""

    expressions: list[tuple[str, dict[int, bytes]]]
    comment: str = ""


@dataclass
class Machine:
    """Tables as requests have made them."""

    flags: dict[str, int] = field(default_factory=dict)
    chains: dict[tuple[str, str], list[Rule]] = field(default_factory=dict)
    hooks: dict[str, tuple[str, int, int]] = field(default_factory=dict)

    def apply(self, kind: int, body: bytes) -> None:
        """One request of a batch."""
        assert kind >> 8 == 10
        assert body[:4] == b"\1\0\0\0", "family inet"
        said = dict(walk(body[4:]))
        table = name(said[1])
        match kind & 0xFF:
            case 0:
                self.flags[table] = number(said[2])
            case 2:
                del self.flags[table]
            case 3:
                chain = name(said[3])
                self.chains[table, chain] = []
                if 4 in said:
                    hook = dict(walk(said[4]))
                    priority = struct.unpack("!i", hook[2])[0]
                    assert name(said[7]) == "filter"
                    self.hooks[chain] = (table, number(hook[1]), priority)
                    assert number(said[5]) == 1, "policy accept"
            case 6:
                self.chains[table, name(said[2])].append(self._rule(said))
            case 8:
                self.chains[table, name(said[2])].clear()
            case other:
                raise AssertionError(other)

    def _rule(self, said: dict[int, bytes]) -> Rule:
        expressions = []
        for kind, element in walk(said[4]):
            assert kind == 1
            parts = dict(walk(element))
            expressions.append((name(parts[1]), dict(walk(parts[2]))))
        comment = ""
        if 7 in said:
            assert said[7][0] == 0
            assert said[7][1] == len(said[7]) - 2
            comment = name(said[7][2:])
        return Rule(expressions, comment)

    def queue_for(self, packet: Packet) -> int | None:
        """The queue that the packet goes to; None: it is accepted."""
        for chain, (table, hook, _) in self.hooks.items():
            if hook != packet.hook:
                continue
            found = self._run(table, chain, packet)
            if found is not None:
                return found
        return None

    def _run(self, table: str, chain: str, packet: Packet) -> int | None:
        for rule in self.chains[table, chain]:
            found = self._match(table, rule, packet)
            if found is not None:
                return found
        return None

    def _match(self, table: str, rule: Rule, packet: Packet) -> int | None:
        register = b""
        for kind, said in rule.expressions:
            match kind:
                case "meta":
                    register = self._meta(number(said[2]), packet)
                case "fib":
                    assert (number(said[2]), number(said[3])) == (3, 2), "daddr type"
                    register = struct.pack("=I", 2 if packet.is_for_us else 1)
                case "payload":
                    base = {1: 0, 2: packet.transport}[number(said[2])] + number(said[3])
                    register = packet.data[base : base + number(said[4])]
                case "bitwise":
                    ((_, mask),), ((_, xor),) = walk(said[4]), walk(said[5])
                    assert number(said[3]) == len(mask) == len(register)
                    register = bytes(
                        one & two ^ three
                        for one, two, three in zip(register, mask, xor, strict=True)
                    )
                case "cmp":
                    ((_, value),) = walk(said[3])
                    assert len(value) == len(register)
                    if (register == value) is (number(said[2]) == 1):
                        return None
                case "counter":
                    pass
                case "immediate":
                    verdict = dict(walk(dict(walk(said[2]))[2]))
                    assert struct.unpack("!i", verdict[1])[0] == -3, "jump"
                    return self._run(table, name(verdict[2]), packet)
                case "queue":
                    assert number(said[2]) == 1
                    assert number(said[3]) == 1, "bypass"
                    return number(said[1])
                case "target":
                    assert (name(said[1]), number(said[2])) == ("NFQUEUE", 3)
                    assert len(said[3]) == 8
                    queue, total, bypass = struct.unpack_from("=HHH", said[3])
                    assert (total, bypass) == (1, 1)
                    assert isinstance(queue, int)
                    return queue
                case other:
                    raise AssertionError(other)
        return None

    @staticmethod
    def _meta(key: int, packet: Packet) -> bytes:
        return {
            15: bytes((2 if packet.is_ipv4 else 10,)),
            16: bytes((packet.data[9] if packet.is_ipv4 else packet.data[6],)),
            3: struct.pack("=I", packet.mark),
            4: struct.pack("=I", packet.device),
        }[key]
