"""What waits in the queues, what goes, and the accounts of it."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synplug.errors import KernelError, LockError, ReleaseError
from synplug.holding import nfqueue
from synplug.holding.nfqueue import QueueBackend
from synplug.holding.observation import LIMIT
from synplug.holding.queue_plan import queue_plan
from synplug.kernel.nfqueue import NO_SYN, QueueState
from synplug.model import Flow, HoldCounts, HoldSpec, Hook, OnFull
from tests.unit.fake_queues import FakeGate, FakeQueues, flow_of
from tests.unit.fakes import HTTP


def state(number: int, *, waiting: int) -> QueueState:
    return QueueState(number=number, waiting=waiting, dropped_unread=0, last_id=9)


class Held:
    """An armed and holding backend with its kernel."""

    def __init__(
        self, *, max_held: int = 1000, on_full: OnFull = OnFull.DROP, holds: bool = True
    ) -> None:
        self.gate = FakeGate()
        spec = HoldSpec(
            endpoints=(HTTP,), run_id="0123abcd", max_held_packets=max_held, on_full=on_full
        )
        self.backend = QueueBackend(spec, self.gate)
        self.backend.arm()
        assert isinstance(self.backend._queues, FakeQueues)
        self.queues: FakeQueues = self.backend._queues
        if holds:
            self.backend.hold()

    def arrive(
        self, number: int, *, queue: int = 100, sequence: int = 1, local: bool = False
    ) -> int:
        self.gate.met += 1
        packet = self.queues.arrive(flow_of(number), queue=queue, sequence=sequence, local=local)
        self.backend.absorb()
        return packet

    def finish(self) -> None:
        self.backend.open()
        self.backend.confirm_empty()


@pytest.fixture(autouse=True)
def _kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nfqueue, "PacketQueues", FakeQueues)
    monkeypatch.setattr(nfqueue, "wait_for_packets_in_flight", lambda: True)


# --- before anybody waits


class Observing(Held):
    """A backend that looks at who passes."""

    def __init__(self) -> None:
        super().__init__(holds=False)
        self.backend.observe()


def test_who_is_observed_passes_and_is_known() -> None:
    observing = Observing()
    first, local = observing.arrive(1), observing.arrive(2, local=True)
    assert observing.queues.accepted == [(100, first), (100, local)]
    assert observing.backend.observed() == [(flow_of(1).hex(), 2), (flow_of(2).hex(), 1)]
    assert observing.backend.observed() == [], "they are told once"
    assert not observing.backend.may_hold_local(), "nobody waits"
    observing.finish()
    assert observing.backend.counts() == HoldCounts()


def test_from_the_hold_on_they_wait() -> None:
    observing = Observing()
    observing.arrive(1)
    observing.backend.hold()
    waits = observing.arrive(2)
    assert observing.gate.log.count("hold") == 1, "the rule has been in force"
    assert observing.queues.waiting[100] == [waits]
    assert observing.backend.observed() == [(flow_of(1).hex(), 2)]
    observing.finish()
    counts = observing.backend.counts()
    assert (counts.held, counts.released, counts.overflowed) == (1, 1, 0)


def test_too_many_are_not_all_known() -> None:
    observing = Observing()
    for number in range(LIMIT):
        observing.arrive(number)
    assert len(observing.backend.observed() or ()) == LIMIT
    for number in range(LIMIT):
        observing.arrive(number)
    observing.arrive(LIMIT)
    assert observing.backend.observed() is None
    observing.arrive(LIMIT + 1)
    assert observing.backend.observed() is None


def test_one_whose_headers_cannot_be_read_is_not_known() -> None:
    observing = Observing()
    packet = observing.queues.arrive(None)
    observing.backend.absorb()
    assert observing.queues.accepted == [(100, packet)]
    assert observing.backend.observed() is None


@pytest.mark.parametrize(("max_held", "can"), [(2, False), (511, False), (512, True)])
def test_a_short_queue_observes_nobody(max_held: int, can: bool) -> None:
    """It may be full, and then SYNs pass unseen, or are dropped."""
    assert Held(max_held=max_held, holds=False).backend.can_observe is can


def test_what_is_no_syn_is_not_observed() -> None:
    observing = Observing()
    observing.queues.arrive(NO_SYN)
    observing.backend.absorb()
    assert observing.backend.observed() == []


# --- others


def test_what_is_no_syn_passes_at_once() -> None:
    held = Held()
    other_port = Flow(flow_of(1)[:-2] + b"\x1f\x90")
    packets = [held.queues.arrive(flow) for flow in (NO_SYN, other_port)]
    held.backend.absorb()
    assert held.queues.accepted == [(100, packet) for packet in packets]
    assert held.backend.waiting() == 0
    assert held.backend.counts().held == 0
    assert held.backend.counts().overflowed == 0
    (remark,) = held.backend.remarks
    assert remark.startswith("2 packets that are no SYNs to the endpoints")


def test_before_the_hold_and_after_it_whatever_comes_passes() -> None:
    """Nobody's rule of ours sends it: not to an endpoint either, and not one without headers."""
    early = Held(holds=False)
    packets = [early.queues.arrive(flow) for flow in (NO_SYN, flow_of(1), None)]
    early.backend.absorb()
    assert early.queues.accepted == [(100, packet) for packet in packets]
    assert early.backend.counts().overflowed == 0
    late = Held()
    late.finish()
    packet = late.queues.arrive(NO_SYN)
    late.backend.remove()
    assert late.queues.accepted[-1] == (100, packet), "before the removal flushes the queue"


