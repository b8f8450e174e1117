"""Property tests look at values, not at how busy the machine is; and whatever hangs is red.

Their cases are counted as they end: a soak is one of so many that were really run.
"""

from __future__ import annotations

import functools
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, is_hypothesis_test, settings

from tests.conftest import FIGURES

SOAK_CASES = 100_000
_BUSY = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("unit", deadline=None, max_examples=150, suppress_health_check=_BUSY)
settings.register_profile("soak", settings.get_profile("unit"), max_examples=3200, print_blob=True)

_HANGS_AFTER_S = 60
_SOAK_HANGS_AFTER_S = 600
_CASES = pytest.StashKey[Counter[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """So many cases of each property."""
    settings.load_profile("soak" if config.getoption("--soak") else "unit")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Count the cases of each property: those that came to their end, none that was rejected."""
    cases = config.stash.setdefault(_CASES, Counter())
    for item in items:
        function: Any = getattr(item, "obj", None)
        if is_hypothesis_test(function) and function.__name__ not in cases:
            cases[function.__name__] = 0
            inner = function.hypothesis.inner_test
            function.hypothesis.inner_test = _counted(inner, function.__name__, cases)


def _counted(test: Callable[..., None], name: str, cases: Counter[str]) -> Callable[..., None]:
    @functools.wraps(test)
    def counting(*args: Any, **values: Any) -> None:
        test(*args, **values)
        cases[name] += 1

    return counting


@pytest.hookimpl(tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many there were."""
    config = terminalreporter.config
    cases = config.stash.get(_CASES, Counter())
    if cases:
        line = f"{cases.total():,} cases of {len(cases)} properties"
        config.stash[FIGURES].append(line)
        if not config.getoption("--soak"):
            terminalreporter.write_line(line)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A soak with fewer cases than it promises has failed."""
    cases = session.config.stash.get(_CASES, Counter())
    if session.config.getoption("--soak") and exitstatus == 0 and cases.total() < SOAK_CASES:
        session.config.stash[FIGURES].append(f"FAILED: fewer than {SOAK_CASES:,} cases")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True)
def _no_hang(request: pytest.FixtureRequest) -> Iterator[None]:
    limit_s = _SOAK_HANGS_AFTER_S if request.config.getoption("--soak") else _HANGS_AFTER_S

    def hangs(*_: object) -> None:
        # No OSError, as TimeoutError is: the product may rightly pass over those.
        pytest.fail(f"still not done after {limit_s} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(limit_s)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
