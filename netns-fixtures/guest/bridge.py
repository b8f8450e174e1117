"""Tests that run in guests, and are reported here like all others.

For a conftest.py, which imports the hooks and the fixture: all tests below it run once for each
kernel of $KERNELS (suites, or `machine` for the kernel that runs this; by default bookworm's).
They are collected and selected here. The first one of a kernel boots its guest, which runs all
of them in one pytest; each one's reports are passed on as they come. A guest that does not
start, dies, or says nothing for too long fails the tests that it owes.

Tests with the marker `systemd` run, whatever $KERNELS says, in one guest more, whose PID 1 that is.
Those with the marker `stock` run in the guest of an ordinary kernel, too, if $KERNELS is unset, and
with `stock(only=True)` in no other's.

$GUESTS_AT_ONCE guests run at the same time (by default one), each with a processor to keep busy.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

import pytest

from guest.errors import BootError, GuestError
from guest.kernels import fetch_kernel
from guest.machine import Guest
from guest.reporter import ENVIRONMENT_RESULTS
from guest.stock import DEFAULT_STOCK, STOCK
from guest.suites import DEFAULT_SUITE, REPOSITORY, fetch
from guest.systemd import SYNPLUG, fetch_system
from netlab.compiled import compiled
from netlab.errors import LabError

#: The kernel that runs this, in place of a suite.
MACHINE = "machine"
#: The guest that has it as PID 1; and the marker of the tests for that.
SYSTEMD = "systemd"
#: The marker of the tests for ordinary kernels.
_STOCK = "stock"

_ENVIRONMENT_KERNELS = "KERNELS"
_ENVIRONMENT_INSIDE = "GUEST_SUITE"
_ENVIRONMENT_AT_ONCE = "GUESTS_AT_ONCE"
_SILENCE_LIMIT_S = 300
#: The fault matrix of the plug takes the most; one that hangs is silent before.
_TOTAL_LIMIT_S = 7200
_POLL_S = 0.02
_PASSED_ON = ("CI",)


@pytest.fixture(scope="session", autouse=True)
def kernel(request: pytest.FixtureRequest) -> str:
    """The suite whose kernel runs the test, or `machine`."""
    return str(request.param)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test once a kernel; inside of a guest, for that one."""
    inside = os.environ.get(_ENVIRONMENT_INSIDE)
    kernels = [inside] if inside else _kernels_for(metafunc.definition)
    metafunc.parametrize("kernel", kernels, indirect=True, scope="session")


def _kernels_for(definition: pytest.Function) -> list[str]:
    """Those that a test is to run on."""
    if definition.get_closest_marker(SYSTEMD):
        return [SYSTEMD]
    named = os.environ.get(_ENVIRONMENT_KERNELS, "").split()
    kernels = named or [DEFAULT_SUITE]
    if stock := definition.get_closest_marker(_STOCK):
        kernels = named or [DEFAULT_SUITE, DEFAULT_STOCK]
        if stock.kwargs.get("only"):
            kernels = [name for name in kernels if name in STOCK] or [DEFAULT_STOCK]
    return kernels


