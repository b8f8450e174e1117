"""A run that holds with a plug is struck at each of its steps: nobody may meet a black hole.

The steps are those of the fault matrix (``tests/integration/fault_points.py``), enumerated from the
code; what a plug does not come to is named here, so that a new step without a case fails.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from netlab.program import wait_until
from netlab.topology import ClientServer
from tests.guest.plug import PLUG
from tests.integration import shell
from tests.integration.conftest import SimpleService
from tests.integration.connect import connects_within
from tests.integration.fault_points import AFTER_THE_RELEASE, POINTS, Fault, Party, Point
from tests.integration.fault_run import LAUNCHER

pytestmark = pytest.mark.guests_only

#: Steps of a run that a plug does not come to, and why.
ELSEWHERE = {
    "Backend.release_next": "it opens as a whole",
    "Backend.let_through": "only the run's own connections; test_plug.py of tests/unit",
    "Backend.waiting_by_port": "it opens as a whole",
    "Backend.obstacle": "asked only of who uses queues",
    "Backend.clean_up_after_death": "the watcher's, or recover's; test_plug.py",
    "FlushGuard.share": "only of who uses queues",
    "FlushGuard.leave": "only of who uses queues",
    "FlushGuard.try_alone": "only of who uses queues",
}
#: Struck on every kernel.
ON_EVERY_KERNEL = ("Backend.arm", "Backend.hold", "Backend.open", "Backend.remove")
#: Where the keeper gets the signals, too, that leave it alive: a step of each part of its life.
SIGNALLED = (*ON_EVERY_KERNEL, "Backend.check_for_loss")
#: Struck in every run of the tests: holding, and letting go.
ALWAYS = (
    ("Backend.check_for_loss", Fault.SIGKILL),
    ("Backend.check_for_loss", Fault.SIGTERM),
    ("Backend.open", Fault.SIGSTOP),
    ("Backend.open", Fault.EXCEPTION),
)
#: Of a keeper that is stopped; others end by themselves.
_SHORT = ["--max-hold", "5s"]
_ACCIDENTS = (
    (Party.KEEPER, Fault.SIGKILL),
    (Party.KEEPER, Fault.SIGTERM),
    (Party.KEEPER, Fault.SIGSTOP),
    (Party.KEEPER, Fault.EXCEPTION),
    (Party.ORCHESTRATOR, Fault.SIGKILL),
    (Party.BOTH, Fault.SIGKILL),
)


def _cases() -> Iterator[object]:
    for point in POINTS.values():
        if point.is_detached or point.name in ELSEWHERE:
            continue
        for party, fault in _ACCIDENTS:
            if not point.keeper_lives and party is Party.BOTH:
                continue
            if party is not Party.BOTH and party is not point.process:
                continue
            if fault in (Fault.SIGTERM, Fault.SIGSTOP) and point.name not in SIGNALLED:
                continue
            chosen = point.name in ON_EVERY_KERNEL and party is Party.KEEPER
            marks = [pytest.mark.kernels if chosen else pytest.mark.faults]
            if party is Party.KEEPER and (point.name, fault) in ALWAYS:
                marks = []
            name = "-".join((point.name, party.value, fault.value)).replace(" ", "_")
            yield pytest.param(point, party, fault, id=name, marks=marks)


def test_what_is_elsewhere_is_a_step() -> None:
    assert set(ELSEWHERE) <= set(POINTS)


@pytest.mark.parametrize(("point", "party", "fault"), list(_cases()))
def test_new_connections_pass_and_nothing_is_left(
    lab: ClientServer,
    simple: SimpleService,
    tmp_path: Path,
    point: Point,
    party: Party,
    fault: Fault,
) -> None:
    """The lab looks at what is left; where there was a keeper, nobody calls ``recover``."""
    facts = tmp_path / "facts"
    accident = [point.name, party.value, fault.value, str(facts)]
    argv = [sys.executable, str(LAUNCHER), *accident, "wrap", *PLUG, "-p", "8080"]
    argv += [*point.options, *(_SHORT if fault is Fault.SIGSTOP else []), "--"]
    done = lab.server.run([*argv, *simple.restart_argv()], check=False, timeout_s=120)
    assert "fault" in facts.read_text(), "it struck"
    if fault is Fault.SIGSTOP:
        _let_go_on(int(facts.read_text().split()[3]))
    if party is not Party.KEEPER and fault is Fault.SIGKILL:
        assert done.returncode == -signal.SIGKILL, done
    else:
        is_late = point.name in AFTER_THE_RELEASE
        is_late |= fault is Fault.SIGTERM and point.name == "Backend.open"  # it does so anyway
        assert done.returncode == 125 or is_late, done
    # A command whose run was killed goes on, and has the service down for a moment more.
    target = (lab.server_ipv4, 8080)
    try:
        wait_until(lambda: connects_within(lab.client, target, 30), 60, "the service is reached")
    except subprocess.TimeoutExpired:
        pytest.fail("a black hole")
    wait_until(simple.listens, 30, "the service listens")
    if party is not Party.KEEPER:  # files may be left, and what was made before a keeper was there
        assert shell.run(lab.server, "recover").status == 0


def _let_go_on(keeper: int) -> None:
    """One that was stopped when nothing was held any more: it may still be there."""
    with suppress(ProcessLookupError):
        os.kill(keeper, signal.SIGCONT)
