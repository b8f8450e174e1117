"""Clients that connect all the time, and remember what became of each attempt."""

from __future__ import annotations

import errno
import select
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from netlab.topology import Namespace
from synplug.kernel.namespaces import enter_network

_LONGEST_S = 5.0
_ANSWERS = {0: "connected", errno.ECONNREFUSED: "refused", errno.ECONNRESET: "reset"}
_LOST = ("refused", "reset")


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One connection to *address*. Times are monotonic; *answer* is what connect(2) said.

    "reset": whoever accepted the handshake was closed before the connection was accepted.
    """

    address: str
    began_s: float
    took_s: float
    answer: str

    @property
    def is_answered(self) -> bool:
        """Whether the kernel has answered at all."""
        return self.answer in ("connected", *_LOST)

    @property
    def is_lost(self) -> bool:
        """Whether the answer was no."""
        return self.answer in _LOST


def outages(attempts: Iterable[Attempt], at_once_s: float) -> Iterator[tuple[float, float]]:
    """The spans in which new connections to an address did not work, however they ended.

    Each begins with the first connection that is not answered within *at_once_s*, and ends with the
    answer of the next one that is: of those that wait in a hold, the last ones do not wait longer.
    """
    in_order = sorted(attempts, key=lambda attempt: attempt.began_s)
    for address in {attempt.address for attempt in in_order}:
        since_s: float | None = None
        for attempt in in_order:
            if attempt.address != address:
                continue
            answered_s = attempt.began_s + attempt.took_s
            if attempt.took_s > at_once_s or not attempt.is_answered:
                since_s = attempt.began_s if since_s is None else since_s
            elif since_s is not None:
                yield since_s, answered_s
                since_s = None
        if since_s is not None:
            yield since_s, answered_s


class Clients:
    """Begins a connection every *every_s*, from the client's namespace, within the context."""

    def __init__(
        self, namespace: Namespace, targets: Sequence[tuple[str, int]], every_s: float
    ) -> None:
        self._path = str(namespace.path)
        self._targets = targets
        self._every_s = every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._connect_on, daemon=True)
        self._open: dict[int, tuple[socket.socket, str, float]] = {}
        self._poll = select.poll()
        self._attempts: list[Attempt] = []

    def __enter__(self) -> Clients:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def attempts(self) -> list[Attempt]:
        """All of them; of those that nobody has answered, too. After the context."""
        return sorted(self._attempts, key=lambda attempt: attempt.began_s)

    def _connect_on(self) -> None:
        enter_network(self._path)  # of this thread alone: setns(2)
        next_s = time.monotonic()
        number = 0
        while not self._ended.is_set():
            if time.monotonic() >= next_s:
                next_s = time.monotonic() + self._every_s
                self._begin(self._targets[number % len(self._targets)])
                number += 1
            self._collect(next_s - time.monotonic())
        end_s = time.monotonic() + _LONGEST_S
        while self._open and time.monotonic() < end_s:
            self._collect(0.05)
        for connection, address, began_s in self._open.values():
            self._enter(address, began_s, "no answer")
            connection.close()

    def _begin(self, target: tuple[str, int]) -> None:
        family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
        connection = socket.socket(family, socket.SOCK_STREAM)
        connection.setblocking(False)
        began_s = time.monotonic()
        code = connection.connect_ex(target)
        if code not in (0, errno.EINPROGRESS):
            self._enter(target[0], began_s, errno.errorcode[code])
            connection.close()
            return
        self._open[connection.fileno()] = (connection, target[0], began_s)
        self._poll.register(connection, select.POLLOUT)

    def _collect(self, timeout_s: float) -> None:
        for descriptor, _ in self._poll.poll(max(0.0, timeout_s) * 1000):
            connection, address, began_s = self._open.pop(descriptor)
            self._poll.unregister(descriptor)
            code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            answer = _ANSWERS.get(code, errno.errorcode.get(code, str(code)))
            self._enter(address, began_s, answer)
            connection.close()

    def _enter(self, address: str, began_s: float, answer: str) -> None:
        took_s = time.monotonic() - began_s
        self._attempts.append(
            Attempt(address=address, began_s=began_s, took_s=took_s, answer=answer)
        )
