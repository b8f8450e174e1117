"""What the cases of the fault matrix run on, and how synplug is started there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.integration import shell

_PROGRAMS = Path(__file__).with_name("programs")
LAUNCHER = _PROGRAMS / "faulty_synplug.py"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """By default the one that runs this.

    :param launcher: starts synplug with an accident; its arguments are those of LAUNCHER.
    :param synplug: starts it without one.
    :param max_hold_s: the hold's deadline: some time for the service to start.
    :param max_hold_checked_s: the same where a health check starts a Python, too.
    :param slow_s: it needs so much more than this one to answer.
    :param ending_s: and so much more to end a hold, which is measured where the former is not 0.
    :param still_s: how long the processes of a run may take to end, after it.
    :param patience_s: how long anything may take.
    :param every_s: clients come so often.
    """

    launcher: tuple[str, ...] = (sys.executable, str(LAUNCHER))
    synplug: tuple[str, ...] = tuple(shell.SYNPLUG)
    max_hold_s: float = 1.5
    max_hold_checked_s: float = 4.0
    slow_s: float = 0.0
    ending_s: float = 0.0
    still_s: float = 3.0
    patience_s: float = 25.0
    every_s: float = 0.025


@contextmanager
def forked_launcher(folder: Path) -> Iterator[tuple[str, ...]]:
    """A launcher whose runs are forks of one process; for the points of the plug.

    To start a run that has pyroute2 costs a guest seconds.
    """
    folder.mkdir()
    os.mkfifo(folder / "requests")
    server = subprocess.Popen([sys.executable, str(_PROGRAMS / "forked_synplug.py"), str(folder)])
    try:
        yield ("sh", str(_PROGRAMS / "forked.sh"), str(folder))
    finally:
        server.kill()
        server.wait()
