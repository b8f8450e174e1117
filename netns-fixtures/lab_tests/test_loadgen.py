"""The load client calls each fate of a connection by its right name, and keeps its rate."""

from __future__ import annotations

import errno
import sys
import time
from pathlib import Path

import pytest

from netlab.errors import LabError, NotReadyError
from netlab.load import Load, LoadResult, Outcome, Protocol
from netlab.program import Program, wait_until
from netlab.servers import Nginx, Redis
from netlab.topology import ClientServer

_PEER = Path(__file__).with_name("peer.py")
_PORT = 8080
_RATE_PER_S = 200
_DURATION_S = 0.5
_EXPECTED = 100


def peer(lab: ClientServer, behaviour: str) -> Program:
    argv = [sys.executable, str(_PEER), behaviour, str(_PORT)]
    return Program(lab.server, argv, listens_on=[("::", _PORT)])


def load(
    lab: ClientServer, protocol: Protocol = "http", timeout_s: float = 5.0, port: int = _PORT
) -> LoadResult:
    """Put some load over both families, for half a second."""
    targets = [(address, port) for address in lab.server_addresses]
    with Load(
        lab.client,
        targets,
        _RATE_PER_S,
        protocol,
        timeout_s,
        duration_s=_DURATION_S,
        expect_ready=False,
    ) as running:
        return running.wait()


@pytest.mark.parametrize(
    ("behaviour", "protocol", "outcome"),
    [
        ("answer", "http", Outcome.OK),
        ("answer-until-eof", "http", Outcome.OK),
        ("close", "http", Outcome.EARLY_CLOSED),
        ("close-in-headers", "http", Outcome.EARLY_CLOSED),
        ("close-in-body", "http", Outcome.EARLY_CLOSED),
        ("unavailable", "http", Outcome.ERROR),
        ("too-much", "http", Outcome.ERROR),
        ("reset", "http", Outcome.RESET),
        ("reset-after-request", "http", Outcome.RESET),
        ("pong", "redis", Outcome.OK),
        ("close", "redis", Outcome.EARLY_CLOSED),
        ("loading", "redis", Outcome.ERROR),
    ],
)
def test_each_answer_has_its_class(
    lab: ClientServer, behaviour: str, protocol: Protocol, outcome: Outcome
) -> None:
    with peer(lab, behaviour):
        result = load(lab, protocol)

    assert {sample.outcome for sample in result.samples} == {outcome}
    assert result.attempted == _EXPECTED
    assert result.failures == (0 if outcome is Outcome.OK else _EXPECTED)
    assert result.retransmitted == 0
    if outcome is Outcome.ERROR:
        assert result.errors_by_errno == {errno.EPROTO: _EXPECTED}


def test_closed_port_is_refused(lab: ClientServer) -> None:
    result = load(lab)

    assert result.refused == result.attempted == _EXPECTED
    assert {sample.connect_ns for sample in result.samples} == {0}


def test_silence_times_out_and_does_not_slow_the_rate(lab: ClientServer) -> None:
    with peer(lab, "silent"):
        result = load(lab, timeout_s=0.3)

    assert result.timed_out == result.attempted == _EXPECTED
    assert all(0.3e9 <= sample.total_ns < 1e9 for sample in result.samples)
    assert all(sample.connect_ns for sample in result.samples)


def test_dropped_syns_time_out_and_count_as_retransmitted(lab: ClientServer) -> None:
    drop_syns(lab)
    with peer(lab, "answer"):
        result = load(lab, timeout_s=1.5)

    assert result.timed_out == result.attempted == _EXPECTED
    assert result.retransmitted == _EXPECTED


def load_in_spite_of_a_drop(
    lab: ClientServer, hook: str, flags: str, *, duration_s: float, drop_s: float
) -> LoadResult:
    """What becomes of a load when TCP packets with these of SYN and ACK are dropped at first."""
    drop_syns(lab, hook, flags)
    targets = [(address, _PORT) for address in lab.server_addresses]
    with (
        peer(lab, "answer"),
        Load(lab.client, targets, _RATE_PER_S, duration_s=duration_s, expect_ready=False) as load,
    ):
        opens_at = time.monotonic() + drop_s
        wait_until(lambda: time.monotonic() >= opens_at, 1, "the end of the drop")
        lab.server.run(["nft", "delete", "table", "inet", "blackhole"])
        return load.wait()


