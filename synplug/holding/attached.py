"""A hold that somebody else began and left to its keeper, asked for by its name."""

from __future__ import annotations

import os
from contextlib import suppress

from synplug.errors import ReleaseError
from synplug.holding.channel import listener_from_wire, spec_from_wire
from synplug.holding.link import KeeperLink
from synplug.holding.names import call, no_such_hold
from synplug.holding.recover import recover

#: It may be letting go of tens of thousands, or wait for a lock.
_GREETING_S = 5.0


class AttachedHold(KeeperLink):
    """That hold, in force.

    :ivar spec: its endpoints, hook, run id, name and longest time.
    :ivar old: the listeners that stood when it began.
    :raises NoSuchHoldError: there is none of that name.
    :raises KeeperError: its keeper does not answer; it is ended, and what it held is dropped.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._run_id = ""
        self._channel, self.keeper_pid = call(name)
        with suppress(OSError):  # gone, or of another PID namespace
            self._pidfd = os.pidfd_open(self.keeper_pid)
        if not self._readable(_GREETING_S):
            self._kill("does not answer")
        greeting = self._channel.receive()
        if greeting is None or greeting["event"] != "holding":  # it was about to end
            self.close()
            raise no_such_hold(name)
        self.backend = greeting["backend"]
        self._held_at_s = float(greeting["at_s"])
        self._deadline_s = self._held_at_s + float(greeting["max_hold_s"])
        self.spec = spec_from_wire(greeting, name)
        self._run_id = self.spec.run_id
        self.old = tuple(map(listener_from_wire, greeting["old"]))
        self._releasing = bool(greeting["releasing"])
        self.may_hold_local = bool(greeting["local"])

    def close(self) -> None:
        """Hang up. The hold stays as it is."""
        self._hang_up()
        self._reap()

    def _reap(self) -> None:
        """Not our child: somebody else collects it."""
        descriptor, self._pidfd = self._pidfd, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _clean_up_after_death(self) -> None:
        # The run of one that never greeted us is not known.
        found = [dead for dead in recover() if self._run_id in ("", dead.run_id)]
        errors = [dead.error for dead in found if dead.error]
        if errors:
            raise ReleaseError("; ".join(errors))
