"""What is left of a run's filters and of the places for them: found, and taken away."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from synplug.errors import KernelError, SynplugError
from synplug.holding.ownership import is_of, marks_of
from synplug.holding.sending import PATIENCE_AT_THE_END_S, Sending
from synplug.kernel import flower
from synplug.kernel.flower import Installed, SynFilter
from synplug.kernel.traffic_control import TrafficControl
from synplug.model import HoldSpec

#: Of a filter: its device, and what it matches, or the mark that it lets pass.
Key = tuple[int, SynFilter | int]


def remove_filters(
    control: TrafficControl, filters: dict[Key, Installed], keys: Iterable[Key], mark: int
) -> None:
    """Remove these, all that can be: a mark before the filters that tell whose it is.

    :param filters: those that are noted; one that is gone is so no more.
    :raises KernelError: one could not be removed.
    """
    error: KernelError | None = None
    for key in sorted(keys, key=lambda key: filters[key].handle != mark):
        try:
            control.remove_filter(filters[key])
            del filters[key]
        except KernelError as failure:
            error = failure
    if error is not None:
        raise error


def filters_left(
    control: TrafficControl,
    spec: HoldSpec,
    target: int,
    noted: Collection[tuple[int, int, int]] = (),
) -> Iterator[Installed]:
    """All filters of a run that the kernel has.

    :param target: index of the device that the SYNs are sent to; 0: it is gone.
    :param noted: others that are known as its, by device, preference and handle: a mark that could
        not be removed has nothing beside it any more that tells.
    """
    for device in control.devices():
        for side in (flower.INGRESS, flower.EGRESS):
            found = control.filters(device.index, side)
            held = [
                one
                for one in found
                if (is_of(spec.run_id, one) and one.target in (0, target))
                or (one.device, one.preference, one.handle) in noted
            ]
            yield from held
            yield from marks_of(found, spec.probe_mark, {one.preference for one in held})


def remove_places(control: TrafficControl, ours: Mapping[int, str]) -> dict[int, str]:
    """Remove the clsacts of these devices, where nobody else uses them; why one is left, by device.

    What they have to send is waited for: who was just let go may be answered by it.

    :param ours: the names of the devices.
    """
    refused: dict[int, SynplugError] = {}
    sending = Sending(control, ours, PATIENCE_AT_THE_END_S)
    for device in sorted(ours, key=sending.is_busy):
        sending.is_over(device)
        try:
            control.remove_ingress(device)
        except SynplugError as error:
            refused[device] = error
    if not refused:
        return {}
    # Otherwise it is gone, with its device or for an ingress qdisc of somebody else.
    places = control.places()
    return {
        device: f"the clsact of {ours[device]} is still there: {error}"
        for device, error in refused.items()
        if places.has(device, flower.EGRESS)
    }
