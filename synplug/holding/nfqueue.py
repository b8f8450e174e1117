"""Holding with nfnetlink_queue: SYNs wait in the kernel until their verdict.

What sends them there is a *gate*: nftables (:class:`NftGate`) or legacy iptables
(:mod:`synplug.holding.iptables_gate`). This module keeps account of what waits.

A client retransmits its SYN while it waits. Then the copy that waited is dropped, and the new
one takes its place in the order. Keeping the newer one costs nothing, and is what survives a
foreign flush of the namespace's queues: the place in the order may be all that is left of the
older one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from synplug.errors import LockError, OverrunError, ReleaseError, SynplugError
from synplug.holding.base import Backend
from synplug.holding.gates import Gate
from synplug.holding.observation import LIMIT, Observation
from synplug.holding.queue_plan import queue_plan
from synplug.holding.remarks import foreign_remark, restored_remark
from synplug.holding.sources import Sources
from synplug.holding.waiting import Lane, Place, WaitingSyns, nothing_yet, unreadable
from synplug.kernel.namespaces import wait_for_packets_in_flight
from synplug.kernel.nfqueue import LOOPBACK, NF_ACCEPT, NF_DROP, Notice, PacketQueues, queue_states
from synplug.model import Endpoint, Flow, HoldCounts, HoldSpec, Hook, OnFull

_NOTICES_PER_TURN = 4096
_SETTLE_ROUNDS = 200
_ROOM_FOR_REFUSED = 4096
_LOCK_POLL_S = 0.002
#: The kernel sends a packet's notice before it counts the packet, within one locked section.
_LOOKS_AT_A_LOSS = 3


class QueueBackend(Backend):
    """SYNs wait in netfilter queues behind a gate."""

    def __init__(self, spec: HoldSpec, gate: Gate) -> None:
        self.name = gate.name
        self.capabilities = gate.capabilities
        self.outlives_its_keeper = gate.outlives_its_keeper
        self.patience_s = gate.patience_s
        self.flushes_queues = gate.flushes_queues
        self._spec = spec
        self._gate = gate
        # What passes unseen, or is dropped, because a short queue is full, cannot be waited for.
        self.can_observe = spec.max_held_packets >= LIMIT
        self._queues: PacketQueues | None = None
        self._held = WaitingSyns(endpoint.port for endpoint in spec.endpoints)
        self._passing: set[Flow] = set()
        self._observation: Observation | None = None
        self._is_holding = False
        self._sources = Sources(spec.max_held_per_source)
        self._count = nothing_yet()
        self._foreign = 0  # packets that are no SYNs, or go elsewhere
        self._restored = 0
        self._standing: tuple[str, ...] = ()  # why the rule does, though nothing is held any more
        self._has_local_come = False
        self._refused = 0  # beyond the limit of all; where queues are as long as that, none
        self._peak = 0
        self._open = False
        self._final: HoldCounts | None = None

    @property
    def remarks(self) -> tuple[str, ...]:
        return restored_remark(self._restored) + foreign_remark(self._foreign) + self._standing

    def traces(self) -> dict[str, str]:
        numbers = self._queues.numbers if self._queues else ()
        return self._gate.traces() | ({"queues": " ".join(map(str, numbers))} if numbers else {})

    def load_libraries(self) -> None:
        self._gate.load_libraries()

    def arm(self) -> None:
        length_wanted = self._spec.max_held_packets
        if self._spec.max_held_per_source:  # what is refused passes through the queue, too
            length_wanted += _ROOM_FOR_REFUSED
        count, length = queue_plan(length_wanted)
        self._queues = PacketQueues(
            count=count, length_packets=length, fail_open=self._spec.on_full is OnFull.PASS
        )
        self._gate.prepare(self._queues.numbers)

    def observe(self, go_on: Callable[[], None] = lambda: None) -> None:
        self._observation = Observation()
        self._gate.hold(go_on)

    def observed(self) -> list[tuple[str, int]] | None:
        return self._observation.take() if self._observation else None

    def hold(self, go_on: Callable[[], None] = lambda: None) -> None:
        if self._observation is None:
            self._gate.hold(go_on)
        self._is_holding = True

    def fileno(self) -> int:
        return self._bound.fileno()

    @property
    def _bound(self) -> PacketQueues:
        assert self._queues is not None, "arm() comes first"
        return self._queues

    def absorb(self) -> bool:
        number = 0
        with suppress(OverrunError):  # the kernel counts what it dropped, see counts()
            for number, notice in enumerate(self._bound.read(), 1):
                self._take(notice)
                if number == _NOTICES_PER_TURN:
                    break
        self._peak = max(self._peak, len(self._held))
        return number == _NOTICES_PER_TURN

    def _take(self, notice: Notice) -> None:
        """Enter one packet into the books."""
        if self._passes(notice):
            self._bound.verdict(notice.queue, notice.packet, NF_ACCEPT)
            return
        count = self._count
        local = notice.device == LOOPBACK
        self._has_local_come |= local
        flow: Flow | bytes | None = notice.flow
        if flow is None:  # headers that could not be read: a place of its own
            flow = unreadable(notice.queue, notice.packet)
        before = self._held.get(flow)
        if before is None and self._refuses(flow):
            may_pass = self._spec.on_full is OnFull.PASS
            self._bound.verdict(notice.queue, notice.packet, NF_ACCEPT if may_pass else NF_DROP)
            return
        if before is not None:
            self._bound.verdict(before.queue, before.packet, NF_DROP)
            if before.sequence == notice.sequence:
                count["duplicates"] += 1
            else:
                count["superseded"] += 1
                count["held"] += 1
        else:
            count["held"] += 1
            count["held_local"] += local
        queue, packet, _, _, sequence = notice
        self._held.enter(
            flow, Place(queue, packet, sequence, moved=before is not None, local=local)
        )

    def _passes(self, notice: Notice) -> bool:
        """Whether it is none of those that are to wait; counts it, if so."""
        flow = notice.flow
        is_early = self._observation is None and not self._is_holding  # no rule of ours is in force
        if is_early or (flow is not None and not self._held.has_port_of(flow)):
            self._foreign += 1
        elif self._observation is not None and not self._is_holding:
            self._observation.note(notice)
        elif flow in self._passing:
            self._count["let_through"] += 1
        elif self._open:
            self._count["held"] += 1
            self._count["released"] += 1
        else:
            return False
        return True

    def _refuses(self, flow: bytes) -> bool:
        """Whether there is no room for it, of its source's or at all; counts it, if so."""
        if len(self._held) >= self._spec.max_held_packets:
            self._refused += 1
            return True
        if not self._sources.admits(flow):
            self._count["over_source"] += 1
            return True
        return False

    def let_through(self, flow: Flow) -> None:
        self._passing.add(flow)
        place = self._held.pop(flow)
        if place is not None:
            self._sources.leave(flow)
            self._bound.verdict(place.queue, place.packet, NF_ACCEPT)
            self._count["let_through"] += 1
            self._count["held"] -= 1
            self._count["held_local"] -= place.local

    def may_hold_local(self) -> bool:
        # Elsewhere what is sent here does not come in over loopback, or not only.
        return self._has_local_come or self._spec.hook is not Hook.INPUT

    def waiting(self) -> int:
        return len(self._held)

    def waiting_by_lane(self) -> dict[Lane, int]:
        return self._held.by_lane()

    def divide(self, port: int, endpoints: Iterable[Endpoint]) -> None:
        self._held.divide(port, endpoints)

    def release_next(self, lane: Lane, limit: int) -> int:
        is_alone = self._held.is_all_in(lane)
        gone = self._held.take(lane, limit)
        for flow, _ in gone:
            self._sources.leave(flow)
        self._accept([place for _, place in gone], alone=is_alone)
        self._count["released"] += len(gone)
        return len(gone)

    def _accept(self, places: list[Place], *, alone: bool) -> None:
        """Let these go, in their order.

        :param alone: nobody of another lane waits in between. Then a queue needs one verdict for
            all: it settles whatever stands before the last, moved ones too.
        """
        upto: dict[int, int] = {}
        if alone:
            upto = {place.queue: place.packet for place in places if not place.moved}
        for queue, packet in upto.items():
            self._bound.verdict_up_to(queue, packet, NF_ACCEPT)
        for place in places:
            if place.packet > upto.get(place.queue, 0):
                self._bound.verdict(place.queue, place.packet, NF_ACCEPT)

    def check_for_loss(self) -> int:
        if not self._open:
            self._restored += self._gate.restore()
        for _ in range(_LOOKS_AT_A_LOSS):
            states = self._bound.states()
            gone = len(self._held) - sum(state.waiting for state in states)
            if gone <= 0:
                return 0
        waiting = {state.number: state.waiting for state in states}
        gone = 0
        for number in self._bound.numbers:
            for flow in self._held.forget_oldest(number, waiting.get(number, 0)):
                self._sources.leave(flow)
                gone += 1
        self._count["lost"] += gone
        return gone

    def open(self, go_on: Callable[[], None] = lambda: None) -> int:
        try:
            self._gate.open()
        except LockError:  # who waits does not wait for that, too; who comes is let go at once
            burst = self._let_all_go()
            self._open_patiently(go_on)
            return burst
        except SynplugError:  # even if the rule stays
            self._let_all_go()
            raise
        return self._let_all_go()

    def _open_patiently(self, go_on: Callable[[], None]) -> None:
        """Take the rule out when its lock can be had, or else with the rest; nothing waits."""
        give_up_s = time.monotonic() + self.patience_s
        while True:
            go_on()
            self.absorb()
            try:
                self._gate.open()
            except LockError as error:
                if time.monotonic() > give_up_s:
                    self._standing = (str(error),)
                    return
                time.sleep(_LOCK_POLL_S)
            else:
                return

    def _let_all_go(self) -> int:
        self._open = True
        if self._held:  # else nobody is left who could have been lost
            self.check_for_loss()
        places = self._held.take_all()
        upto: dict[int, int] = {}
        for place in places:
            upto[place.queue] = max(place.packet, upto.get(place.queue, 0))
        for queue, packet in upto.items():
            self._bound.verdict_up_to(queue, packet, NF_ACCEPT)
        self._count["released"] += len(places)
        self.absorb()
        return len(places)

    def confirm_empty(self, go_on: Callable[[], None] = lambda: None) -> None:  # noqa: ARG002
        wait_for_packets_in_flight()
        for _ in range(_SETTLE_ROUNDS):
            self.absorb()
            states = self._bound.states()
            if not any(state.waiting for state in states):
                self._final = self.counts()
                return
            for state in states:
                self._bound.verdict_up_to(state.number, state.last_id, NF_ACCEPT)
        left = sum(state.waiting for state in self._bound.states())
        raise ReleaseError(f"{left} packets still wait in netfilter queues {self._bound.numbers}")

    def obstacle(self) -> str:
        foreign = [
            state.number
            for state in queue_states().values()
            if state.waiting and state.number not in self._bound.numbers
        ]
        return f"netfilter queue {foreign[0]} holds packets of somebody else" if foreign else ""

    def remove(self) -> None:
        self.absorb()
        if self._standing:
            self._bound.close()  # a rule whose queue is nobody's lets all pass
        self._gate.remove()
        while not self._standing and self.absorb():
            pass  # what somebody else's rule has sent here meanwhile
        self._bound.close()

    def counts(self) -> HoldCounts:
        if self._final is not None:
            return self._final
        unread = sum(state.dropped_unread for state in self._bound.states())
        values = dict(self._count)
        values["lost"] += unread
        return HoldCounts(
            **values, overflowed=self._overflowed(), waiting=len(self._held), peak=self._peak
        )

    def _overflowed(self) -> int:
        """Packets that met the rule and found the queue full: matched, but never given an id."""
        taken = sum(state.last_id for state in self._bound.states())
        met = 0 if self._standing else self._gate.matched()  # that takes the lock, too
        return self._refused + max(0, met - taken + self._foreign)

    def close(self) -> None:
        # The queues first: a rule whose queue nobody is bound to lets packets pass.
        if self._queues is not None:
            self._queues.close()
        self._gate.close()

    def clean_up_after_death(self, traces: Mapping[str, str]) -> list[str]:  # noqa: ARG002
        return self._gate.clean_up_after_death()
