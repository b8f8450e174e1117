"""Every test runs in network, mount and (without root) user namespaces of its own process.

A test that cannot run here fails, it is not skipped: see ``pytest_sessionfinish``.
"""

from __future__ import annotations

import os
import signal

import pytest

from netlab.isolation import enter_private_namespaces

#: What a soak measured, one line a test; told at the end.
FIGURES = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """``make soak`` gives the option."""
    parser.addoption(
        "--soak",
        action="store_true",
        help="the soak in full: 1,000 runs in a row, 50 at once, 100,000 cases of the properties",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Leave the machine's namespaces before anything else happens."""
    enter_private_namespaces()
    os.environ.pop("PYTHONUNBUFFERED", None)  # synplug's users do not have it set
    # Whoever starts us in the background, or by nohup(1), has us ignore some, and what we start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    config.stash[FIGURES] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """In CI a skipped test is a hole in what was shown."""
    if terminalreporter.config.getoption("--soak"):
        terminalreporter.section("soak")
        for line in terminalreporter.config.stash[FIGURES]:
            terminalreporter.write_line(line)
    skipped = terminalreporter.stats.get("skipped", [])
    if os.environ.get("CI") and skipped:
        terminalreporter.write_line(f"CI: {len(skipped)} skipped tests count as failures", red=True)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail the session over skips, in CI."""
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    if os.environ.get("CI") and exitstatus == 0 and reporter and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
