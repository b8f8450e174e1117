"""Start commands, wait for them, pass signals on.

A command gets the caller's environment, identity, working directory and descriptors as they
are, default signal dispositions, and nothing of ours. (glibc's posix_spawn leaves its two internal
signals ignored, as it does for what make(1) runs.)
"""

from __future__ import annotations

import enum
import errno
import os
import select
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial

from synplug.errors import CommandError, CommandNotFoundError
from synplug.handover.clues import remedy_of_absence, remedy_of_mode
from synplug.handover.tools import HasDescriptor
from synplug.handover.tools import Signals as TakesSignals
from synplug.kernel import procfs

#: Python ignores these at its start (Modules/signalmodule.c, signal_install_handlers), and what
#: they were is lost with that; a command expects their defaults. See docs/failure-modes.md.
_PYTHON_IGNORES = (signal.SIGPIPE, signal.SIGXFSZ)
_OUTPUT_BYTES = 4096
_SHELL = "/bin/sh"
_LOOK_AGAIN_S = 0.02
_SHORT_S = 0.001


def resolve(name: str) -> str:
    """The file that a command name stands for.

    :raises CommandNotFoundError: there is none. :raises CommandError: it is not executable.
    """
    if "/" in name:
        candidates = [name]
    else:
        folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
        candidates = [os.path.join(folder or ".", name) for folder in folders]
    found = [path for path in candidates if os.path.isfile(path)]
    for path in found:
        if os.access(path, os.X_OK):
            return path
    if found or (os.path.isdir(name) and "/" in name):
        raise CommandError(f"{name} cannot be executed", remedy=remedy_of_mode(found))
    raise CommandNotFoundError(f"{name}: command not found", remedy=remedy_of_absence(name))


#: Processes whose status nobody has asked for yet.
_UNCOLLECTED: set[int] = set()


class SpawnedCommand:
    """A command that was started.

    :param stdout: a descriptor that becomes its standard output; None: ours.
    :param captured: its output goes to memory, its input is empty, and it has a process group of
        its own: what it starts ends with it when it is told to.
    :param environment: instead of ours. :param session: give it one of its own (setsid(2)).
    :raises CommandError: it cannot be executed.
    """

    def __init__(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        stdout: int | None = None,
        captured: bool = False,
        session: bool = False,
    ) -> None:
        actions: list[tuple[int, int, int]] = []
        self._output = self._null = -1
        if captured:
            # Not a pipe: a process that the command leaves behind must not keep us waiting.
            self._output = os.memfd_create("synplug-output")
            self._null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            actions = [(os.POSIX_SPAWN_DUP2, self._null, 0)]
            actions += [(os.POSIX_SPAWN_DUP2, self._output, stream) for stream in (1, 2)]
        elif stdout is not None:
            actions = [(os.POSIX_SPAWN_DUP2, stdout, 1)]
        try:
            around = os.environ if environment is None else environment
            how = _Apart.SESSION if session else _Apart.GROUP if captured else _Apart.NOT
            self.pid = _spawn(argv, around, actions, how)
        except BaseException:
            self._close_output()
            raise
        _UNCOLLECTED.add(self.pid)
        self._own_group = captured
        self._status: int | None = None
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except OSError:  # it runs, and must be seen to its end without a descriptor
            self._pidfd = -1

    def poll(self) -> int | None:
        """Its status as a shell would have it, or None while it runs."""
        if self._status is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # somebody else has collected it, and its status
                pid, status = self.pid, 0
            if pid:
                _UNCOLLECTED.discard(pid)
                self._status = shell_status(status)
                if self._pidfd >= 0:
                    os.close(self._pidfd)
        return self._status

    def fileno(self) -> int:
        """A descriptor that is readable when it has ended; valid until :meth:`poll` says so.

        -1 where the system had none to give: look again soon.
        """
        return self._pidfd

    def wait(self, timeout_s: float) -> int | None:
        """Wait for its end, so many seconds at the most; its status, or None."""
        if self._status is None:
            _wait(select.poll(), timeout_s, self)
        return self.poll()

    def send(self, number: int) -> None:
        """Send it a signal; one whose output is captured, with all that it has started.

        It has not been collected, so neither its pid nor its group can be another's.
        """
        if self._status is None:
            with suppress(ProcessLookupError):
                if self._own_group:
                    os.killpg(self.pid, number)
                elif self._pidfd >= 0:
                    signal.pidfd_send_signal(self._pidfd, number)
                else:
                    os.kill(self.pid, number)

    def output(self) -> str:
        """The end of what a captured command has said; can be asked once."""
        size = os.fstat(self._output).st_size
        data = os.pread(self._output, _OUTPUT_BYTES, max(0, size - _OUTPUT_BYTES))
        self._close_output()
        return data.decode(errors="replace").strip()

    def _close_output(self) -> None:
        for descriptor in (self._output, self._null):
            if descriptor >= 0:
                os.close(descriptor)
        self._output = self._null = -1


