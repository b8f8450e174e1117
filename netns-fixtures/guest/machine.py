"""Boot a guest, run one command in it, get its exit status; never wait longer than was said."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from guest.errors import BootError
from guest.suites import REPOSITORY, Kernel
from guest.systemd import System

_INIT = Path(__file__).with_name("init.sh")
_INIT_OF_SYSTEMD = Path(__file__).with_name("systemd.sh")
_TAIL_LINES = 40


class Guest:
    """A guest that runs one command, as root and in the repository, within the context.

    It sees the host's files as they are, and writes to tmpfs only, but for `shared`: a folder
    that has the same path on both sides. Its console is in `console`, kernel messages and the
    command's output together. Leaving the context ends whatever still runs of it.

    With a `system` its root is that one's, writable, and systemd is its PID 1; of the host's files
    it sees the repository and `shared`.

    `limit_s` counts from the start; what runs longer is killed, and `runs` says so.
    """

    def __init__(self, kernel: Kernel, *, limit_s: float, system: System | None = None) -> None:
        self.kernel = kernel
        self._system = system
        self._limit_s = limit_s
        self._deadline_s = 0.0
        self._directory = tempfile.TemporaryDirectory(prefix="guest-")
        self.console = Path(self._directory.name, "console")
        self.shared = Path(self._directory.name, "shared")
        self.shared.mkdir()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._directory.cleanup()

    def start(self, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Boot it, to run `argv` with these variables."""
        lines = [
            f"export {name}={shlex.quote(value)}" for name, value in (environment or {}).items()
        ]
        lines.append(f"exec {shlex.join(argv)}")
        (self.shared / "command").write_text("\n".join(lines) + "\n", encoding="utf-8")
        system = self._system
        parameters = (
            *([f"init={_INIT}"] if system is None else _of_systemd(system)),
            f"GUEST_REPOSITORY={REPOSITORY}",
            f"GUEST_MODULES={self.kernel.modules}",
            f"GUEST_SHARED={self.shared}",
        )
        launcher = [sys.executable, "-m", "guest.launch", str(self.kernel.root), str(self.shared)]
        self._deadline_s = time.monotonic() + self._limit_s
        with self.console.open("wb") as console:
            self._process = subprocess.Popen(
                [*launcher, *self.kernel.argv(self.shared, parameters)],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY / "netns-fixtures")},
            )

    def runs(self) -> bool:
        """Whether it does; kills it when its time is over.

        Raises:
            BootError: it was killed just now; with the end of its console.

        """
        assert self._process is not None, "not started"
        if self._process.poll() is not None:
            return False
        if time.monotonic() < self._deadline_s:
            return True
        self.end()
        raise self._failure(f"did not end within {self._limit_s:g} s")

    def status(self) -> int:
        """The exit status of the command, after the guest's end.

        Raises:
            BootError: the command did not end; with the end of the console.

        """
        assert self._process is not None, "not started"
        try:
            return int((self.shared / "status").read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            raise self._failure(f"died (launcher: {self._process.returncode})") from None

    def tail(self) -> str:
        """The last lines of the console."""
        text = self.console.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-_TAIL_LINES:])

    def end(self) -> None:
        """Kill it, by the launcher's pid; with that goes the PID namespace and all in it."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _failure(self, what: str) -> BootError:
        return BootError(
            f"the {self.kernel.release} guest {what}; its console ends:\n{self.tail()}"
        )


def _of_systemd(system: System) -> list[str]:
    """The kernel's parameters for it; /tmp may have the repository, and `shared`, below it."""
    return [
        f"init={_INIT_OF_SYSTEMD}",
        f"GUEST_ROOT={system.root}",
        f"GUEST_SYNPLUG={system.synplug}",
        *("systemd.mask=tmp.mount", "systemd.condition_needs_update=no", "systemd.show_status=no"),
    ]