def test_a_packet_that_cannot_be_read_waits() -> None:
    held = Held()
    held.queues.arrive(None)
    held.backend.absorb()
    assert held.backend.waiting() == 1
    assert held.backend.remarks == ()


def test_a_rule_that_somebody_took_out_is_put_back_and_told() -> None:
    held = Held()
    held.gate.missing = 2
    held.backend.check_for_loss()
    (remark,) = held.backend.remarks
    assert "removed the rule that holds (2 times" in remark


def test_a_rule_that_stays_is_no_remark() -> None:
    held = Held()
    held.backend.check_for_loss()
    assert held.backend.remarks == ()


def test_after_the_opening_no_rule_is_put_back() -> None:
    held = Held()
    held.gate.missing = 1
    held.finish()
    held.backend.check_for_loss()
    assert held.gate.missing == 1


# --- arming


@pytest.mark.parametrize(
    ("packets", "plan"),
    [
        (1, (1, 1)),
        (1000, (1, 1000)),
        (65_536, (1, 65_536)),
        (65_537, (2, 32_769)),
        (131_072, (2, 65_536)),
        (131_073, (4, 32_769)),
        (65_536 * 64, (64, 65_536)),
    ],
)
def test_queue_plan(packets: int, plan: tuple[int, int]) -> None:
    assert queue_plan(packets) == plan


@given(st.integers(1, 65_536 * 64))
def test_a_queue_plan_has_room_for_all_and_hardly_more(packets: int) -> None:
    count, length = queue_plan(packets)
    assert count & (count - 1) == 0
    assert 1 <= length <= 65_536
    assert packets <= count * length < packets + count


@pytest.mark.parametrize(("on_full", "fail_open"), [(OnFull.DROP, False), (OnFull.PASS, True)])
def test_arming_binds_queues_and_prepares_the_gate(on_full: OnFull, fail_open: bool) -> None:
    held = Held(max_held=100_000, on_full=on_full)
    assert held.gate.log == ["prepare", "hold"]
    assert held.gate.queues == held.queues.numbers == (100, 101)
    assert held.queues.length_packets == 50_000
    assert held.queues.fail_open is fail_open
    assert held.backend.traces() == {"rule": "fake rule", "queues": "100 101"}


# --- duplicates


def test_the_newest_copy_is_kept_in_the_oldest_place() -> None:
    held = Held()
    held.arrive(1)
    held.arrive(2)
    held.arrive(1)  # a retransmit: id 3
    assert held.queues.dropped == [(100, 1)]
    assert held.backend.waiting() == 2
    assert held.backend.release_next(80, 1) == 1
    assert held.queues.accepted == [(100, 3)]
    assert held.queues.waiting[100] == [2]
    counts = held.backend.counts()
    assert (counts.held, counts.duplicates, counts.superseded, counts.released) == (2, 1, 0, 1)


def test_another_sequence_number_is_a_new_connection() -> None:
    held = Held()
    held.arrive(1, sequence=7)
    held.arrive(1, sequence=8)
    counts = held.backend.counts()
    assert (counts.held, counts.duplicates, counts.superseded) == (2, 0, 1)
    assert held.backend.waiting() == 1
    assert held.queues.dropped == [(100, 1)]


