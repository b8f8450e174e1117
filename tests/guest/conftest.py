"""Tests below this folder run on the kernels of $KERNELS, in guests; see :mod:`guest.bridge`."""

from __future__ import annotations

from guest.bridge import kernel, pytest_generate_tests, pytest_runtest_protocol
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
