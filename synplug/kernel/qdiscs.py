"""What the kernel lists of qdiscs.

A dump has those of all devices, a few hundred where network cards have many queues, and a plug is
asked every 50 ms: so it is read here, and not by pyroute2. Source: ``net/sched/sch_api.c``,
tc_fill_qdisc; ``include/uapi/linux/gen_stats.h``.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from synplug.kernel.flower import TCMSG
from synplug.kernel.netlink import NetlinkSocket
from synplug.kernel.netlink_codec import attributes

_GETQDISC = 38
_KIND, _STATS2 = 1, 7
_STATS_BASIC, _STATS_QUEUE = 1, 3
_BASIC = struct.Struct("=QI")  # bytes, packets
_QUEUE = struct.Struct("=III")  # qlen, backlog, drops; more follow


class Qdisc(NamedTuple):
    """One of them.

    *sent*: packets that have left it since it was made. *queued*, and *queued_bytes*: what is in
    it. *dropped*: packets.
    """

    device: int
    kind: str
    sent: int = 0
    queued: int = 0
    queued_bytes: int = 0
    dropped: int = 0


def qdiscs(netlink: NetlinkSocket, action: str) -> list[Qdisc]:
    """All of them.

    :param action: for the error. :raises KernelError: what the kernel answered.
    """
    return [_decoded(answer) for answer in netlink.dump(action, _GETQDISC, bytes(TCMSG.size))]


def _decoded(answer: memoryview) -> Qdisc:
    _, _, _, device, *_ = TCMSG.unpack_from(answer)
    found = dict(attributes(answer[TCMSG.size :]))
    statistics = dict(attributes(found.get(_STATS2, b"")))
    basic, queue = statistics.get(_STATS_BASIC, b""), statistics.get(_STATS_QUEUE, b"")
    _, sent = _BASIC.unpack_from(basic) if len(basic) >= _BASIC.size else (0, 0)
    has_queue = len(queue) >= _QUEUE.size
    queued, queued_bytes, dropped = _QUEUE.unpack_from(queue) if has_queue else (0, 0, 0)
    kind = bytes(found.get(_KIND, b"")).rstrip(b"\0").decode(errors="replace")
    return Qdisc(device, kind, sent, queued, queued_bytes, dropped)
