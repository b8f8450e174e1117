"""Samples for test_guest.py: they run in a guest."""

from __future__ import annotations

from guest.bridge import kernel, pytest_generate_tests, pytest_runtest_protocol

__all__ = ["kernel", "pytest_generate_tests", "pytest_runtest_protocol"]
