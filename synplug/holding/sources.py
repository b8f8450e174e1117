"""How much of a hold one source may take."""

from __future__ import annotations

from collections import defaultdict

_IPV4_FLOW_BYTES = 12


class Sources:
    """Counts what waits by source: an IPv4 address, or an IPv6 /64, which one host has for itself.

    :param limit: connections a source; 0: any number.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: defaultdict[bytes, int] = defaultdict(int)

    def admits(self, flow: bytes) -> bool:
        """Whether one more of its source may wait; counts it, if so."""
        if not self._limit:
            return True
        source = _source(flow)
        if self._waiting.get(source, 0) >= self._limit:
            return False
        self._waiting[source] += 1
        return True

    def leave(self, flow: bytes) -> None:
        """One that was admitted waits no longer."""
        if not self._limit:
            return
        source = _source(flow)
        self._waiting[source] -= 1
        if not self._waiting[source]:
            del self._waiting[source]  # a flood of sources must not stay


def _source(flow: bytes) -> bytes:
    return flow[:4] if len(flow) == _IPV4_FLOW_BYTES else flow[:8]
