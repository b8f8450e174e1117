"""``--migrate``: an additional net, where the kernel has one; its absence is worth a warning."""

from __future__ import annotations

from synplug.errors import SynplugError
from synplug.handover.plan import SwapPlan
from synplug.handover.tools import Migration, Tools


class OptionalMigration:
    """tcp_migrate_req for one swap, if that was asked for."""

    def __init__(self, plan: SwapPlan, tools: Tools) -> None:
        self._plan = plan
        self._tools = tools
        self._migration: Migration | None = None

    @property
    def was_used(self) -> bool:
        """Whether it was set."""
        return self._migration is not None

    def begin(self) -> list[str]:
        """Set it; returns why it could not be."""
        if not self._plan.migrate:
            return []
        migration = self._tools.migration(self._plan.spec.run_id)
        try:
            migration.begin()
        except SynplugError as error:
            return [f"--migrate: {error}"]
        self._migration = migration
        return []

    def end(self) -> SynplugError | None:
        """Restore it; returns why it could not be."""
        try:
            if self._migration is not None:
                self._migration.end()
        except SynplugError as error:
            return error
        return None
