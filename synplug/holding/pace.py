"""How fast to let go: never more than the listeners have room for.

A burst larger than the new listener's backlog overflows its accept queue: the kernel drops the
rest, and their clients wait a second or more (docs/adr/0005-paced-release.md).
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

from synplug.holding.debt import Debt
from synplug.holding.room import (
    Apart,
    Part,
    Room,
    Rooms,
    Stuck,
    opening,
    queued,
    room_beside,
    room_of,
)
from synplug.holding.waiting import Lane
from synplug.model import Endpoint, Listener, ReleaseMode

#: Newcomers that outpace a service for so long are debt.
_DEBT_WINDOW_S = 0.5
#: The same where not even a third of what waits has gone by then: by so much it must be surer.
_LONG_DEBT_WINDOW_S = 1.25
#: Who has let nobody in for so long stands still, for a while.
_STANDSTILL_S = 0.25
#: Round trips are shorter; a SYN-ACK that got lost is sent again after a second.
_HANDSHAKE_WINDOW_S = 1.5
#: The pace where nobody tells how far the listener is: what any backlog in use takes, and what
#: most services accept (docs/containers.md).
_BLIND_STEP, _BLIND_EVERY_S = 64, 0.01
_SYN_BACKLOG = "by net.ipv4.tcp_max_syn_backlog, since SYN cookies are off"
_STUCK = "; a listener that accepts nothing was left out"
_HANDSHAKES = ", filled by handshakes that wait for their clients"


class Pacer:
    """Decides how many may go next, for each port by itself.

    Where an endpoint of a port accepts little, while another one does not, for each by itself.

    :param clock: monotonic seconds.
    :param divide: tells who counts what waits that these endpoints of a port are lanes now.
    :param somaxconn: reads the kernel's limit of a backlog; 0: not known.
    :param syn_limit: how many request sockets a listener may have, where that is not its backlog.
    :param is_blind: the listeners cannot be seen; steps of 64 go, one every 10 ms.
    """

    def __init__(
        self,
        *,
        endpoints: tuple[Endpoint, ...],
        mode: ReleaseMode,
        rooms: Rooms,
        clock: Callable[[], float],
        divide: Callable[[int, Collection[Endpoint]], None],
        somaxconn: Callable[[], int] = lambda: 0,
        syn_limit: int = 0,
        is_blind: bool = False,
    ) -> None:
        self._mode = mode
        self._divide = divide
        self._divided: set[int] = set()
        make = _BlindLanePacer if is_blind else _LanePacer
        self._lanes: dict[Lane, _LanePacer] = {}
        for port in sorted({endpoint.port for endpoint in endpoints}):
            wanted = tuple(endpoint for endpoint in endpoints if endpoint.port == port)
            self._lanes[port] = make(wanted, rooms, clock, somaxconn, syn_limit)
        self.steps = 0

    @property
    def limit(self) -> str:
        """What bounded the pace, for the report; empty when everything fitted at once."""
        limits = {lane: pacer.limit for lane, pacer in self._lanes.items() if pacer.limit}
        if len(self._lanes) == 1:
            return "".join(limits.values())
        return ", ".join(
            f"port {lane}: {limit}" if isinstance(lane, int) else f"{lane}: {limit}"
            for lane, limit in limits.items()
        )

    def step(self, waiting: Mapping[Lane, int]) -> dict[Lane, int] | None:
        """How many of those *waiting* may go now, by lane; None: open, there is nothing to pace.

        Lane 0 stands for those whose port could not be read.
        A lane whose SYNs all fit does not wait for another's: they go, and whoever comes queues
        up and goes at the next step.
        """
        if self._mode is ReleaseMode.BURST:
            return None
        steps = {lane: pacer.step(waiting.get(lane, 0)) for lane, pacer in self._lanes.items()}
        if all(step.fits for step in steps.values()):
            return None
        released = {lane: step.released for lane, step in steps.items()}
        for lane, step in steps.items():
            if isinstance(lane, int) and not step.fits and self._divide_where_apart(lane):
                released[lane] = 0
        released[0] = waiting.get(0, 0)  # few, and nobody knows whose
        if any(released.values()):
            self.steps += 1
        return released

    def _divide_where_apart(self, port: int) -> bool:
        """Whether each of its endpoints has a pace of its own from the next step on."""
        whole = self._lanes[port]
        apart = whole.apart
        if not apart or port in self._divided:
            return False
        self._divided.add(port)
        self._divide(port, apart)
        self._lanes |= {one: whole.narrowed(one, apart) for one in apart}
        self._lanes[port] = whole.narrowed(None, apart)
        self._lanes[port].limit = whole.limit
        return True


def at_once(
    endpoints: Iterable[Endpoint], listeners: Collection[Listener], *, syn_limit: int = 0
) -> dict[int, int]:
    """How many may wait for each port and all go at once; what it would be for a first step.

    :param listeners: as they were seen just now.
    """
    wanted = list(endpoints)
    found = {}
    for port in sorted({endpoint.port for endpoint in wanted}):
        mine = [one for one in listeners if one.port == port and any(map(one.serves, wanted))]
        room = room_beside(mine, queued(mine), syn_limit) if mine else Room(free=0, total=0)
        found[port] = opening(room, has_queued=False)
    return found


class _Step(NamedTuple):
    """How many of a lane may go now. *fits*: nothing would be gained by pacing it any more."""

    released: int
    fits: bool


class _LanePacer:
    """Decides for one lane.

    *limit* as :attr:`Pacer.limit`. *apart*: its endpoints that have an address, if one of all
    has had little room for long while another one has.
    """

    def __init__(
        self,
        endpoints: tuple[Endpoint, ...],
        rooms: Rooms,
        clock: Callable[[], float],
        somaxconn: Callable[[], int],
        syn_limit: int,
    ) -> None:
        self._endpoints = endpoints
        self._rooms = rooms
        self._clock = clock
        self._somaxconn = somaxconn
        self._syn_limit = syn_limit
        self._stuck = Stuck()
        self._apart = Apart()
        self._backlog = 0
        self._debt = Debt(clock())
        self._occupied = 0  # at the most: in a queue when it was counted, or let go since
        self._has_begun = False
        self._has_queued = False
        self._kept_at_s = clock()  # somebody, for want of room
        self._released_at_s = float("-inf")
        self._awaits_clients = False
        self._are_far = False  # the clients: their handshakes have filled the room
        self._has_given_up = False
        self.limit = ""
        self.apart: tuple[Endpoint, ...] = ()

    def narrowed(self, own: Endpoint | None, parts: Collection[Endpoint]) -> "_LanePacer":
        """One that knows as much, for a part; *own* and *parts* as for :class:`Part`."""
        one = type(self).__new__(type(self))
        vars(one).update(vars(self))  # as copy(), which is a millisecond of each start to import
        one._rooms = Part(self._rooms, own, parts)  # noqa: SLF001 -- it is of this class
        one._stuck = self._stuck.copy()  # noqa: SLF001
        one._debt = Debt(self._clock())  # noqa: SLF001
        one.limit = ""
        return one

    def step(self, waiting: int) -> _Step:
        """How many of the *waiting* may go now.

        After the opening nobody counts, so half of the room is left to those who come then.
        """
        reason = self._why_give_up(waiting)
        if reason:
            self.limit += f"; opened at once, since {reason}"
            self._has_given_up = True
        room = None if self._has_given_up else self._look(waiting)
        if room is None:  # nothing to wait for
            return _Step(waiting, fits=True)
        if self._may_open(room, waiting) or self._goes_by_itself(room, waiting):
            return _Step(waiting, fits=True)
        awaited_clients, self._awaits_clients = self._awaits_clients, room.awaits_clients
        self._are_far |= room.awaits_clients
        self._note_limit()
        released = min(waiting, room.free)
        if released < waiting:
            self._has_queued, self._kept_at_s = True, self._clock()
        if released:
            self._note(released, waiting, stood_still=not awaited_clients)
        return _Step(released, fits=False)

    def _may_open(self, room: Room, waiting: int) -> bool:
        return waiting <= opening(room, has_queued=self._has_queued)

    def _goes_by_itself(self, room: Room, waiting: int) -> bool:
        """Whether all who came have gone at once for a while: what fills the room, stays in it."""
        return waiting <= room.free > 0 and self._clock() - self._kept_at_s > _HANDSHAKE_WINDOW_S

    def _note(self, released: int, waiting: int, *, stood_still: bool) -> None:
        """So many of the *waiting* go now.

        :param stood_still: if nobody went for a while, it was the service that let nobody in.
        """
        now = self._clock()
        stood_still &= now - self._released_at_s >= _STANDSTILL_S
        self._debt.note(released, waiting, now, begins_anew=stood_still or released == waiting)
        self._has_begun = True
        self._occupied += released
        self._released_at_s = now

    def _look(self, waiting: int) -> Room | None:
        """The room that there is now, or less; None: nobody listens.

        To count the request sockets takes a walk through all the kernel's connections, so that is
        done only where what we have let go ourselves leaves too little room to go on, and there is
        some by the accept queues.
        """
        listeners = self._accepting()
        if not listeners:
            return None
        if not self._has_begun:
            self._occupied = queued(listeners)
        room = room_beside(listeners, self._occupied, self._syn_limit)
        by_queues = room_of(listeners, 0, syn_limit=self._syn_limit).free
        if self._has_begun and by_queues and not self._suffices(room, waiting):
            # A handshake that completes in between counts twice; in the other order, not at all.
            # Those of its other addresses are in the same queue.
            served = dict.fromkeys(listener.endpoint() for listener in listeners)
            requests = self._rooms.request_sockets(served)
            listeners = self._accepting() or listeners
            self._occupied = requests + queued(listeners)
            room = room_of(listeners, requests, syn_limit=self._syn_limit)
        self._backlog = room.backlog
        return room

    def _accepting(self) -> list[Listener]:
        listeners, now = self._rooms.listeners(self._endpoints), self._clock()
        found = dict.fromkeys(one.endpoint() for one in listeners)
        if self._apart.is_found(listeners, now, syn_limit=self._syn_limit):
            self.apart = tuple(one for one in found if one.address is not None)
        else:
            self.apart = ()
        return self._stuck.left_out(listeners, now, syn_limit=self._syn_limit)

    def _suffices(self, room: Room, waiting: int) -> bool:
        """Whether more room would change nothing now."""
        return 0 < waiting <= room.free or self._may_open(room, waiting)

    def _note_limit(self) -> None:
        backlog = self._backlog
        if not self.limit and 0 < self._syn_limit < backlog:
            self.limit = f"{self._syn_limit} handshakes, {_SYN_BACKLOG}"
        elif not self.limit:
            self.limit = f"backlog of {backlog}"
            if backlog == self._somaxconn():
                self.limit += ", which is net.core.somaxconn"
        if self._awaits_clients and _HANDSHAKES not in self.limit:
            self.limit += _HANDSHAKES
        if self._stuck.number and _STUCK not in self.limit:
            self.limit += _STUCK

    def _why_give_up(self, waiting: int) -> str:
        """Why to pace no longer: what waits becomes no less while the service goes on.

        The time in which a service stands still does not count: those who come meanwhile are no
        sign that it is slower than they come, and what waits then is what it begins with. Nor is
        there any debt where whoever comes goes at once.

        A flood of SYNs with forged sources leaves handshakes that nobody completes: they fill
        the room for a minute, and a client that is there completes its own within a round trip.
        """
        now = self._clock()
        goes_on = now - self._released_at_s < _STANDSTILL_S
        self._debt.look(waiting, now, goes_on=goes_on)
        if self._has_given_up:
            return ""
        came_on_at_s = max(self._debt.began_at_s, self._released_at_s)
        if self._awaits_clients and now - came_on_at_s > _HANDSHAKE_WINDOW_S:
            return "clients did not complete their handshakes"
        # Far away all goes by the round trip; and who sends a SYN again meanwhile waits once more.
        least_s = _HANDSHAKE_WINDOW_S if self._are_far else _DEBT_WINDOW_S
        is_debt = goes_on and self._debt.is_found(waiting, least_s, _LONG_DEBT_WINDOW_S)
        return "newcomers outpaced the service" if is_debt else ""


class _BlindLanePacer(_LanePacer):
    """For a listener that cannot be seen: a step that fits, and then a pause."""

    def _look(self, waiting: int) -> Room:  # noqa: ARG002
        is_due = self._clock() - self._released_at_s >= _BLIND_EVERY_S
        return Room(free=_BLIND_STEP if is_due else 0, total=_BLIND_STEP)

    def _note_limit(self) -> None:
        if not self.limit:
            every_ms = round(_BLIND_EVERY_S * 1000)
            self.limit = f"{_BLIND_STEP} every {every_ms} ms, since the listener cannot be seen"
