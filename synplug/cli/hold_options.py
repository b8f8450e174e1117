"""The options of the verbs that hold: for how long, how many, by which backend."""

from __future__ import annotations

import argparse

from synplug.cli import values
from synplug.cli.parser import Parser, Switch, value_of
from synplug.handover.request import HoldOptions
from synplug.model import BackendName, Hook, OnFull, ReleaseMode

_HOLD = HoldOptions()


def hold_options(verb: Parser, *, deadline: str = "default 10s") -> None:
    """Add the options that say how to hold.

    :param deadline: what is said of the longest hold; without a default it must be given.
    """
    group = verb.add_argument_group("holding")
    group.add_argument(
        "--max-hold",
        type=value_of(values.positive_duration),
        default=_HOLD.max_hold_s,
        required=not deadline.startswith("default"),
        metavar="TIME",
        help=f"release at the latest after this long ({deadline})",
    )
    _limit_options(group)
    group.add_argument(
        "--backend",
        choices=[choice.value for choice in BackendName],
        default=BackendName.AUTO.value,
        help="how to hold (default auto: the first that works)",
    )
    group.add_argument(
        "--release",
        choices=[choice.value for choice in ReleaseMode],
        default=ReleaseMode.PACED.value,
        help="let go as fast as the listeners' backlogs allow (default), or all at once",
    )
    _device_options(group)


def hook_options(verb: Parser) -> None:
    """Add the options for listeners in another network namespace than the rules."""
    group = verb.add_argument_group("listeners elsewhere: containers, forwarded ports")
    group.add_argument(
        "--hook",
        choices=[choice.value for choice in Hook],
        default=Hook.INPUT.value,
        help="hold what is delivered here (default input); what this host forwards, by its address "
        "after DNAT; or, prerouting, what is sent to a published port, before any DNAT",
    )
    group.add_argument(
        "--drain-netns",
        default="",
        metavar="NAME|PATH|PID",
        help="--hook forward and prerouting: the old listener is in that network namespace; "
        "without it nobody looks at its queues",
    )


def _device_options(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--dev",
        action="append",
        default=[],
        metavar="DEVICE",
        help="backend plug: only what this network device brings; repeatable (default: all)",
    )
    group.add_argument(
        "--loopback-egress",
        action=Switch,
        help="backend plug: only what local clients send, and where they send it, on lo; "
        "for a proxy that serves its own machine",
    )


def _limit_options(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--max-held",
        type=value_of(values.count),
        default=_HOLD.max_held,
        metavar="N",
        help=f"hold at most N SYNs (default {_HOLD.max_held}); backend plug: N times 128 bytes, "
        "in which a client's retransmits take a place each",
    )
    group.add_argument(
        "--max-held-per-source",
        type=value_of(values.count),
        default=_HOLD.max_held_per_source,
        metavar="N",
        help="hold at most N SYNs of one IPv4 address, or one IPv6 /64 (default: any number)",
    )
    group.add_argument(
        "--on-full",
        choices=[choice.value for choice in OnFull],
        default=OnFull.DROP.value,
        help="a SYN beyond these: drop it, and its client tries again in a second (default), "
        "or pass it, and it may be refused",
    )
