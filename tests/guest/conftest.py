"""Tests below this folder run on the kernels of $KERNELS, in guests; see :mod:`guest.bridge`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest

from guest.bridge import (
    MACHINE,
    kernel,
    kernel_of,
    pytest_generate_tests,
    pytest_runtest_protocol,
)
from netlab.errors import NotReadyError
from netlab.program import wait_until
from netlab.snapshot import NetworkState
from netlab.topology import ClientServer
from tests.guest.matrix import pytest_configure
from tests.integration.conftest import simple

__all__ = [
    "kernel",
    "lab",
    "pytest_configure",
    "pytest_generate_tests",
    "pytest_runtest_protocol",
    "simple",
]


@pytest.fixture
def lab() -> Iterator[ClientServer]:
    """A client and a server; afterwards nothing of synplug may be left on the server.

    A guest's processor is slow: keeper and watcher get a moment to end.
    """
    with ClientServer() as made:
        before = NetworkState.capture(made.server)
        yield made

        def left() -> list[str]:
            return before.difference(NetworkState.capture(made.server))

        with suppress(NotReadyError):
            wait_until(lambda: not left(), 15, "all is as before")
        assert not left(), f"not as before: {left()}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, and count as deselected, what the machine's own kernel is not asked for."""
    left_out = [
        item
        for item in items
        if item.get_closest_marker("guests_only") and kernel_of(item) == MACHINE
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
