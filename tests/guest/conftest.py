"""Tests below this folder run on the kernels of $KERNELS, in guests; see :mod:`guest.bridge`."""

from __future__ import annotations

from guest.bridge import kernel, pytest_generate_tests, pytest_runtest_protocol

__all__ = ["kernel", "pytest_generate_tests", "pytest_runtest_protocol"]
