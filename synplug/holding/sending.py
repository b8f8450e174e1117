"""What a device has to send goes with a clsact that is put on it, or taken off: a wait for it."""

from __future__ import annotations

import time
from collections.abc import Collection

from synplug.errors import SynplugError
from synplug.kernel.traffic_control import TrafficControl

#: In all, before anybody waits; and when somebody does, for a device that has come.
PATIENCE_S, LATER_S = 0.5, 0.005
#: Behind a release. Less than a run waits for its keeper to clean up.
PATIENCE_AT_THE_END_S = 0.7
#: A look that costs much is followed by a longer pause.
_POLL_S, _SPARE = 0.002, 4


class Sending:
    """Which devices have something to send; one that has, is waited for right before its change.

    Where that cannot be seen, nothing is waited for.

    :param devices: that are to change. :param limit_s: for all of them together.
    """

    def __init__(self, control: TrafficControl, devices: Collection[int], limit_s: float) -> None:
        self._control = control
        self._give_up_s = time.monotonic() + limit_s
        self._devices = devices
        self._busy = self._look(devices)

    def is_busy(self, device: int) -> bool:
        """Whether it had something at the first look. Others need not wait for it: it is last."""
        return device in self._busy

    def is_over(self, device: int) -> bool:
        """Wait until it has nothing to send; False: it still had when time was up.

        What it had at the first look does not tell: others have had their turn since.
        """
        if device not in self._devices:
            return True
        while True:
            began_s = time.monotonic()
            if not self._look([device]):
                return True
            if time.monotonic() >= self._give_up_s:
                return False
            time.sleep(max(_POLL_S, _SPARE * (time.monotonic() - began_s)))

    def _look(self, devices: Collection[int]) -> set[int]:
        try:
            return self._control.to_send(devices) if devices else set()
        except SynplugError:
            return set()