def test_packets_that_cannot_be_read_each_have_a_place() -> None:
    held = Held()
    for _ in range(2):
        held.queues.arrive(None)
    held.backend.absorb()
    assert held.backend.waiting() == 2
    assert held.backend.release_next(0, 5) == 2
    assert held.queues.accepted == [(100, 1), (100, 2)]


def test_local_connections_and_the_peak_are_counted() -> None:
    held = Held()
    held.arrive(1, local=True)
    held.arrive(2)
    held.backend.release_next(80, 2)
    held.arrive(3, local=True)
    counts = held.backend.counts()
    assert (counts.held, counts.held_local, counts.peak, counts.waiting) == (3, 2, 2, 1)


def test_it_knows_whether_a_client_on_this_host_may_wait() -> None:
    held = Held()
    held.arrive(1)
    assert not held.backend.may_hold_local()
    held.arrive(2, local=True)
    held.backend.release_next(80, 2)
    assert held.backend.may_hold_local(), "more may come"


@pytest.mark.parametrize("hook", [Hook.FORWARD, Hook.PREROUTING])
def test_where_it_cannot_tell_one_may(hook: Hook) -> None:
    spec = HoldSpec(endpoints=(HTTP,), run_id="0123abcd", hook=hook)
    assert QueueBackend(spec, FakeGate()).may_hold_local()


# --- the order of release


def test_release_in_the_order_of_arrival() -> None:
    held = Held()
    for number in range(10):
        held.arrive(number)
    assert held.backend.release_next(80, 4) == 4
    assert held.queues.accepted == [(100, n) for n in (1, 2, 3, 4)]
    assert held.backend.release_next(80, 100) == 6
    assert held.queues.waiting[100] == []
    assert held.backend.release_next(80, 1) == 0


def test_a_limit_of_0_releases_nothing() -> None:
    held = Held()
    held.arrive(1)
    assert held.backend.release_next(80, 0) == 0
    assert held.queues.accepted == []


def test_over_several_queues_the_order_is_that_of_arrival() -> None:
    held = Held(max_held=200_000)
    for number, queue in enumerate((100, 101, 100, 103, 101, 100)):
        held.arrive(number, queue=queue)
    held.backend.release_next(80, 3)
    assert sorted(held.queues.accepted) == [(100, 1), (100, 2), (101, 1)]
    held.backend.release_next(80, 2)
    assert sorted(held.queues.accepted[3:]) == [(101, 2), (103, 1)]
    assert held.queues.waiting[100] == [3]


def test_a_moved_entry_does_not_take_later_ones_with_it() -> None:
    """Its id is newer than its place: a batch up to it would release all of them."""
    held = Held()
    for number in (1, 2, 3):
        held.arrive(number)
    held.arrive(1)  # id 4, first place
    assert held.backend.release_next(80, 1) == 1
    assert held.queues.accepted == [(100, 4)]
    assert held.queues.waiting[100] == [2, 3]


@given(st.data())
def test_whatever_arrives_each_connection_goes_once_and_in_order(data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nfqueue, "PacketQueues", FakeQueues)
        patch.setattr(nfqueue, "wait_for_packets_in_flight", lambda: True)
        held = Held(max_held=100_000)
    order: list[int] = []
    copy: dict[tuple[int, int], int] = {}
    gone: list[int] = []
    for _ in range(data.draw(st.integers(1, 40))):
        if data.draw(st.booleans()):
            number = data.draw(st.integers(0, 7))
            queue = 100 + number % 2
            copy[queue, held.arrive(number, queue=queue)] = number
            if number not in order:
                order.append(number)
        else:
            before = len(held.queues.accepted)
            limit = data.draw(st.integers(0, 5))
            assert held.backend.release_next(80, limit) == min(limit, len(order))
            released = [copy[packet] for packet in held.queues.accepted[before:]]
            assert sorted(released) == sorted(order[:limit])
            order = order[limit:]
            gone += released
    assert held.backend.waiting() == len(order)
    assert sum(map(len, held.queues.waiting.values())) == len(order)
    counts = held.backend.counts()
    assert counts.held == counts.released + counts.waiting == len(gone) + len(order)
    assert counts.held + counts.duplicates == len(copy)


# --- let through


def test_a_waiting_connection_is_let_through() -> None:
    held = Held()
    held.arrive(1)
    held.arrive(2)
    held.backend.let_through(flow_of(2))
    assert held.queues.accepted == [(100, 2)]
    counts = held.backend.counts()
    assert (counts.held, counts.let_through, counts.waiting) == (1, 1, 1)


