"""The state of a namespace that a run must leave as it was."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from netlab.processes import describe
from netlab.topology import Namespace

_BUILT_IN_AND_ACCEPTING = re.compile(r":(PREROUTING|INPUT|FORWARD|OUTPUT|POSTROUTING) ACCEPT")
_CHAIN_COUNTERS = re.compile(r" \[\d+:\d+\]$")
_REFERENCE_COUNT = re.compile(r" refcnt \d+")
_VOLATILE_KEYS = frozenset({"handle", "expires"})
_COUNTER_KEYS = frozenset({"packets", "bytes", "used"})
#: The kernel looks after a while only whether a link that is up works (``net/core/link_watch.c``).
_LATE_KEYS = frozenset({"operstate", "stats", "stats64"})
_LATE_FLAGS = frozenset({"NO-CARRIER", "M-DOWN"})
_COUNTING_OBJECTS = frozenset({"counter", "quota", "limit"})


@dataclass(frozen=True, kw_only=True)
class NetworkState:
    """Everything that synplug may touch, in a form in which two moments can be compared.

    Each field maps an aspect to a sorted tuple of text lines. Of processes only those
    take part in the comparison whose command is synplug (a restarted service changes its
    own): they are counted by command line; all of them are in `processes` (pid, comm).
    """

    aspects: dict[str, tuple[str, ...]]
    processes: tuple[tuple[int, str], ...] = field(default=(), compare=False)

    @classmethod
    def capture(
        cls, namespace: Namespace, run_dirs: Sequence[str | Path] = ("/run/synplug",)
    ) -> NetworkState:
        """Look at `namespace` and at the files below `run_dirs` (absent equals empty)."""
        found = [process for pid in namespace.pids() if (process := describe(pid))]
        aspects = {
            "nft ruleset": _nft_ruleset(namespace),
            "iptables-legacy": _legacy_tables(namespace, "iptables-legacy-save"),
            "ip6tables-legacy": _legacy_tables(namespace, "ip6tables-legacy-save"),
            "nfnetlink_queue": _queue_numbers(namespace),
            "qdisc": _lines(namespace, ["tc", "qdisc", "show"]),
            "link": _links(namespace),
            "filter": _filters(namespace),
            "file": _files(run_dirs),
            "synplug process": tuple(
                sorted(" ".join(p.arguments) or p.comm for p in found if is_synplug(p.arguments))
            ),
        }
        processes = tuple(sorted((process.pid, process.comm) for process in found))
        return cls(aspects=aspects, processes=processes)

    def difference(self, other: NetworkState) -> list[str]:
        """List what `other`, the later one, has lost (-) and gained (+); empty: the same."""
        lines = []
        for aspect, before in self.aspects.items():
            lost, gained = Counter(before), Counter(other.aspects[aspect])
            lines += [f"- {aspect}: {line}" for line in (lost - gained).elements()]
            lines += [f"+ {aspect}: {line}" for line in (gained - lost).elements()]
        return lines


def _lines(namespace: Namespace, argv: Sequence[str]) -> tuple[str, ...]:
    """Output lines without reference counts; nothing when the kernel has no such object."""
    output = namespace.run(argv, check=False).stdout
    return tuple(sorted(_REFERENCE_COUNT.sub("", line).strip() for line in output.splitlines()))


def _nft_ruleset(namespace: Namespace) -> tuple[str, ...]:
    """Order carries meaning within a chain, so each rule keeps its position there."""
    output = namespace.run(["nft", "-j", "list", "ruleset"]).stdout
    try:
        ruleset = json.loads(output)
    except json.JSONDecodeError:  # nft 1.0.6 breaks off at a table that has an owner
        return tuple(output.splitlines())
    positions: Counter[tuple[object, ...]] = Counter()
    lines = []
    for item in ruleset["nftables"]:
        if "metainfo" in item:
            continue
        text = json.dumps(_without_volatile(item), sort_keys=True)
        if rule := item.get("rule"):
            chain = (rule["family"], rule["table"], rule["chain"])
            positions[chain] += 1
            text = f"#{positions[chain]} {text}"
        lines.append(text)
    return tuple(sorted(lines))


def _without_volatile(value: object, parent: str = "") -> object:
    if isinstance(value, list):
        return [_without_volatile(element) for element in value]
    if not isinstance(value, dict):
        return value
    dropped = _VOLATILE_KEYS | (_COUNTER_KEYS if parent in _COUNTING_OBJECTS else frozenset())
    # "limit" and "quota" keep what was configured; only what has been used up changes
    if parent in {"limit", "quota"}:
        dropped = _VOLATILE_KEYS | {"used"}
    return {key: _without_volatile(v, key) for key, v in value.items() if key not in dropped}


def _legacy_tables(namespace: Namespace, save: str) -> tuple[str, ...]:
    """Rules and chains by table; a table that is merely registered shows nothing."""
    table = ""
    position = 0
    lines = []
    for line in namespace.run([save], check=False).stdout.splitlines():
        if line.startswith("*"):
            table, position = line[1:], 0
        elif line.startswith(":"):
            chain = _CHAIN_COUNTERS.sub("", line)
            if not _BUILT_IN_AND_ACCEPTING.fullmatch(chain):
                lines.append(f"{table} {chain}")
        elif line.startswith("-"):
            position += 1
            lines.append(f"{table} #{position} {line}")
    return tuple(sorted(lines))


def _queue_numbers(namespace: Namespace) -> tuple[str, ...]:
    """First column of /proc/net/netfilter/nfnetlink_queue: the bound queues."""
    table = namespace.run(["cat", "/proc/net/netfilter/nfnetlink_queue"], check=False).stdout
    return tuple(sorted(line.split()[0] for line in table.splitlines()))


def _links(namespace: Namespace) -> tuple[str, ...]:
    """All that ip-link(8) shows of each, but what changes by itself."""
    links = json.loads(namespace.run(["ip", "-j", "-d", "link"]).stdout)
    return tuple(
        sorted(f"{link['ifname']} {json.dumps(_settled(link), sort_keys=True)}" for link in links)
    )


def _settled(link: dict[str, Any]) -> dict[str, Any]:
    """A link without its counters and timers, and without what follows its peer's state late."""
    found = {key: value for key, value in link.items() if key not in _LATE_KEYS}
    found["flags"] = sorted(set(link["flags"]) - _LATE_FLAGS)
    information = link.get("linkinfo", {})
    if "info_data" in information:
        data = information["info_data"].items()
        kept = {key: value for key, value in data if not key.endswith("_timer")}
        found["linkinfo"] = information | {"info_data": kept}
    return found


def _filters(namespace: Namespace) -> tuple[str, ...]:
    names = [link.partition(" ")[0] for link in _links(namespace)]
    found: list[str] = []
    for name in names:
        for where in (["ingress"], ["egress"], []):
            lines = _lines(namespace, ["tc", "filter", "show", "dev", name, *where])
            found += (f"{name} {' '.join(where) or 'root'}: {line}" for line in lines)
    return tuple(sorted(found))


def _files(run_dirs: Iterable[str | Path]) -> tuple[str, ...]:
    return tuple(sorted(str(path) for directory in run_dirs for path in Path(directory).rglob("*")))


def is_synplug(arguments: Sequence[str]) -> bool:
    """Tell whether a program or module is synplug, and not just a path through such a folder."""
    for word in arguments:
        path = Path(word)
        if "synplug" in (path.name if "/" in word else word):
            return True
        if path.parent.name == "synplug" and path.name == "__main__.py":
            return True
    return False
