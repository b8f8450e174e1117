"""rtnetlink(7) through pyroute2: its errors become ours, and a dump is whole.

Importing pyroute2 takes a third of a second, so only what uses this does it.
"""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from synplug.errors import KernelError, PrivilegeError, UnsupportedError

_REMEDY = "load the modules sch_plug, ifb, act_mirred and cls_flower; or use another backend"
#: The kernel's mark on a dump of something that changed meanwhile (netlink(7)); pyroute2 defines
#: it, and does not look.
_NLM_F_DUMP_INTR = 0x10
#: Before 0.9 pyroute2 raised an error for it, of that number (``netlink/exceptions.py``).
_DUMP_INTERRUPTED = -1
_DUMP_TRIES, _DUMP_LIMIT_S = 10, 0.2


def load_library() -> None:
    """Import pyroute2, if it is not yet.

    :raises UnsupportedError: it is not installed.
    """
    try:
        import pyroute2  # noqa: F401
    except ImportError as error:
        raise UnsupportedError(
            "pyroute2 is not installed",
            remedy="install it beside synplug (pipx inject synplug pyroute2, or pip)",
        ) from error


@contextmanager
def refused(action: str) -> Iterator[None]:
    """Turn pyroute2's errors into ours."""
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        yield
    except NetlinkError as error:
        if error.code == errno.EPERM:
            raise PrivilegeError(f"{action}: not permitted", capability="CAP_NET_ADMIN") from error
        if error.code in (errno.EOPNOTSUPP, errno.ENOENT) and action.startswith("make"):
            raise UnsupportedError(f"{action}: this kernel cannot", remedy=_REMEDY) from error
        raise KernelError(action, error.code or 0) from error
    except OSError as error:
        raise KernelError(action, error.errno or 0) from error


def _see_room_for_an_event_loop() -> None:
    """Fail at what pyroute2's would: when one is left half made, Python prints more than the error.

    Source: CPython's ``asyncio/selector_events.py`` (an epoll and a pair of sockets) and
    ``BaseEventLoop.__del__``.
    """
    one, other = socket.socketpair()
    with one, other, select.epoll():
        pass


class RouteSocket:
    """A routing socket of pyroute2's, opened when it is needed."""

    def __init__(self) -> None:
        self._opened: Any = None

    @contextmanager
    def asked(self, action: str) -> Iterator[Any]:
        """The socket; what is refused there is our error.

        One that could not be read once refuses everything from then on (pyroute2's
        ``netlink/core.py``, error_received), its own end too: then the next one is a new one.
        """
        from pyroute2 import IPRoute

        with refused(action):
            if self._opened is None:
                _see_room_for_an_event_loop()
                self._opened = IPRoute()
            try:
                yield self._opened
            except OSError:
                self.close()
                raise

    def dump(self, action: str, ask: Callable[[Any], Iterable[Any]]) -> list[Any]:
        """What *ask* gets from the socket: asked for anew while the kernel marks it as incomplete.

        :raises KernelError: what the kernel answered; EINTR: every answer was marked.
        """
        give_up_s = time.monotonic() + _DUMP_LIMIT_S
        for _ in range(_DUMP_TRIES):
            try:
                with self.asked(action) as route:
                    found = list(ask(route))
            except KernelError as error:
                if error.errno != _DUMP_INTERRUPTED:
                    raise
            else:
                if not any(one["header"]["flags"] & _NLM_F_DUMP_INTR for one in found):
                    return found
            if time.monotonic() > give_up_s:
                break
        raise KernelError(action, errno.EINTR, detail="changed meanwhile, each time")

    def link(self, action: str, **key: object) -> Any:
        """The device that is named by its ``index`` or ``ifname``; None: there is none."""
        with self.asked(action) as route:
            from pyroute2.netlink.exceptions import NetlinkError

            try:
                (found,) = route.link("get", **key)
            except NetlinkError as error:
                if error.code != errno.ENODEV:
                    raise
                return None
        return found

    def close(self) -> None:
        """Close it, if it is open."""
        route, self._opened = self._opened, None
        if route is not None:
            with suppress(OSError):
                route.close()
