"""Labs that must be left as they were found."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from netlab.snapshot import NetworkState
from netlab.topology import ClientServer


@pytest.fixture
def lab() -> Iterator[ClientServer]:
    """A client and a server; afterwards nothing of synplug may be left on the server."""
    with ClientServer() as made:
        before = NetworkState.capture(made.server)
        yield made
        left = before.difference(NetworkState.capture(made.server))
        assert not left, f"not as before: {left}"
