"""What sends SYNs to the queues: a rule, and everything around it.

Here are the interface and the nftables gate; that of legacy iptables, which few need, is
:mod:`synplug.holding.iptables_gate`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from synplug.errors import ReleaseError
from synplug.holding.base import ANY_BACKEND
from synplug.holding.gap import gap_of_others
from synplug.kernel.capabilities import NET_RAW
from synplug.kernel.nft import HoldTable, tables
from synplug.model import HoldSpec


class Gate(Protocol):
    """A rule that sends SYNs to queues. Its methods are called in this order."""

    name: str
    capabilities: frozenset[int]
    outlives_its_keeper: bool
    patience_s: float
    #: Whether :meth:`remove` drops what other queues of the namespace hold.
    flushes_queues: bool

    def traces(self) -> dict[str, str]:
        """What it puts into the kernel."""

    def load_libraries(self) -> None:
        """Import what :meth:`clean_up_after_death` needs."""

    def prepare(self, queues: tuple[int, ...]) -> None:
        """Put in everything but the rule that holds."""

    def hold(self, go_on: Callable[[], None] = lambda: None) -> None:
        """Put that rule in.

        :param go_on: is called just before, when no lock is waited for any more.
        """

    def open(self) -> None:
        """Take it out, and nothing else.

        :raises LockError: somebody else has a lock; it is not waited for.
        """

    def restore(self) -> int:
        """Put the rule back where somebody took it out; in how many places that was necessary.

        Asked for again and again while it holds; it looks as often as it can afford.
        """

    def matched(self) -> int:
        """How many packets met the rule."""

    def remove(self) -> None:
        """Take the rest out, and verify it."""

    def close(self) -> None:
        """Give up whatever is left."""

    def clean_up_after_death(self) -> list[str]:
        """Remove what a dead keeper of this run left: it is found by the run's id.

        :returns: what was removed, in words.
        """


class NftGate:
    """An nftables table with the owner flag: the kernel removes it when its owner is gone."""

    def __init__(self, spec: HoldSpec) -> None:
        self.name = "nfqueue"
        self.capabilities = ANY_BACKEND - {NET_RAW}
        self.outlives_its_keeper = False
        self.patience_s = 0.0
        self.flushes_queues = True
        self._spec = spec
        self._made: HoldTable | None = None
        self._queues: tuple[int, ...] = ()

    @property
    def _table(self) -> HoldTable:
        assert self._made is not None, "prepare() comes first"
        return self._made

    def traces(self) -> dict[str, str]:
        return {"nft table": f"inet synplug-{self._spec.run_id}"}

    def load_libraries(self) -> None:
        """Nothing to do."""

    def prepare(self, queues: tuple[int, ...]) -> None:
        self._queues = queues
        self._made = HoldTable(f"synplug-{self._spec.run_id}")
        spec = self._spec
        self._table.prepare(spec.endpoints, queues, probe_mark=spec.probe_mark, hook=spec.hook)

    def hold(self, go_on: Callable[[], None] = lambda: None) -> None:
        go_on()
        self._table.hold(f"synplug run {self._spec.run_id}")

    def open(self) -> None:
        self._table.open()

    def restore(self) -> int:
        """Nothing to do: nobody but its owner can change the table.

        ``net/netfilter/nf_tables_api.c``, nft_table_lookup and nft_flush_table.
        """
        return 0

    def matched(self) -> int:
        return self._table.matched()

    def remove(self) -> None:
        name = self._table.name
        with gap_of_others(self._queues) as wait:
            self._table.remove(wait)
        if name in tables():
            raise ReleaseError(f"nftables table inet {name} is still there")

    def close(self) -> None:
        if self._made is not None:
            self._made.close()

    def clean_up_after_death(self) -> list[str]:
        """Nothing to do: the kernel removed the table with its owner."""
        return []
