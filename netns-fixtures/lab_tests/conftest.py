"""Every test runs below private namespaces, in a lab of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from netlab.isolation import enter_private_namespaces
from netlab.topology import ClientServer


def pytest_configure() -> None:
    """Before any fixture, and while there is only one thread."""
    enter_private_namespaces()


@pytest.fixture
def lab() -> Iterator[ClientServer]:
    """Make a client and a server, with two more client addresses of each family."""
    with ClientServer(extra_client_addresses=2) as lab:
        yield lab
