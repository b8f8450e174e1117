"""What one source may take of a hold."""

from __future__ import annotations

from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from synplug.holding.sources import Sources

FLOWS = st.one_of(st.binary(min_size=12, max_size=12), st.binary(min_size=36, max_size=36))


def flow(source: str, port: int) -> bytes:
    packed = ip_address(source).packed
    return packed + bytes(len(packed)) + port.to_bytes(2, "big") + b"\0\x50"


def test_an_ipv4_address_is_a_source() -> None:
    sources = Sources(2)
    assert [sources.admits(flow("192.0.2.1", port)) for port in (1, 2, 3)] == [True, True, False]
    assert sources.admits(flow("192.0.2.2", 1))


def test_an_ipv6_prefix_of_64_bits_is_a_source() -> None:
    sources = Sources(1)
    assert sources.admits(flow("2001:db8::1", 1))
    assert not sources.admits(flow("2001:db8::ffff:2", 1))
    assert sources.admits(flow("2001:db8:0:1::1", 1))


def test_no_limit_counts_nothing() -> None:
    sources = Sources(0)
    assert all(sources.admits(flow("192.0.2.1", port)) for port in range(1000))
    assert not sources._waiting


@given(st.lists(st.tuples(st.booleans(), FLOWS), max_size=200), st.integers(1, 3))
def test_it_counts_those_who_wait_and_forgets_the_others(
    events: list[tuple[bool, bytes]], limit: int
) -> None:
    sources = Sources(limit)
    waiting: list[bytes] = []
    for comes, found in events:
        if comes and sources.admits(found):
            waiting.append(found)
        elif not comes and waiting:
            sources.leave(waiting.pop())
    assert sum(sources._waiting.values()) == len(waiting)
    assert all(0 < count <= limit for count in sources._waiting.values())
    for found in waiting:
        sources.leave(found)
    assert not sources._waiting
