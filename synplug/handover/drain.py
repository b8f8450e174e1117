"""Wait until the old listener can close without anybody losing anything.

Once SYNs are held, nothing new comes to the old listener: its accept queues and request sockets
(SYN_RECV) can only become fewer, and established connections only finish what they are at.

Who is still at something, a walk through all the kernel's connections tells. Where the backend
can observe who comes meanwhile, that is done before the hold, and costs nobody a wait
(docs/adr/0014-look-before-the-hold.md).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from synplug.errors import DrainError
from synplug.handover.plan import DrainPlan
from synplug.handover.tools import Observer, SocketTable
from synplug.kernel.sock_diag import Connection
from synplug.model import Endpoint, Listener, OnDrainTimeout
from synplug.steps import DrainResult

POLL_S = 0.001
_RECENT_MS, _SILENT_MS = 100, 500
#: So many connections are looked up one by one, or more where a walk through all is dearer.
_FEW = 64
_LOOK_UP_S = 0.00003
_FRESH_S = _RECENT_MS / 1000
#: So long after the rule is in force a SYN that had passed before has its request socket: both
#: happen in one softirq (``net/ipv4/tcp_ipv4.c``, tcp_v4_rcv). One that our verdict lets pass has
#: it as soon as that is given (``net/netfilter/nf_queue.c``, nf_reinject).
_ON_ITS_WAY_S = 0.001


def is_busy(connection: Connection) -> bool:
    """Whether somebody waits for something on this connection.

    Unread or unacknowledged bytes; data within the last 100 ms; the peer spoke last; or nobody has
    spoken yet, for half a second. A first request that was lost on its way is sent again after a
    round trip and 200 ms at the earliest (``include/net/tcp.h``, TCP_RTO_MIN).

    The kernel's times have the resolution of a jiffy and start equal, so on a tie the byte counters
    decide: data came, and none of ours was acknowledged (tcpi_bytes_acked counts the SYN).
    """
    if connection.unread_bytes or connection.unsent_bytes or not connection.accepted:
        return True
    received, sent = connection.since_received_ms, connection.since_sent_ms
    if min(received, sent) < _RECENT_MS or received < sent:
        return True
    is_unanswered = received == sent and connection.acked_bytes <= 1
    return is_unanswered and (connection.received_bytes > 0 or received < _SILENT_MS)


class Unfinished:
    """The connections of an old listener that would lose something if it closed now.

    The kernel's table of connections has no index by port. It is walked once: while SYNs are held
    nothing is added to it, so from then on the few that had something to finish are looked up.

    :param established: whether they count besides handshakes.
    """

    def __init__(
        self,
        sockets: SocketTable,
        endpoints: Collection[Endpoint],
        *,
        established: bool,
        clock: Callable[[], float],
    ) -> None:
        self._sockets = sockets
        self._endpoints = endpoints
        self._established = established
        self._clock = clock
        self._walked_at_s = float("-inf")
        self._walk_took_s = 0.0
        self._has_all = False
        #: As of the last look; handshakes, too.
        self.found: list[Connection] = []
        #: Whether the last look was a walk.
        self.was_walk = False

    def look(self) -> None:
        """See what has become of them; of all, where there was nobody to look up."""
        nobody = self._has_all and not self.found
        self._has_all = False
        self.was_walk = not self.is_few and not nobody
        if self.was_walk:
            self.walk()
        elif self.found:
            self._enter(self._sockets.again(self.found))

    def walk(self) -> None:
        """See all that there are."""
        began_s = self._clock()
        self._enter(self._sockets.inbound(self._endpoints, established=self._established))
        self._walked_at_s = self._clock()
        self._walk_took_s = self._walked_at_s - began_s

    def _enter(self, seen: Iterable[Connection]) -> None:
        self.found = [connection for connection in seen if is_busy(connection)]

    def catch_up(self, begun: Iterable[Connection]) -> None:
        """Count those of these, too, that are not finished by now; nobody waits for it."""
        self.found += [one for one in self._sockets.again(begun) if is_busy(one)]

    def add(self, begun: Iterable[Connection]) -> None:
        """These, and those of the last walk and since, are all that there can be."""
        self.found += begun
        self._has_all = True

    def keep(self, inodes: Collection[int]) -> None:
        """Count these sockets only."""
        self.found = [connection for connection in self.found if connection.inode in inodes]

    @property
    def is_few(self) -> bool:
        """Whether the next look is no walk."""
        return 0 < len(self.found) <= max(_FEW, self._walk_took_s / _LOOK_UP_S)

    @property
    def is_old(self) -> bool:
        """Whether a connection that was idle at the last walk may long be busy again."""
        return self._clock() - self._walked_at_s > _FRESH_S

    @property
    def handshakes(self) -> int:
        """How many are in SYN_RECV."""
        return sum(connection.is_handshake for connection in self.found)

    @property
    def busy(self) -> int:
        """How many are established."""
        return len(self.found) - self.handshakes


class Drain:
    """The wait, as an object that can be asked again and again.

    :param mine: the inodes of the sockets whose requests count, where somebody else answers on
        the same ports, too; without it all do.
    :param pause: waits so many seconds.
    """

    def __init__(
        self,
        *,
        plan: DrainPlan,
        endpoints: tuple[Endpoint, ...],
        old: Collection[Listener],
        sockets: SocketTable,
        clock: Callable[[], float],
        pause: Callable[[float], None],
        mine: Callable[[], Collection[int]] | None = None,
    ) -> None:
        self._mine = mine
        self._plan = plan
        self._endpoints = endpoints
        self._served = [
            endpoint for endpoint in endpoints if any(own.serves(endpoint) for own in old)
        ]
        self._cookies = {listener.cookie for listener in old}
        self._sockets = sockets
        self._clock = clock
        self._pause = pause
        self._unfinished = Unfinished(
            sockets, self._served, established=bool(plan.quiesce_s), clock=clock
        )
        self._observer: Observer | None = None

    def look_ahead(self, hold: Observer) -> None:
        """Before the hold: see who has something to finish, while new connections still pass.

        :param hold: notes who begins to connect from here on, if its backend can.
        """
        if self._cookies and hold.observe():
            self._observer = hold
            self._pause(_ON_ITS_WAY_S)
            self._unfinished.walk()
            if begun := hold.begun():  # where not all are known, nor are they when it holds
                self._pause(_ON_ITS_WAY_S)  # another's netfilter queue may stand behind ours
                self._unfinished.catch_up(begun)

    def wait(self, stopped: Callable[[], bool]) -> DrainResult:
        """Wait for empty queues, then for quiet connections, each within its own time.

        A look that costs much is followed by a longer pause, so that looking takes no more than
        a fifth of a processor from the service that is to finish; unless the next one is cheap.

        :param stopped: says that the wait has lost its point.
        """
        if not self._cookies:
            return DrainResult()
        begun = self._observer.observed if self._observer is not None else None
        if begun is not None:
            self._unfinished.add(begun)
        else:
            self._unfinished.found = []
            self._pause(min(_ON_ITS_WAY_S, self._plan.timeout_s))
        left = self._until(self._unaccepted, self._plan.timeout_s, stopped)
        busy = 0
        aborts = bool(left) and self._plan.on_timeout is OnDrainTimeout.ABORT
        is_open = left or self._unfinished.found or self._unfinished.is_old
        if self._plan.quiesce_s and not aborts and is_open:
            busy = self._until(self._busy, self._plan.quiesce_s, stopped)
        return DrainResult(empty=not left, left=left, quiet=not busy, busy=busy)

    def _until(self, count: Callable[[], int], limit_s: float, stopped: Callable[[], bool]) -> int:
        """Wait until *count* is 0; returns what it was at the end."""
        deadline_s = self._clock() + limit_s
        while True:
            began_s = self._clock()
            found = count()
            now_s = self._clock()
            if not found or now_s >= deadline_s or stopped():
                return found
            is_next_cheap = self._unfinished.was_walk and self._unfinished.is_few
            pause_s = POLL_S if is_next_cheap else max(POLL_S, 4 * (now_s - began_s))
            self._pause(min(pause_s, deadline_s - now_s))

    def _unaccepted(self) -> int:
        """Connections that would die with the old listeners; looks no further than it must.

        The queues are the last that it looks at: a handshake that has just completed is there.
        """
        if queued := self._queued():
            return queued
        self._unfinished.look()
        return self._unfinished.handshakes or self._queued()

    def _queued(self) -> int:
        return sum(
            listener.accept_queue
            for listener in self._sockets.listeners(self._endpoints)
            if listener.cookie in self._cookies
        )

    def _busy(self) -> int:
        """Connections that somebody waits on; all that were in a queue have come to a process."""
        self._look_at_mine()
        if not self._unfinished.found and self._unfinished.is_old:
            self._look_at_mine()
        return self._unfinished.busy

    def _look_at_mine(self) -> None:
        self._unfinished.look()
        if self._mine is not None:
            self._unfinished.keep(self._mine())


def ended_too_early() -> DrainError:
    """The error of a hold that did not last until the queues were empty."""
    return DrainError(
        "the hold ended before the old listener had run empty",
        remedy="raise --max-hold, or lower --drain-timeout and --quiesce",
    )
