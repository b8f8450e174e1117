"""How many netfilter queues a hold takes."""

from __future__ import annotations

from synplug.model import PACKETS_PER_QUEUE


def queue_plan(max_held_packets: int) -> tuple[int, int]:
    """How many queues, and how long each: a power of two of them, together *max_held_packets*."""
    count = 1
    while count * PACKETS_PER_QUEUE < max_held_packets:
        count *= 2
    return count, -(-max_held_packets // count)