def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """In place of a run here: the reports of the run in the guest."""
    name = kernel_of(item)
    if name == MACHINE or _ENVIRONMENT_INSIDE in os.environ:
        return None
    runs = item.config.stash.setdefault(_RUNS, {})
    for due in _due(item):
        if due not in runs:
            runs[due] = GuestRun(due, [it for it in item.session.items if kernel_of(it) == due])
            item.config.add_cleanup(runs[due].close)
            runs[due].start(item.config)
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in runs[name].reports(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _due(item: pytest.Item) -> list[str]:
    """The kernels whose guests are to run now: that of *item*, and those that come next."""
    kernels = dict.fromkeys(kernel_of(other) for other in item.session.items)
    order = [name for name in kernels if name != MACHINE]
    begin = order.index(kernel_of(item))
    return order[begin : begin + int(os.environ.get(_ENVIRONMENT_AT_ONCE, "1"))]


def kernel_of(item: pytest.Item) -> str:
    """`machine` for tests that are none of this conftest's."""
    if not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
        return MACHINE
    return str(item.callspec.params.get("kernel", MACHINE))


class GuestRun:
    """One guest, and the reports that came from it."""

    def __init__(self, suite: str, items: Sequence[pytest.Item]) -> None:
        self._suite = suite
        self._items = items
        self._stack = ExitStack()
        self._guest: Guest | None = None
        self._failure = ""
        self._reports: dict[str, list[pytest.TestReport]] = {}
        self._finished: set[str] = set()
        self._results: TextIO | None = None
        self._partial = ""

    def start(self, config: pytest.Config) -> None:
        """Boot it; what goes wrong is told of its tests."""
        try:
            self._guest = self._boot(config)
        except (GuestError, LabError, OSError) as error:
            self._failure = str(error)

    def reports(self, item: pytest.Item) -> list[pytest.TestReport]:
        """Wait for the reports of `item`; a failed one in place of those that never come."""
        try:
            self._wait_for(item)
        except (GuestError, LabError, OSError) as error:
            failure, self._failure = str(error), str(error).partition("\n")[0]
            return [*self._reports.get(item.nodeid, []), _failed(item, failure)]
        return self._reports[item.nodeid]

    def close(self) -> None:
        """End the guest, if it runs."""
        self._stack.close()

    def _wait_for(self, item: pytest.Item) -> None:
        if item.nodeid in self._finished:
            return
        guest = self._guest
        if self._failure or guest is None:
            raise BootError(self._failure)
        silent_until_s = time.monotonic() + _SILENCE_LIMIT_S
        while item.nodeid not in self._finished:
            runs = guest.runs()
            if self._receive(item.config):
                silent_until_s = time.monotonic() + _SILENCE_LIMIT_S
            elif not runs:
                raise BootError(f"the guest has ended ({guest.status()}):\n{guest.tail()}")
            elif time.monotonic() > silent_until_s:
                guest.end()
                raise BootError(f"no result for {_SILENCE_LIMIT_S} s:\n{guest.tail()}")
            else:
                time.sleep(_POLL_S)

    def _boot(self, config: pytest.Config) -> Guest:
        made, python = _guest(self._suite)
        guest = self._stack.enter_context(made)
        selection = guest.shared / "selection"
        selection.write_text("".join(f"{item.nodeid}\n" for item in self._items), encoding="utf-8")
        share_programs(guest.shared / "cache")
        results = guest.shared / "results"
        results.touch()
        self._results = self._stack.enter_context(results.open(encoding="utf-8"))
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        environment |= {
            _ENVIRONMENT_INSIDE: self._suite,
            ENVIRONMENT_RESULTS: str(results),
            "XDG_CACHE_HOME": str(guest.shared / "cache"),
            "PYTHONPATH": str(REPOSITORY / "netns-fixtures"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        options = ["-p", "guest.reporter", "-p", "no:cacheprovider", f"--rootdir={config.rootpath}"]
        options += ["-m", ""]  # what was deselected was so here
        guest.start([python, "-m", "pytest", *options, f"@{selection}"], environment)
        return guest

    def _receive(self, config: pytest.Config) -> bool:
        """Read what has come; whether anything has."""
        anything = False
        while (line := self._next_line()) is not None:
            anything = True
            record = json.loads(line)
            if "finished" in record:
                self._finished.add(record["finished"])
                continue
            report = config.hook.pytest_report_from_serializable(
                config=config, data=record["report"]
            )
            if isinstance(report.longrepr, list):  # JSON knows no tuples; a skip's reason is one
                report.longrepr = tuple(report.longrepr)
            self._reports.setdefault(report.nodeid, []).append(report)
        return anything

    def _next_line(self) -> str | None:
        """The next line, once all of it is there."""
        assert self._results is not None, "booted"
        self._partial += self._results.readline()
        if not self._partial.endswith("\n"):
            return None
        line, self._partial = self._partial, ""
        return line


def _guest(name: str) -> tuple[Guest, str]:
    """A guest, and its Python that has pytest."""
    if name != SYSTEMD:
        return Guest(fetch_kernel(name), limit_s=_TOTAL_LIMIT_S), sys.executable
    guest = Guest(fetch(DEFAULT_SUITE), limit_s=_TOTAL_LIMIT_S, system=fetch_system())
    return guest, f"{SYNPLUG}/bin/python3"


def share_programs(cache: Path) -> None:
    """Put the lab's programs where the guest's lab looks: its compiler would take long."""
    (cache / "netlab").mkdir(mode=0o700, parents=True)
    for name in ("loadgen", "listenwatch"):
        shutil.copy(compiled(name), cache / "netlab")


def _failed(item: pytest.Item, words: str) -> pytest.TestReport:
    return pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords={},
        outcome="failed",
        longrepr=words,
        when="call",
    )


_RUNS = pytest.StashKey[dict[str, GuestRun]]()
