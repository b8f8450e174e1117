"""Tests below this folder run on the kernels of $KERNELS, in guests; see :mod:`guest.bridge`."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from guest.bridge import (
    MACHINE,
    kernel,
    kernel_of,
    pytest_generate_tests,
    pytest_runtest_protocol,
)
from netlab.snapshot import NetworkState
from netlab.topology import ClientServer
from tests.guest.features import ABSENT, backends_of
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


class _Lab:
    """A client and a server that tests use in turn: to make them costs a guest seconds."""

    def __init__(self) -> None:
        self._made: ClientServer | None = None
        self._before: NetworkState | None = None

    def take(self) -> ClientServer:
        """It, made if need be."""
        if self._made is None:
            self._made = ClientServer().__enter__()
            self._before = NetworkState.capture(self._made.server)
        return self._made

    def changes(self) -> list[str]:
        """What is not as it was when it was made."""
        assert self._made is not None
        assert self._before is not None
        return self._before.difference(NetworkState.capture(self._made.server))

    def end_programs(self) -> None:
        """End what a test has left running there."""
        assert self._made is not None
        for namespace in (self._made.server, self._made.client):
            namespace.end_everything()

    def close(self) -> None:
        """Give it up; the next test gets another one."""
        made, self._made = self._made, None
        if made is not None:
            made.__exit__()


@pytest.fixture(scope="session")
def shared_lab() -> Iterator[_Lab]:
    """The lab of all tests."""
    made = _Lab()
    yield made
    made.close()


@pytest.fixture
def lab(shared_lab: _Lab) -> Iterator[ClientServer]:
    """A client and a server; afterwards nothing of synplug may be left on the server.

    A guest's processor is slow: keeper and watcher get a moment to end.
    """
    yield shared_lab.take()
    give_up_s = time.monotonic() + 15
    while (left := shared_lab.changes()) and time.monotonic() < give_up_s:
        time.sleep(0.1)
    try:
        shared_lab.end_programs()
    finally:
        if left:
            shared_lab.close()
    assert not left, f"not as before: {left}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, and count as deselected, what a kernel is not asked for.

    What a guest's kernel lacks is no more than is known: tests/guest/test_backends.py tries it.
    """
    left_out = [
        item
        for item in items
        if (item.get_closest_marker("guests_only") and kernel_of(item) == MACHINE)
        or not _has_what_it_needs(item)
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _has_what_it_needs(item: pytest.Item) -> bool:
    needed = {mark.args[0] for mark in item.iter_markers("needs")}
    guest = kernel_of(item)
    return guest not in ABSENT or needed <= set(backends_of(guest))
