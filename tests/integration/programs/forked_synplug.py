"""synplug with one accident after the other: what costs a guest seconds is imported once.

``forked_synplug.py FOLDER`` serves ``forked.sh``, whose pid is a line of the FIFO *requests* there,
and whose arguments are in a file. It runs synplug in a fork, in that one's place: in its network
namespace, with its standard streams; one at a time. Without a fault nothing strikes, and the facts
tell which of the plug's calls the keeper comes to, and when.
"""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).parents[3]))

import ctypes  # noqa: F401 -- imported where it is used

import pyroute2  # noqa: F401 -- the dearest of all

from synplug.cli import hold, release, wrap  # noqa: F401 -- what the verbs import
from synplug.cli.main import main
from synplug.handover import detached, run_hold  # noqa: F401
from synplug.handover import wrap as sequence  # noqa: F401
from synplug.kernel.namespaces import enter_network
from tests.integration.fault_points import Fault, Party
from tests.integration.plug_fault_points import IN_PARTS, PLUG_POINTS
from tests.integration.programs.faulty_synplug import Accident, Record


def _run_for(pid: int, arguments: list[str]) -> NoReturn:
    """A run's whole life."""
    status = 1
    try:
        os.setsid()
        for stream in (0, 1, 2):
            mode = os.O_WRONLY | os.O_APPEND if stream else os.O_RDONLY
            os.dup2(os.open(f"/proc/{pid}/fd/{stream}", mode), stream)
        enter_network(f"/proc/{pid}/ns/net")
        status = _run(*arguments)
    except BaseException:  # noqa: BLE001 -- as the interpreter does
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _run(point: str, party: str, fault: str, facts: str, *words: str) -> int:
    if not fault:
        Record(IN_PARTS.values(), facts).prepare()
    elif party != Party.COMMAND.value:
        Accident(PLUG_POINTS[point], Party(party), Fault(fault), facts).prepare()
    return main(list(words))


def _serve(folder: Path) -> None:
    requests = os.open(folder / "requests", os.O_RDWR)  # of ours, too: it never ends
    for line in os.fdopen(requests, encoding="ascii"):
        pid = int(line)
        words = folder / f"{pid}.words"
        arguments = words.read_bytes().decode().split("\0")[:-1]
        child = os.fork()
        if child == 0:
            _run_for(pid, arguments)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with suppress(OSError):  # who was killed, since it took too long, does not wait for it
            answer = os.open(folder / str(pid), os.O_WRONLY | os.O_NONBLOCK)
            os.write(answer, b"%d\n" % status)
            os.close(answer)
        words.unlink()
        (folder / str(pid)).unlink()


_serve(Path(sys.argv[1]))