def test_a_connection_is_let_through_when_it_comes_and_when_it_comes_again() -> None:
    held = Held()
    held.backend.let_through(flow_of(1))
    held.arrive(1)
    held.arrive(1)
    assert held.queues.accepted == [(100, 1), (100, 2)]
    counts = held.backend.counts()
    assert (counts.held, counts.let_through, counts.waiting) == (0, 2, 0)


# --- loss


def test_what_the_kernel_dropped_is_counted_once() -> None:
    held = Held()
    for number in range(3):
        held.arrive(number)
    held.queues.waiting[100].remove(2)
    assert held.backend.check_for_loss() == 1
    assert held.backend.check_for_loss() == 0
    assert held.backend.counts().lost == 1


def test_after_a_flush_of_everything_nothing_waits() -> None:
    held = Held()
    for number in range(3):
        held.arrive(number)
    held.queues.flush()
    assert held.backend.check_for_loss() == 3
    assert held.backend.waiting() == 0
    held.arrive(0)  # its client tries again
    assert held.backend.check_for_loss() == 0
    held.finish()
    counts = held.backend.counts()
    assert (counts.held, counts.lost, counts.released) == (4, 3, 1)


def test_a_retransmit_of_a_lost_packet_waits_anew_behind_the_others() -> None:
    held = Held()
    for number in (1, 2, 3):
        held.arrive(number)
    held.queues.waiting[100].remove(1)
    assert held.backend.check_for_loss() == 1
    held.arrive(1)  # id 4
    assert held.backend.check_for_loss() == 0
    held.backend.release_next(80, 2)
    assert held.queues.accepted == [(100, 2), (100, 3)]
    held.backend.release_next(80, 1)
    assert held.queues.accepted == [(100, 2), (100, 3), (100, 4)]
    assert held.backend.counts().lost == 1


def test_a_loss_before_the_opening_is_not_called_released() -> None:
    held = Held()
    for number in range(3):
        held.arrive(number)
    held.queues.waiting[100].remove(2)
    held.finish()
    counts = held.backend.counts()
    assert (counts.held, counts.released, counts.lost) == (3, 2, 1)


def test_a_loss_before_a_paced_release_is_not_called_released() -> None:
    held = Held()
    for number in range(3):
        held.arrive(number)
    held.queues.waiting[100].remove(2)
    assert held.backend.check_for_loss() == 1
    held.backend.release_next(80, 3)
    held.finish()
    counts = held.backend.counts()
    assert (counts.held, counts.released, counts.lost) == (3, 2, 1)


def test_a_loss_in_one_queue_is_counted_whatever_has_come_to_another() -> None:
    held = Held(max_held=100_000)
    held.arrive(1, queue=100)
    held.arrive(2, queue=100)
    held.queues.flush(100)
    held.queues.arrive(flow_of(3), queue=101)  # its notice is not read yet
    assert held.backend.check_for_loss() == 2
    held.finish()
    counts = held.backend.counts()
    assert (counts.held, counts.released, counts.lost) == (3, 1, 2)


def test_unread_notices_are_lost_packets_and_no_error() -> None:
    held = Held()
    held.arrive(1)
    held.queues.overrun = True
    held.queues.unread = 5
    held.backend.absorb()
    held.backend.absorb()
    assert held.backend.counts().lost == 5


