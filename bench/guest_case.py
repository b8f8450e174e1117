"""A case that needs what another kernel has: played in a guest, whose rounds come back.

``python -m bench.guest_case KEY ROUNDS FILE`` is what the guest runs.
"""

from __future__ import annotations

import pickle
import shutil
import sys
import time
from pathlib import Path

from bench.cases import Case, case_of
from bench.errors import BenchError
from bench.restarts import Result, Round, play_rounds, results
from guest.errors import GuestError
from guest.machine import Guest
from guest.suites import Kernel
from netlab.compiled import compiled
from netlab.isolation import enter_private_namespaces

#: Page faults are dear there: a start of Python alone takes seconds.
_LIMIT_S = 400.0
_POLL_S = 0.1


def play(case: Case, rounds: int, kernel: Kernel) -> list[Result]:
    """Play all rounds of a case in a guest.

    Raises:
        BenchError: the guest does not run, or a contender in it.

    """
    with Guest(kernel, limit_s=_LIMIT_S) as guest:
        cache = guest.shared / "cache"
        (cache / "netlab").mkdir(parents=True)
        for name in ("loadgen", "listenwatch"):
            shutil.copy(compiled(name), cache / "netlab")
        environment = {"PYTHONPATH": "netns-fixtures", "XDG_CACHE_HOME": str(cache)}
        file = guest.shared / "rounds"
        argv = [sys.executable, "-m", "bench.guest_case", case.key, str(rounds), str(file)]
        try:
            guest.start(argv, environment)
            while guest.runs():
                time.sleep(_POLL_S)
            status = guest.status()
        except GuestError as error:
            raise BenchError(f"the guest for {case.title}: {error}") from error
        if status:
            raise BenchError(f"in the guest, {case.title}:\n{guest.tail()}")
        played: dict[str, list[Round]] = pickle.loads(file.read_bytes())
    return results(case, played)


def main() -> int:
    """Play in the guest; 1 where a contender cannot run."""
    key, rounds, file = sys.argv[1:]
    enter_private_namespaces()
    try:
        played = play_rounds(case_of(key), int(rounds))
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    Path(file).write_bytes(pickle.dumps(played))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
