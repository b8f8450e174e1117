"""synplug with an accident: ``faulty_synplug.py POINT PARTY FAULT FACTS ARGUMENT…``.

Runs the command line with these arguments. When the process that POINT belongs to comes there,
FAULT strikes PARTY: a signal, an exception, or the next system call of a kind that can say so fails
with that error. FACTS is a file that gets a line for each thing that happened: ``fault TIME
ORCHESTRATOR KEEPER`` with a monotonic time and two pids, ``struck PID…`` with those who get a
signal, and ``refused CALL PLACE`` with the function of synplug that made the call. The keeper of a
hold that somebody else began is named by FAULT_KEEPER.

Nothing in synplug knows of this: methods are wrapped before the keeper is forked.
"""

from __future__ import annotations

import functools
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))

from synplug.cli.main import main
from synplug.holding import plug, watcher  # noqa: F401 -- to be found among the backends
from synplug.holding.handle import KeptHold
from tests.integration.fault_points import POINTS, Fault, Party, Point
from tests.integration.supervise_fault_points import RELEASE_POINTS, SUPERVISE_POINTS
from tests.integration.swap_fault_points import SWAP_PART_POINTS, SWAP_POINTS

_ALL = POINTS | SWAP_POINTS | SWAP_PART_POINTS | SUPERVISE_POINTS | RELEASE_POINTS

#: Who can say so: functions of a module (None: methods of sockets), by name.
_REFUSING: dict[Fault, set[str]] = {
    Fault.ENOSPC: {"posix.open", "posix.mkdir", "posix.write", "posix.rename", "posix.ftruncate"},
    Fault.EMFILE: {
        *("posix.open", "posix.pidfd_open", "posix.pipe2", "posix.memfd_create", "posix.listdir"),
        *("io.open", "_io.open", "_socket.socketpair", "socket()"),
    },
    Fault.ENOBUFS: {"send", "sendto", "recv_into", "recv", "recvmsg", "recvfrom", "socket()"},
    Fault.EPERM: {
        *("send", "recv", "recvmsg", "setsockopt", "bind", "posix.open", "posix.mkdir"),
        *("posix.unlink", "posix.rmdir", "posix.posix_spawnp", "signal.pidfd_send_signal"),
    },
}
_SOCKET = socket.socket.__init__.__code__
#: A run that does not come to clean up after its keeper is waited for so long.
_FIRST_S = 10.0


