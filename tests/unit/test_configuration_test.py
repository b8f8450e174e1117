"""Which command lines test a configuration."""

from __future__ import annotations

import pytest

from synplug.handover.configuration_test import is_configuration_test


@pytest.mark.parametrize("words", ["nginx -t", "/usr/sbin/nginx -qt", "nginx -c /a.conf -T"])
def test_tests(words: str) -> None:
    assert is_configuration_test(words.split())


@pytest.mark.parametrize(
    "words",
    ["", "nginx", "nginx -c -t", "nginx -ctest.conf", "nginx -s reload", "haproxy -t"],
)
def test_services(words: str) -> None:
    assert not is_configuration_test(words.split())