def test_syns_dropped_for_a_while_connect_after_a_second(lab: ClientServer) -> None:
    result = load_in_spite_of_a_drop(lab, "input", "syn", duration_s=0.6, drop_s=0.3)
    assert result.ok == result.attempted == 120
    assert 20 <= result.retransmitted <= 100
    for sample in result.samples:
        # tcp(7): the initial retransmission timeout is 1 s (RFC 6298)
        assert (sample.connect_ns >= 0.9e9) == (sample.retransmits > 0)
        assert (sample.answered_ns >= 0.9e9) == (sample.retransmits > 0)


def test_who_waits_for_the_answer_to_a_first_syn_is_told_from_who_lost_one(
    lab: ClientServer,
) -> None:
    result = load_in_spite_of_a_drop(lab, "output", "(syn | ack)", duration_s=0.3, drop_s=0.4)
    assert result.ok == result.attempted == 60
    assert result.retransmitted > 0
    for sample in result.samples:
        assert sample.connect_ns >= 0.9e9
        assert sample.answered_ns < 0.1e9


def test_unreachable_network_is_an_error_with_its_errno(lab: ClientServer) -> None:
    with Load(
        lab.client, ["192.0.2.1:80"], _RATE_PER_S, duration_s=_DURATION_S, expect_ready=False
    ) as running:
        result = running.wait()

    assert result.error == result.attempted == _EXPECTED
    assert result.errors_by_errno == {errno.ENETUNREACH: _EXPECTED}


def test_outcomes_are_kept_apart_by_target(lab: ClientServer) -> None:
    targets = [f"{lab.server_ipv4}:{_PORT}", f"[{lab.server_ipv6}]:{_PORT + 1}"]
    with (
        peer(lab, "answer"),
        Load(lab.client, targets, _RATE_PER_S, duration_s=_DURATION_S) as running,
    ):
        result = running.wait()

    assert {(sample.target, sample.outcome) for sample in result.samples} == {
        (0, Outcome.OK),
        (1, Outcome.REFUSED),
    }
    assert result.ok == result.refused == _EXPECTED / 2


def test_every_source_address_is_used_with_targets_of_its_family(lab: ClientServer) -> None:
    targets = [(address, _PORT) for address in lab.server_addresses]
    with peer(lab, "answer") as program:
        with Load(
            lab.client, targets, _RATE_PER_S, duration_s=0.2, sources=lab.client_addresses
        ) as running:
            result = running.wait()
        seen = {line.removeprefix("::ffff:") for line in program.output.splitlines()}

    assert result.failures == 0
    assert seen == set(lab.client_addresses)


def test_stop_ends_an_endless_load_and_between_narrows_it(lab: ClientServer) -> None:
    with peer(lab, "answer"), Load(lab.client, [(lab.server_ipv4, _PORT)], 500) as running:
        with pytest.raises(LabError, match="still runs"):
            _ = running.result
        start_ns = time.monotonic_ns()
        wait_until(lambda: time.monotonic_ns() >= start_ns + 10**8, 1, "a tenth of a second")
        result = running.stop()

    window = result.between(start_ns, start_ns + 10**8)
    assert window.attempted == pytest.approx(50, abs=1)
    assert result.failures == 0
    assert running.result == result


def test_a_service_that_never_answers_is_reported_at_entry(lab: ClientServer) -> None:
    with (
        pytest.raises(NotReadyError, match="first answer"),
        Load(lab.client, [(lab.server_ipv4, _PORT)], 100, ready_deadline_s=0.2),
    ):
        pass


def test_8000_connections_a_second(lab: ClientServer) -> None:
    with (
        Nginx(lab.server) as service,
        Load(lab.client, service.targets(lab.server_addresses), 8000, duration_s=2) as running,
    ):
        result = running.wait()

    assert result.ok == result.attempted == 16_000
    assert result.late_p99_ms < 2000


def test_redis_connections_leave_no_time_wait(lab: ClientServer) -> None:
    with Redis(lab.server) as service:
        result = load(lab, "redis", port=service.ports[0])

    assert result.ok == _EXPECTED
    for namespace in (lab.client, lab.server):
        assert not namespace.run(["ss", "-Htn", "state", "time-wait"]).stdout


def drop_syns(lab: ClientServer, hook: str = "input", flags: str = "syn") -> None:
    lab.server.run(
        ["nft", "-f", "-"],
        input_text=f"""
        table inet blackhole {{
            chain {hook} {{
                type filter hook {hook} priority filter
                tcp flags & (syn | ack) == {flags} drop
            }}
        }}
        """,
    )