class Accident:
    """The one fault of this run."""

    def __init__(self, point: Point, party: Party, fault: Fault, facts: str) -> None:
        self._point = point
        self._party = party
        self._fault = fault
        self._facts = facts
        self._run = os.getpid()
        self._keeper = int(os.environ.get("FAULT_KEEPER", "0"))
        self._generations: dict[Party, int] = {}
        self._passages = 0
        self._is_time = not point.after
        self._is_over = False

    def prepare(self) -> None:
        """Lay the snares."""
        self._learn_the_keeper()
        if self._party in (Party.NEW, Party.OLD):
            self._learn_the_generations()
        if self._point.after:
            _at(_ALL[self._point.after], self._begin)
        _at(self._point, self._pass)
        if self._point.needs_dead_keeper:
            from synplug.handover.ready_wait import ReadyWait

            _on_entry(ReadyWait, "until_ready", lambda: os.kill(self._keeper, signal.SIGKILL))
            _on_entry(watcher, "clean_up", self._let_the_run_be_first)

    def _learn_the_keeper(self) -> None:
        fork = os.fork

        def forked() -> int:
            is_run = os.getpid() == self._run
            pid = fork()
            if is_run:  # the keeper forks its watcher
                self._keeper = pid or os.getpid()
            return pid

        os.fork = forked
        assert KeptHold.arm.__globals__["os"] is os, "the keeper is forked by os.fork"

    def _learn_the_generations(self) -> None:
        """Of a swap: the new one is that whose command it has started."""
        from synplug.handover.generation import Generation

        make = Generation.__init__

        def made(generation: Generation, pid: int, **options: Any) -> None:
            make(generation, pid, **options)
            self._generations[Party.NEW if options.get("command") else Party.OLD] = pid

        Generation.__init__ = made  # type: ignore[assignment,method-assign]

    def _begin(self) -> None:
        self._is_time = True

    def _let_the_run_be_first(self) -> None:
        """The watcher would be faster at times."""
        give_up_s = time.monotonic() + _FIRST_S
        while not os.path.exists(self._facts) and time.monotonic() < give_up_s:
            time.sleep(0.01)

    def _pass(self) -> None:
        is_run = os.getpid() == self._run
        if is_run != (self._point.process is Party.ORCHESTRATOR) or not self._is_time:
            return
        if not is_run and os.getpid() != self._keeper:
            return  # its watcher, which cleans up after it
        self._passages += 1
        if self._passages != self._point.nth or self._is_over:
            return
        self._is_over = True
        _note(self._facts, f"fault {time.monotonic()} {self._run} {self._keeper}")
        if self._fault.is_signal:
            self._signal(signal.Signals[self._fault.value])
        elif self._fault is Fault.EXCEPTION:
            raise RuntimeError("an injected fault")
        else:
            sys.setprofile(self._refuse)

    def _signal(self, number: int) -> None:
        """To whom it may concern, and to ourselves last."""
        pids = {
            Party.ORCHESTRATOR: [self._run],
            Party.KEEPER: [self._keeper],
            Party.BOTH: [self._run, self._keeper],
        }.get(self._party) or [self._generations[self._party]]
        _note(self._facts, f"struck {' '.join(map(str, pids))}")
        for pid in sorted(pids, key=lambda pid: pid == os.getpid()):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _refuse(self, frame: FrameType, event: str, called: Any) -> None:
        """Fail the next call that can; setprofile(3)'s function may raise, and is unset then."""
        if event == "c_call":
            module = getattr(called, "__module__", None)
            name = f"{module}.{called.__name__}" if module else called.__name__
            if module is None and not isinstance(called.__self__, socket.socket):
                return
        elif event == "call" and frame.f_code is _SOCKET:
            name = "socket()"
        else:
            return
        if name in _REFUSING[self._fault] and name in (self._point.refused or {name}):
            _note(self._facts, f"refused {name} {_place(frame)}")
            raise OSError(self._fault.errno, os.strerror(self._fault.errno))


class Record:
    """Notes which points the keeper comes to: ``passed POINT``, each as often as it does."""

    def __init__(self, points: Iterable[Point], facts: str) -> None:
        self._points = list(points)
        self._facts = facts
        self._run = os.getpid()
        self._part = ""

    def prepare(self) -> None:
        """Watch them."""
        for part in {point.after for point in self._points}:
            _at(POINTS[part], functools.partial(self._begin, part))
        for point in self._points:
            _at(point, functools.partial(self._pass, point))

    def _begin(self, part: str) -> None:
        self._part = part

    def _pass(self, point: Point) -> None:
        if point.after == self._part and os.getpid() != self._run:
            _note(self._facts, f"passed {point.name}")


def _place(frame: FrameType | None) -> str:
    """The function of synplug that makes a call, perhaps through a library: ``module.function``."""
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        if module.startswith("synplug."):
            return f"{module.rpartition('.')[2]}.{frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


def _at(point: Point, happen: Callable[[], None]) -> None:
    for owner in point.owners:
        _on_entry(owner, point.method, happen)


def _on_entry(owner: object, name: str, happen: Callable[[], None]) -> None:
    method = getattr(owner, name)

    @functools.wraps(method)
    def entered(*arguments: Any, **options: Any) -> Any:
        happen()
        return method(*arguments, **options)

    setattr(owner, name, entered)


def _note(facts: str, line: str) -> None:
    descriptor = os.open(facts, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


if __name__ == "__main__":
    name, party, fault, facts, *words = sys.argv[1:]
    if party != Party.COMMAND.value:
        Accident(_ALL[name], Party(party), Fault(fault), facts).prepare()
    sys.exit(main(words))
