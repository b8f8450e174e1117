"""A supervisor of the small server, the manager that it reports to, and what it starts."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from netlab.program import Program, wait_until
from netlab.topology import ClientServer
from tests.integration import shell
from tests.integration.conftest import SERVER


class Manager:
    """A service manager's end of NOTIFY_SOCKET, which writes down what it is told."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        #: Every message so far, as its fields.
        self.heard: list[dict[str, str]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while data := self._socket.recv(4096).decode():
            self.heard.append(dict(line.split("=", 1) for line in data.splitlines()))

    def close(self) -> None:
        """Hear no more."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"", str(self.path))
        self._reader.join()
        self._socket.close()

    def states(self) -> list[str]:
        """The messages but the signs of life, by their first field."""
        return [next(iter(one)) for one in self.heard if "WATCHDOG" not in one]


@dataclass
class Supervised:
    """A supervisor of the small server, which a script on disk starts."""

    lab: ClientServer
    directory: Path
    manager: Manager
    program: Program = field(init=False)

    @property
    def script(self) -> Path:
        return self.directory / "serve"

    def serve_with(self, line: str) -> None:
        """What the next generation does: *line* in a shell, with its number in $1."""
        draft = self.directory / "serve.new"
        draft.write_text(f"{line}\n")
        draft.rename(self.script)

    def serve(self, port: int = 8080) -> None:
        """The next generation is a good one."""
        pidfile = f"{self.directory}/pid-$1"
        self.serve_with(
            f"exec {sys.executable} {SERVER} {port} --reuseport --pidfile {pidfile} --think 0.005"
        )

    def good_script(self) -> Path:
        """A script that serves, to be run by another one."""
        good = self.directory / "good"
        good.write_bytes(self.script.read_bytes())
        return good

    def start(
        self,
        *options: str,
        before: Sequence[str] = (),
        synplug: Sequence[str] = shell.SYNPLUG,
    ) -> Program:
        """Start it, with these options, and *before* in front of the command."""
        command = [*before, "sh", str(self.script), "{generation}"]
        return self.start_with([*options, "--", *command], synplug=synplug)

    def start_with(self, words: Sequence[str], synplug: Sequence[str] = shell.SYNPLUG) -> Program:
        """Start it with these options and this command."""
        argv = [*synplug, "supervise", "--name", "app", "-v", *words]
        environment = {
            **os.environ,
            "NOTIFY_SOCKET": str(self.manager.path),
            "WATCHDOG_USEC": "1000000",
        }
        self.program = Program(
            self.lab.server, argv, env=environment, ready=lambda: "READY" in self.manager.states()
        )
        return self.program

    def reload(self) -> shell.Outcome:
        return shell.run(self.lab.server, "reload", "app")

    def pid(self, generation: int) -> int:
        """Its pid, which it writes a moment after it listens."""
        pidfile = self.directory / f"pid-{generation}"
        wait_until(pidfile.exists, 5, f"generation {generation} has written its pid")
        return int(pidfile.read_text())

    def generations(self) -> set[int]:
        """The servers that live in the namespace."""
        names = {str(SERVER).encode(), b"sleep"}
        return {pid for pid, words in self.words().items() if names & set(words)}

    def words(self) -> dict[int, list[bytes]]:
        """The arguments of the processes that live in the namespace; one may end meanwhile."""
        found = {}
        for pid in self.lab.server.pids():
            with suppress(OSError):
                found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return found

    def descriptors(self) -> int:
        """How many the supervisor has open at rest.

        The fewest of some looks: each message to the manager opens a socket for a moment, the one
        of READY too, which may be open yet when that has been read.
        """
        looks = []
        for _ in range(20):
            looks.append(len(os.listdir(f"/proc/{self.program.pid}/fd")))
            time.sleep(0.01)
        return min(looks)

    def zombies(self) -> list[int]:
        """Children of the supervisor that nobody has collected."""
        children = Path(f"/proc/{self.program.pid}/task/{self.program.pid}/children").read_text()
        states = {pid: Path(f"/proc/{pid}/stat").read_text() for pid in map(int, children.split())}
        return [pid for pid, stat in states.items() if stat.rpartition(")")[2].split()[0] == "Z"]


@contextmanager
def supervised(lab: ClientServer, directory: Path) -> Iterator[Supervised]:
    """One to start; at the end no generation may be left."""
    made = Supervised(lab=lab, directory=directory, manager=Manager(directory / "notify"))
    made.serve()
    yield made
    made.manager.close()
    assert not made.generations(), "a generation was orphaned"
