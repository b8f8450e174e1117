"""synplug with one accident after the other: what costs a guest seconds is imported once.

Each line of standard input is a run, as JSON: the arguments of ``faulty_synplug.py``, and a file
for what it says. It runs in a fork; its exit status is a line of standard output. Without a fault
nothing strikes, and the facts tell which of the plug's calls the keeper comes to, and when.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

import pyroute2  # noqa: F401 -- the dearest of all

from synplug.cli import wrap  # noqa: F401 -- what the verb imports
from synplug.cli.main import main
from synplug.handover import wrap as sequence  # noqa: F401
from tests.integration.fault_points import Fault, Party
from tests.integration.plug_fault_points import PLUG_POINTS
from tests.integration.programs.faulty_synplug import Accident, Record


def _run(point: str, party: str, fault: str, facts: str, words: list[str], said: str) -> None:
    """A run's whole life; never returns."""
    status = 1
    try:
        os.setsid()
        output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for stream in (1, 2):
            os.dup2(output, stream)
        if fault:
            Accident(PLUG_POINTS[point], Party(party), Fault(fault), facts).prepare()
        else:
            Record(
                [found for found in PLUG_POINTS.values() if found.after and not found.refused],
                facts,
            ).prepare()
        status = main(words)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


for line in sys.stdin:
    child = os.fork()
    if child == 0:
        _run(**json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