def test_a_verdict_that_could_not_be_sent_is_no_overrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOBUFS of send(2) means that there was no memory: the SYN still waits."""
    held = Held()
    held.arrive(1)

    def verdict(queue: int, packet: int, verdict: int) -> None:
        raise KernelError("give a verdict", errno.ENOBUFS)

    monkeypatch.setattr(held.queues, "verdict", verdict)
    with pytest.raises(KernelError, match="give a verdict"):
        held.arrive(1)


def test_another_error_of_the_queue_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held()

    def read() -> None:
        raise KernelError("read the netfilter queue", 5)

    monkeypatch.setattr(held.queues, "read", read)
    with pytest.raises(KernelError):
        held.backend.absorb()


# --- overflow


def test_what_met_the_rule_but_never_got_an_id_has_overflowed() -> None:
    held = Held()
    held.arrive(1)
    held.gate.met += 4
    assert held.backend.counts().overflowed == 4


def test_ids_without_a_match_are_no_negative_overflow() -> None:
    held = Held()
    held.arrive(1)
    held.gate.met = 0
    assert held.backend.counts().overflowed == 0


# --- the end


def test_opening_takes_the_rule_out_first_and_lets_all_go() -> None:
    held = Held()
    for number in range(3):
        held.arrive(number)
    assert held.backend.open() == 3
    assert held.gate.log == ["prepare", "hold", "open"]
    assert held.queues.accepted == [(100, 1), (100, 2), (100, 3)]
    held.backend.confirm_empty()
    counts = held.backend.counts()
    assert (counts.held, counts.released, counts.waiting) == (3, 3, 0)


def test_the_rule_is_out_before_anything_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held()
    held.arrive(1)
    gone_at_opening: list[int] = []
    monkeypatch.setattr(
        held.gate, "open", lambda: gone_at_opening.append(len(held.queues.accepted))
    )
    held.backend.open()
    assert gone_at_opening == [0]


def test_packets_that_were_on_their_way_go_too() -> None:
    held = Held()
    held.arrive(1)
    held.backend.open()
    held.queues.arrive(flow_of(2))
    held.backend.confirm_empty()
    counts = held.backend.counts()
    assert (counts.held, counts.released) == (2, 2)
    assert held.queues.waiting[100] == []


def test_a_packet_without_a_notice_is_settled_at_the_end() -> None:
    held = Held()
    held.backend.open()
    held.queues.last_id[100] = 7
    held.queues.waiting[100] = [7]
    held.backend.confirm_empty()
    assert held.queues.waiting[100] == []
    assert (100, 7) in held.queues.accepted


def test_a_queue_that_does_not_run_empty_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held()
    held.arrive(1)
    monkeypatch.setattr(held.queues, "_settle", lambda *_: None)
    held.backend.open()
    with pytest.raises(ReleaseError, match="1 packets still wait"):
        held.backend.confirm_empty()


def test_the_final_counts_do_not_change_when_the_queues_are_gone() -> None:
    held = Held()
    held.arrive(1)
    held.finish()
    held.gate.met = 99
    assert held.backend.counts().overflowed == 0


def test_removal_waits_for_packets_of_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held()
    states = {100: state(100, waiting=5), 7: state(7, waiting=3)}
    monkeypatch.setattr(nfqueue, "queue_states", lambda: states)
    assert "queue 7 holds packets of somebody else" in held.backend.obstacle()
    states[7] = state(7, waiting=0)
    assert held.backend.obstacle() == ""


def test_removing_and_closing() -> None:
    held = Held()
    held.backend.remove()
    assert held.gate.log[-1] == "remove"
    assert held.queues.closed
    held.backend.close()
    held.backend.close()


def test_closing_what_was_never_armed_and_cleaning_up_after_death() -> None:
    gate = FakeGate()
    backend = QueueBackend(HoldSpec(endpoints=(HTTP,), run_id="0123abcd"), gate)
    assert backend.clean_up_after_death({}) == ["a rule"]
    backend.close()
    assert gate.log == ["clean up", "close"]


def test_a_gate_whose_lock_stays_taken_lets_all_pass_and_goes_with_the_rest() -> None:
    """Nobody is bound to its queue while the rest is removed, however long that lock takes."""
    held = Held()
    held.backend.patience_s = 0.0

    def open_never() -> None:
        raise LockError("somebody has the lock")

    held.gate.open = open_never  # type: ignore[method-assign]
    held.arrive(1)
    assert held.backend.open() == 1
    assert held.backend.remarks == ("somebody has the lock",)
    closed: list[bool] = []
    held.gate.remove = lambda: closed.append(held.queues.closed)  # type: ignore[method-assign]
    held.backend.remove()
    assert closed == [True]


def test_a_gate_whose_lock_is_taken_makes_nobody_wait() -> None:
    """What waits goes at once, who comes is let go at once, and the rule goes when it can."""
    held = Held()
    held.backend.patience_s = 5.0
    tries = [LockError("taken"), LockError("taken")]
    take_out = held.gate.open

    def open_later() -> None:
        if tries:
            held.queues.arrive(flow_of(8 + len(tries)))
            raise tries.pop()
        take_out()

    held.gate.open = open_later  # type: ignore[method-assign]
    held.arrive(1)
    signs: list[int] = []
    assert held.backend.open(lambda: signs.append(len(tries))) == 1
    assert signs == [1, 0], "before each try"
    assert held.queues.waiting[100] == []
    assert len(held.queues.accepted) == 3
    assert not tries
