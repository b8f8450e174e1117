"""What a device has to send goes with a clsact that is put on it, or taken off: a wait for it."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping

from synplug.errors import SynplugError
from synplug.holding.remarks import dropped_remark
from synplug.kernel.traffic_control import TrafficControl

#: Before anybody waits, and when somebody does: for a device that has come.
_PATIENCE_S, _LATER_S = 0.5, 0.005
#: Behind a release nobody waits for this.
PATIENCE_AT_THE_END_S = 2.0
_POLL_S = 0.002


def room_made(
    control: TrafficControl, devices: Mapping[int, str], *, is_first: bool
) -> tuple[str, ...]:
    """Wait until these have sent what they have to send; what the operator is to know.

    :param devices: their names. :param is_first: whether nobody waits yet.
    """
    left = wait_until_sent(control, devices, _PATIENCE_S if is_first else _LATER_S)
    return dropped_remark([devices[index] for index in left])


def wait_until_sent(
    control: TrafficControl, devices: Collection[int], limit_s: float
) -> Collection[int]:
    """Wait until these have nothing to send; those that still had after so many seconds.

    Where that cannot be seen, nothing is waited for.
    """
    give_up_s = time.monotonic() + limit_s
    left: Collection[int] = ()
    try:
        while devices and (left := control.to_send(devices)) and time.monotonic() < give_up_s:
            time.sleep(_POLL_S)
    except SynplugError:
        return ()
    return left
