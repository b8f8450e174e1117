"""What needs what another kernel has: played in a guest, whose rounds come back.

``python -m bench.guest_case WHAT ROUNDS FILE`` is what the guest runs: a case, by its key, or the
crowds that are let go there.
"""

from __future__ import annotations

import pickle
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from bench import held
from bench.cases import Case, case_of
from bench.errors import BenchError
from bench.restarts import Result, Round, play_rounds, results
from guest.errors import GuestError
from guest.machine import Guest
from guest.suites import Kernel
from netlab.compiled import compiled
from netlab.errors import LabError
from netlab.isolation import enter_private_namespaces

#: Page faults are dear there: a start of Python alone takes seconds.
_LIMIT_S = 400.0
_POLL_S = 0.1
#: In place of the key of a case.
_CROWDS = "crowds"


def play(case: Case, rounds: int, kernel: Kernel) -> list[Result]:
    """Play all rounds of a case in a guest.

    Raises:
        BenchError: the guest does not run, or a contender in it.

    """
    played: dict[str, list[Round]] = _played(case.key, case.title, rounds, kernel)
    return results(case, played)


def release(rounds: int, kernel: Kernel) -> held.Releases:
    """Let go in a guest whom the machine's own kernel cannot bring: :data:`bench.held.CROWDS`.

    Raises:
        BenchError: the guest does not run, or synplug in it.

    """
    released: held.Releases = _played(_CROWDS, "many let go", rounds, kernel)
    return released


def _played(what: str, title: str, rounds: int, kernel: Kernel) -> Any:
    with Guest(kernel, limit_s=_LIMIT_S) as guest:
        cache = guest.shared / "cache"
        (cache / "netlab").mkdir(parents=True)
        for name in ("loadgen", "listenwatch"):
            shutil.copy(compiled(name), cache / "netlab")
        environment = {"PYTHONPATH": "netns-fixtures", "XDG_CACHE_HOME": str(cache)}
        file = guest.shared / "rounds"
        argv = [sys.executable, "-m", "bench.guest_case", what, str(rounds), str(file)]
        try:
            guest.start(argv, environment)
            while guest.runs():
                time.sleep(_POLL_S)
            status = guest.status()
        except GuestError as error:
            raise BenchError(f"the guest for {title}: {error}") from error
        if status:
            raise BenchError(f"in the guest, {title}:\n{guest.tail()}")
        return pickle.loads(file.read_bytes())


def main() -> int:
    """Play in the guest; 1 where a contender cannot run."""
    what, rounds, file = sys.argv[1:]
    enter_private_namespaces()
    try:
        played = _play_here(what, int(rounds))
    except LabError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    Path(file).write_bytes(pickle.dumps(played))
    return 0


def _play_here(what: str, rounds: int) -> object:
    if what == _CROWDS:
        return held.measure([crowd for crowd in held.CROWDS if crowd.in_guest], rounds)
    return play_rounds(case_of(what), rounds)


if __name__ == "__main__":
    raise SystemExit(main())
