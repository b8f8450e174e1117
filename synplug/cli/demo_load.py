"""What the demo restarts, and who connects to it meanwhile."""

from __future__ import annotations

import errno
import selectors
import socket
import threading
import time
from dataclasses import dataclass, field

from synplug.record import Record

#: A server as simple as they come; it answers each connection and closes it.
SERVER = """
import os, socket, sys, time
time.sleep(float(sys.argv[3]))
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=512)
with open(sys.argv[2] + ".new", "w") as file:
    file.write(str(os.getpid()))
os.rename(sys.argv[2] + ".new", sys.argv[2])
while True:
    client, _ = listener.accept()
    try:
        client.recv(64)
        client.sendall(b"ok")
    except OSError:
        pass
    client.close()
"""
#: Ends the server that the pidfile names, and starts another one behind its back.
RESTART = """
import os, signal, subprocess, sys, time
try:
    pid = int(open(sys.argv[3]).read())
    os.unlink(sys.argv[3])
    os.kill(pid, signal.SIGTERM)
except (OSError, ValueError):
    pid = 0
def ends(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True
while pid and not ends(pid):
    time.sleep(0.002)
subprocess.Popen([sys.executable, "-c", sys.argv[1], *sys.argv[2:]], start_new_session=True,
                 stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
while not os.path.exists(sys.argv[3]):
    time.sleep(0.002)
"""
_TIMEOUT_S = 5.0


class Attempt(Record):
    """A connection: when it was begun, from the load's start, and how it went.

    :param took_s: until it was established, or had failed.
    :param failure: why it failed; empty: it was answered.
    """

    at_s: float
    took_s: float
    failure: str = ""


@dataclass(kw_only=True, slots=True)
class _Connection:
    """One under way."""

    socket: socket.socket
    at_s: float
    took_s: float | None = None
    answer: bytes = b""


@dataclass(kw_only=True)
class Load:
    """New connections at a rate, whether earlier ones have been answered or not.

    :param rate_per_s: so many a second.
    """

    port: int
    rate_per_s: float
    attempts: list[Attempt] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._open: set[int] = set()
        self._is_over = threading.Event()
        self._start_s = 0.0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._start_s = time.monotonic()
        self._thread.start()

    def stop(self) -> list[Attempt]:
        """Begin no more, and see those under way to their ends."""
        self._is_over.set()
        self._thread.join()
        self._selector.close()
        return self.attempts

    def now_s(self) -> float:
        """Seconds from the start."""
        return time.monotonic() - self._start_s

    def _run(self) -> None:
        number = 0
        while not self._is_over.is_set() or self._open:
            now_s = self.now_s()
            while not self._is_over.is_set() and number / self.rate_per_s <= now_s:
                self._begin()
                number += 1
            wait_s = max(0.0, number / self.rate_per_s - now_s)
            for key, _ in self._selector.select(min(wait_s, 0.01)):
                self._go_on(key.data)
            self._give_up_on_the_slow()

    def _begin(self) -> None:
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        connection = _Connection(socket=made, at_s=self.now_s())
        code = made.connect_ex(("127.0.0.1", self.port))
        self._open.add(made.fileno())
        if code in (0, errno.EINPROGRESS):
            self._selector.register(made, selectors.EVENT_WRITE, connection)
        else:
            self._end(connection, errno.errorcode.get(code, str(code)), registered=False)

    def _go_on(self, connection: _Connection) -> None:
        """It is established, or an answer has come, or its end."""
        try:
            if connection.took_s is None:
                code = connection.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                connection.took_s = self.now_s() - connection.at_s
                if code:
                    self._end(connection, errno.errorcode.get(code, str(code)))
                    return
                connection.socket.send(b"hello")
                self._selector.modify(connection.socket, selectors.EVENT_READ, connection)
                return
            words = connection.socket.recv(64)
        except OSError as error:
            self._end(connection, errno.errorcode.get(error.errno or 0, "error"))
            return
        connection.answer += words
        if not words:
            self._end(connection, "" if connection.answer == b"ok" else "closed early")

    def _give_up_on_the_slow(self) -> None:
        limit_s = self.now_s() - _TIMEOUT_S
        for key in list(self._selector.get_map().values()):
            if key.data.at_s < limit_s:
                self._end(key.data, "timed out")

    def _end(self, connection: _Connection, failure: str, *, registered: bool = True) -> None:
        if registered:
            self._selector.unregister(connection.socket)
        self._open.discard(connection.socket.fileno())
        connection.socket.close()
        took_s = connection.took_s
        if took_s is None:
            took_s = self.now_s() - connection.at_s
        self.attempts.append(Attempt(at_s=connection.at_s, took_s=took_s, failure=failure))
