"""Tests below this folder run on the kernels of $KERNELS, in guests; see :mod:`guest.bridge`."""

from __future__ import annotations

import pytest

from guest.bridge import (
    MACHINE,
    kernel,
    kernel_of,
    pytest_generate_tests,
    pytest_runtest_protocol,
)
from tests.guest.matrix import pytest_configure
from tests.integration.conftest import lab, simple

__all__ = [
    "kernel",
    "lab",
    "pytest_configure",
    "pytest_generate_tests",
    "pytest_runtest_protocol",
    "simple",
]


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
