"""Property tests look at values, not at how busy the machine is; and whatever hangs is red."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("unit", deadline=None)
settings.load_profile("unit")

_HANGS_AFTER_S = 60


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    def hangs(*_: object) -> None:
        raise TimeoutError(f"still not done after {_HANGS_AFTER_S} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(_HANGS_AFTER_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