class _Apart(enum.Enum):
    """How far a command stands apart from us: not at all, or what it leads."""

    NOT = enum.auto()
    GROUP = enum.auto()
    SESSION = enum.auto()


def _spawn(
    argv: Sequence[str],
    environment: Mapping[str, str],
    actions: list[tuple[int, int, int]],
    apart: _Apart,
) -> int:
    spawn = partial(os.posix_spawnp, setpgroup=0) if apart is _Apart.GROUP else os.posix_spawnp
    try:
        return spawn(
            argv[0],
            list(argv),
            environment,
            file_actions=actions,
            setsid=apart is _Apart.SESSION,
            setsigdef=_PYTHON_IGNORES,
        )
    except OSError as error:
        if error.errno == errno.ENOEXEC and argv[0] != _SHELL:  # no #! line: as execvp(3) does
            shell = [_SHELL, resolve(argv[0]), *argv[1:]]
            return _spawn(shell, environment, actions, apart)
        kind = CommandNotFoundError if error.errno == errno.ENOENT else CommandError
        raise kind(f"{argv[0]}: {error.strerror}") from error


def send_to(pid: int, start: int, number: int) -> None:
    """Send a signal to the process that has this pid and start time; to no other that has it now.

    :param start: as :func:`synplug.kernel.procfs.start_time` has it.
    """
    with suppress(ProcessLookupError):
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        except OSError:  # no descriptor is left for us: nearly as sure without one
            if procfs.start_time(pid) == start:
                os.kill(pid, number)
            return
        try:
            if procfs.start_time(pid) == start:  # the pidfd is that process's from here on
                signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)


def reap(pid: int) -> int | None:
    """Collect a child that has ended; returns its status as a shell has it.

    None: it runs, is no child of ours, or a command's first process, whose status is awaited.
    """
    if pid in _UNCOLLECTED:
        return None
    with suppress(ChildProcessError):
        collected, status = os.waitpid(pid, os.WNOHANG)
        if collected:
            return shell_status(status)
    return None


def shell_status(status: int) -> int:
    """A wait status as a shell has it: the exit code, or 128 + the signal's number."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


class Signals:
    """Signals to pass on, taken from the process for as long as the context lasts.

    One that our caller has us ignore (nohup(1)) stays ignored, for us and for the command.

    :param also: besides SIGINT, SIGTERM and SIGHUP.
    """

    def __init__(self, *also: int) -> None:
        self._numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, *also)
        self._arrived: list[int] = []
        self._before: dict[int, object] = {}
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def __enter__(self) -> Signals:
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        # Ignored, as a caller may have it, the kernel would throw the command's status away.
        self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number in self._numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._arrive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        signal.set_wakeup_fd(-1)
        os.close(self._reader)
        os.close(self._writer)

    def _arrive(self, number: int, _frame: object) -> None:
        self._arrived.append(number)

    def take(self) -> list[int]:
        """The signals since the last call."""
        arrived, self._arrived = self._arrived, []
        return arrived

    def pause(self, timeout_s: float, until: HasDescriptor | None = None) -> None:
        """Wait; return early when a signal has come, or *until* is readable."""
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        _wait(poll, 0.0 if self._arrived else timeout_s, until)
        with suppress(BlockingIOError):
            os.read(self._reader, 64)


class NotedSignals:
    """Signals that are noted as they come, so that a wait goes on while one is there."""

    def __init__(self, signals: TakesSignals) -> None:
        self._signals = signals
        #: The last one that ever came.
        self.last: int | None = None

    def take(self) -> list[int]:
        """The signals since the last call, or the last pause."""
        arrived = self._signals.take()
        if arrived:
            self.last = arrived[-1]
        return arrived

    def pause(self, timeout_s: float, until: HasDescriptor | None = None) -> None:
        """Wait; return early when a signal comes, or *until* is readable."""
        self.take()
        self._signals.pause(timeout_s, until)
        self.take()


class NoSignals:
    """For callers that keep their signals to themselves: the Python API."""

    def take(self) -> list[int]:
        """None ever."""
        return []

    def pause(self, timeout_s: float, until: HasDescriptor | None = None) -> None:
        """Wait; return early when *until* is readable."""
        _wait(select.poll(), timeout_s, until)


def _wait(poll: select.poll, timeout_s: float, until: HasDescriptor | None) -> None:
    """Poll; what has no descriptor to wait for is looked at again soon."""
    if until is not None and until.fileno() >= 0:
        poll.register(until.fileno(), select.POLLIN)
    elif until is not None:
        timeout_s = min(timeout_s, _LOOK_AGAIN_S)
    if timeout_s < _SHORT_S:  # poll(2) would make it a millisecond
        time.sleep(max(0.0, timeout_s))
    poll.poll(timeout_s * 1000 if timeout_s >= _SHORT_S else 0)


def reached_the_command_too(number: int, pid: int) -> bool:
    """Whether a terminal has sent this signal to our process group, and the command is in it."""
    if number != signal.SIGINT:
        return False
    try:
        if os.getpgid(pid) != os.getpgrp():
            return False
    except ProcessLookupError:
        return False
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
