"""A gate of legacy iptables rules, for kernels whose nftables will not do.

In table mangle of each IP version that is held::

    -A INPUT -p tcp --tcp-flags FIN,SYN,RST,ACK SYN -m mark ! --mark PROBE
             -m comment --comment "synplug run RUN" -j synplug-RUN        this rule holds
    -A synplug-RUN … the same, and the endpoint … -j NFQUEUE --queue-num N --queue-bypass

The kernel does not remove these rules with their maker. After a SIGKILL they let everything
pass (nobody is bound to the queue: bypass) and stay until :meth:`clean_up_after_death`. What
stays for good in the network namespace is an empty mangle table, if there was none, and the
lock file of iptables(8), as after any use of that program.

In the place of INPUT there may be FORWARD; or PREROUTING for what devices other than loopback
bring (``! -i lo``), and OUTPUT for what local clients send.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from synplug.errors import LockError, ReleaseError, SynplugError, UnsupportedError
from synplug.holding.base import ANY_BACKEND
from synplug.kernel import xt_lock
from synplug.kernel.xt_rules import SynMatch, jump_target, queue_target
from synplug.kernel.xtables import (
    TABLE,
    MangleTable,
    MangleTables,
    has_ipv6,
    is_in_use,
    load_library,
)
from synplug.model import BackendName, Family, HoldSpec, Hook

_BASE_CHAINS = {
    Hook.INPUT: ("INPUT",),
    Hook.FORWARD: ("FORWARD",),
    Hook.PREROUTING: ("PREROUTING", "OUTPUT"),
}
_TOOLS = {Family.IPV4: "iptables-legacy", Family.IPV6: "ip6tables-legacy"}
_PATIENCE_S = 5.0
_LOOK_S = 0.2
_PORTS = 1 << 16
_BLOCKS_MIN, _BLOCKS_PER_QUEUE = 64, 16


def port_shares(queues: int) -> list[list[tuple[int, int]]]:
    """For each queue the ranges of source ports whose connections it gets.

    The ports are dealt out in blocks, since no iptables match takes single bits of a port and
    walks IPv6's extension headers. ``--queue-balance`` would hash the addresses alone: all
    connections from one proxy would meet in one queue, and overflow it.

    :param queues: how many; a power of two.
    """
    if queues == 1:
        return [[(0, _PORTS - 1)]]
    blocks = max(_BLOCKS_MIN, _BLOCKS_PER_QUEUE * queues)
    size = _PORTS // blocks
    return [
        [(block * size, (block + 1) * size - 1) for block in range(index, blocks, queues)]
        for index in range(queues)
    ]


class IptablesGate:
    """Rules of legacy iptables; see the module.

    Everything is done by one thread, in the network namespace of the first call.

    :raises SynplugError: every method, where the lock, the table or a privilege is missing.
    """

    def __init__(self, spec: HoldSpec) -> None:
        self.name = "nfqueue-iptables"
        self.capabilities = ANY_BACKEND  # libiptc talks through a raw socket
        self.outlives_its_keeper = True  # a rule that lets packets pass
        self.patience_s = _PATIENCE_S
        self.flushes_queues = False  # the table's hooks stay registered, whatever its rules
        self._spec = spec
        self._bases = _BASE_CHAINS[spec.hook]
        self._chain = f"synplug-{spec.run_id}"
        self._comment = f"synplug run {spec.run_id}"
        self._tables = MangleTables()
        self._touched: list[Family] = []  # where something of ours may stand
        self._rules: dict[Family, list[bytes]] = {}
        self._looked_at_s = float("inf")  # when it was last known that the rule holds
        self._matched: int | None = None  # all there will ever be, once it is open

    def traces(self) -> dict[str, str]:
        return {"iptables chain": f"{TABLE} {self._chain}"}

    def load_libraries(self) -> None:
        with suppress(UnsupportedError):  # it is told when it is needed
            load_library()
        xt_lock.load_library()

    # --- armed and holding

    def prepare(self, queues: tuple[int, ...]) -> None:
        """Create our chains. Their rules need every extension that the jump will need."""
        with self._tables.locked(patience_s=_PATIENCE_S):
            for family in self._families():
                self._rules[family] = list(self._queue_rules(family, queues))
                self._create_chain(family, self._rules[family])

    def hold(self, go_on: Callable[[], None] = lambda: None) -> None:
        """Put the jumps in, of all families or of none."""
        with self._tables.locked(patience_s=_PATIENCE_S):
            go_on()
            try:
                for family in self._touched:
                    self._insert_jumps(family)
            except SynplugError:
                self._delete_jumps()
                raise
        self._looked_at_s = time.monotonic()

    def restore(self) -> int:
        now_s = time.monotonic()
        if now_s - self._looked_at_s < _LOOK_S:
            return 0
        self._looked_at_s = now_s
        with suppress(LockError), self._tables.locked(patience_s=0):  # or at the next look
            return sum(self._restore_one(family) for family in self._touched)
        return 0

    def _restore_one(self, family: Family) -> bool:
        rules = self._rules[family]

        def is_whole(table: MangleTable) -> bool:
            return all(table.is_whole(base, self._chain, len(rules)) for base in self._bases)

        def put_back(table: MangleTable) -> None:
            if table.has_chain(self._chain):
                self._erase_from(table)
            table.create_chain(self._chain, rules)
            self._insert_into(table, family)

        if self._tables.read(family, is_whole):
            return False
        self._tables.change(family, put_back)
        return True

    def _create_chain(self, family: Family, rules: list[bytes]) -> None:
        def create(table: MangleTable) -> None:
            table.create_chain(self._chain, rules)
            if family not in self._touched:
                self._touched.append(family)

        self._tables.change(family, create)

    def _insert_jumps(self, family: Family) -> None:
        def insert(table: MangleTable) -> None:
            if not table.has_chain(self._chain):
                raise SynplugError(
                    f"somebody removed chain {self._chain} from table {TABLE}, IPv{family.value}"
                )
            self._insert_into(table, family)

        self._tables.change(family, insert)

    def _insert_into(self, table: MangleTable, family: Family) -> None:
        for base in self._bases:
            match = SynMatch(
                probe_mark=self._spec.probe_mark,
                comment=self._comment,
                not_from_loopback=base == "PREROUTING",  # it has come through OUTPUT
            )
            table.insert_first(base, match.rule(family, jump_target(self._chain)))

    def open(self) -> None:
        """Delete the jumps.

        The counters are final then: the kernel waits until every packet has left the old
        rules (``net/netfilter/x_tables.c``, xt_replace_table).
        """
        self._looked_at_s = float("inf")
        try:
            with self._tables.locked(patience_s=0):
                self._delete_jumps()
                self._matched = self._count()
        except SynplugError as error:
            kind = LockError if isinstance(error, LockError) else ReleaseError
            raise kind(
                f"the rules of chain {self._chain} are still in table {TABLE}, and let all pass: "
                f"{error}",
                remedy="run 'synplug recover'",
            ) from error

    def matched(self) -> int:
        if self._matched is not None:
            return self._matched
        with self._tables.locked(patience_s=_PATIENCE_S):
            return self._count()

    def _count(self) -> int:
        return sum(self._tables.read(family, self._packets) for family in self._touched)

    # --- the end

    def remove(self) -> None:
        with self._tables.locked(patience_s=_PATIENCE_S):
            self._erase(self._touched)

    def close(self) -> None:
        if self._touched:
            self.remove()

    def clean_up_after_death(self) -> list[str]:
        """Remove what a dead keeper of this run left; needs no :meth:`prepare`.

        Where no mangle table is in use there is nothing, and none is made by looking.
        """
        families = [family for family in Family if is_in_use(family)]
        if not families:
            return []
        self._bases = tuple(base for bases in _BASE_CHAINS.values() for base in bases)
        try:
            with self._tables.locked(patience_s=_PATIENCE_S):
                found = self._erase(families)
        except UnsupportedError:
            if self._spec.backend is BackendName.NFQUEUE_IPTABLES:
                raise
            # The keeper looked for a backend with this very Python: it had no python-iptables.
            return []
        return [
            f"chain {self._chain} and what jumps there, in table {TABLE} of {_TOOLS[family]}"
            for family in found
        ]

    def _erase(self, families: Iterable[Family]) -> list[Family]:
        """Remove our rules and chains from the tables, and look whether they are gone.

        :returns: where there were any.
        """
        found: list[Family] = []
        failures: list[SynplugError] = []
        for family in tuple(families):
            try:
                found += [family] if self._erase_one(family) else []
            except SynplugError as error:
                failures.append(error)
            else:
                with suppress(ValueError):
                    self._touched.remove(family)
        if failures:
            raise failures[0]
        return found

    def _erase_one(self, family: Family) -> bool:
        def has_chain(table: MangleTable) -> bool:
            return table.has_chain(self._chain)

        if not self._tables.read(family, has_chain):
            return False
        cause: SynplugError | None = None
        try:
            self._tables.change(family, self._erase_from)
        except SynplugError as error:
            cause = error
        if cause or self._tables.read(family, has_chain):
            tool = _TOOLS[family]
            because = f": {cause.message}" if cause else ""
            raise ReleaseError(
                f"chain {self._chain} is still in table {TABLE} of {tool}{because}",
                remedy=f"delete the rules that jump there, then {tool} -w -t {TABLE} "
                f"-F {self._chain} and -X {self._chain}",
            ) from cause
        return True

    def _erase_from(self, table: MangleTable) -> None:
        self._delete_jumps_from(table)
        table.delete_chain(self._chain)

    def _delete_jumps_from(self, table: MangleTable) -> None:
        for base in self._bases:
            table.delete_jumps(base, self._chain)

    def _delete_jumps(self) -> None:
        """Out of every table, even if one fails."""
        failures: list[SynplugError] = []
        for family in self._touched:
            try:
                self._tables.change(family, self._delete_jumps_from)
            except SynplugError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    # --- what the rules say

    def _families(self) -> list[Family]:
        wanted = {family for endpoint in self._spec.endpoints for family in endpoint.families}
        if Family.IPV4 in wanted and not has_ipv6():
            wanted.discard(Family.IPV6)
        return sorted(wanted, key=lambda family: family.value)

    def _queue_rules(self, family: Family, queues: tuple[int, ...]) -> Iterable[bytes]:
        for endpoint in self._spec.endpoints:
            if family not in endpoint.families:
                continue
            for number, ranges in zip(queues, port_shares(len(queues)), strict=True):
                for source_ports in ranges:
                    match = SynMatch(
                        probe_mark=self._spec.probe_mark,
                        comment=self._comment,
                        port=endpoint.port,
                        address=endpoint.exact_address,
                        source_ports=source_ports,
                        to_this_host=self._meets_others and not endpoint.exact_address,
                    )
                    yield match.rule(family, queue_target(number))

    @property
    def _meets_others(self) -> bool:
        """Whether what is sent to others passes the rules, too."""
        return self._spec.hook is Hook.PREROUTING

    def _packets(self, table: MangleTable) -> int:
        return table.packets(self._chain) if table.has_chain(self._chain) else 0
