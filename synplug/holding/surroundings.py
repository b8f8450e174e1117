"""What is there besides a run's own when its filters are spread: looked at once for all devices."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from synplug.holding.ledger import Entry
from synplug.holding.ownership import is_of, marks_of, places_in
from synplug.kernel import flower
from synplug.kernel.flower import Installed
from synplug.kernel.places import Places
from synplug.record import Record


class Surroundings(Record):
    """Dumps and ledgers take long where devices are many.

    :param places: where filters have a place.
    :param of_runs: the devices whose clsact another run has made; the last one that goes removes
        it.
    :param runs: the ids of the other runs.
    """

    places: Places
    of_runs: Collection[int] = ()
    runs: Collection[str] = ()

    def preferences_of_others(self, found: list[Installed], run_id: str, mark: int) -> list[int]:
        """Those among a device's filters that may look at a SYN and are no run's, in order."""
        runs = {run_id, *self.runs}
        ours = [one for one in found if any(is_of(run_id, one) for run_id in runs)]
        marks = marks_of(found, mark, {one.preference for one in ours})
        return sorted(
            {
                one.preference
                for one in found
                if one not in ours and one not in marks and one.protocol in flower.PROTOCOLS
            }
        )


def surroundings(places: Places, runs: Iterable[Entry], run_id: str) -> Surroundings:
    """What these say.

    :param places: looked at before the ledgers, which know of a place before the kernel does.
    :param run_id: whose surroundings.
    """
    runs = [entry for entry in runs if entry.run_id != run_id]
    return Surroundings(
        places=places,
        of_runs={device for entry in runs for device in places_in(entry.traces)},
        runs={entry.run_id for entry in runs},
    )
