"""Swaps of real programs under load: nobody is refused, reset, cut off or kept waiting.

Each case runs its control first: the same swap without synplug, which loses connections.
``make swaps`` runs all of them, ``make test`` those that leave the machine some room.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pytest

from netlab.load import Load
from netlab.load_result import LoadResult
from netlab.program import wait_until
from netlab.servers import Envoy, Gunicorn, HAProxy, Nginx, Service
from netlab.topology import ClientServer, Namespace
from tests.integration import shell

SWAPS = 12
#: The machine bears the highest of these rates at which, without any swap, everybody is answered,
#: and 99 of 100 connect within so many milliseconds.
RATES = (9000, 8000, 7000, 6000, 5000, 4200, 3500, 3000, 2500)
BORNE_MS = 10
#: A case in full runs at its own rate, or at so much of what the machine bears, if that is less:
#: above it the debt of a swap is not paid off before long.
NEAR_SATURATION = 0.9
MEASURED_S = 4.0
#: What the machine must bear for a case to say what it is named for; beyond it what there is.
DEMANDED_PER_S = 5000
#: So many looks in a row at accept queues with no more than this: a swap's debt is paid.
SETTLED_LOOKS = 5
QUEUED_AT_REST = 32
#: A control ends with the first swap that has lost somebody; one that loses nobody shows nothing.
#: A program that stops gracefully may lose nobody in so many swaps, on a quiet machine; then
#: SIGTERM shows at least that the load would tell.
GRACEFUL_CONTROL_SWAPS = 12
MOST_CONTROL_SWAPS = 24
#: The number of the first swap's generation: odd, since the service's own is 0, and versions
#: alternate.
FIRST_SWAP = 101
#: What holds may differ by without any debt: another process had the processor.
SLACK_MS = 50
#: The median hold of a case that leaves the machine room. Where the load client itself was late,
#: the machine had none, and holds tell of that.
MOST_PER_S_WITH_ROOM = 2000
MEDIAN_HOLD_MS = 50
ON_TIME_MS = 5
PHASES = ("ready", "drain", "stop", "release")


class Generations(Protocol):
    """A service that can be started again beside itself."""

    def generation_argv(self, generation: int, /) -> list[str]: ...


@dataclass(frozen=True, kw_only=True)
class Case:
    """A service, how hard it is used, and how its old generation is stopped."""

    name: str
    make: Callable[[Namespace], Service]
    rate_per_s: int
    stop: Callable[[Service, int], Sequence[str]]
    plainly: Callable[[Service, int, int], None]
    control_rate_per_s: int = 0
    in_full_only: bool = False


def post(service: Service, generation: int) -> list[str]:
    assert isinstance(service, Envoy)
    return ["--stop-post", f"unix:{service.admin_socket(generation)}:/drain_listeners"]


def post_plainly(service: Service, pid: int, generation: int) -> None:
    assert isinstance(service, Envoy)
    service.namespace.run(service.drain_argv(generation))


def by_signal(*options: str) -> Callable[[Service, int], Sequence[str]]:
    return lambda _service, _generation: options


def kill(number: signal.Signals) -> Callable[[Service, int, int], None]:
    return lambda _service, pid, _generation: os.kill(pid, number)


SIGTERM = by_signal("--quiesce", "1s")
CASES = [
    Case(
        name="envoy-drain-2000",
        make=Envoy,
        rate_per_s=2000,
        stop=post,
        plainly=post_plainly,
        control_rate_per_s=8000,
    ),
    Case(
        name="envoy-drain-5000",
        make=Envoy,
        rate_per_s=5000,
        stop=post,
        plainly=post_plainly,
        in_full_only=True,
    ),
    Case(
        name="envoy-drain-8000",
        make=Envoy,
        rate_per_s=8000,
        stop=post,
        plainly=post_plainly,
        in_full_only=True,
    ),
    Case(
        name="envoy-sigterm-2000",
        make=Envoy,
        rate_per_s=2000,
        stop=SIGTERM,
        plainly=kill(signal.SIGTERM),
    ),
    Case(
        name="envoy-sigterm-5000",
        make=Envoy,
        rate_per_s=5000,
        stop=SIGTERM,
        plainly=kill(signal.SIGTERM),
        in_full_only=True,
    ),
    Case(
        name="haproxy",
        make=HAProxy,
        rate_per_s=3000,
        stop=by_signal("--stop-signal", "USR1"),
        plainly=kill(signal.SIGUSR1),
        control_rate_per_s=8000,
    ),
    Case(
        name="nginx",
        make=lambda namespace: Nginx(namespace, reuseport=True),
        rate_per_s=3000,
        stop=by_signal("--stop-signal", "QUIT"),
        plainly=kill(signal.SIGQUIT),
        control_rate_per_s=8000,
    ),
    Case(
        name="gunicorn",
        make=lambda namespace: Gunicorn(namespace, reuseport=True),
        rate_per_s=300,
        stop=by_signal("--stop-signal", "TERM"),
        plainly=kill(signal.SIGTERM),
    ),
]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[pytest.mark.swaps] if case.in_full_only else [])
        for case in CASES
    ],
)
def test_no_client_notices_a_swap(lab: ClientServer, case: Case) -> None:
    wanted = case.rate_per_s
    with case.make(lab.server) as service:
        if case.in_full_only:
            case = replace(case, rate_per_s=_bearable_rate(lab, service, case.rate_per_s))
        lost = _control(lab, service, case)
        assert lost.failures > 0, f"the control lost nothing: {lost.summary()}"

        kept, reports = _swaps(lab, service, case)

    holds_ms = sorted(report["hold"]["duration_s"] * 1000 for report in reports)
    median_ms = statistics.median(holds_ms)
    print(
        f"\n{case.name}: {len(reports)} swaps at {case.rate_per_s}/s of {wanted}/s, "
        f"{kept.summary()}; "
        f"client late p99 {kept.late_p99_ms:.1f} ms; "
        f"hold median {median_ms:.1f} max {holds_ms[-1]:.1f} ms ("
        + ", ".join(f"{name} {_median_ms(reports, name):.1f}" for name in PHASES)
        + f"); control: {lost.failures} failures of {lost.attempted}"
    )
    assert kept.failures == 0, kept.summary()
    assert kept.retransmitted == 0, kept.summary()
    assert kept.connect_max_ms < max(holds_ms[-1] + 250, 250), kept.summary()
    grown = _thirds_ms(reports)
    assert grown[1] < 2 * grown[0] + SLACK_MS, f"a debt grows: holds of {grown[0]}, then {grown[1]}"
    if case.rate_per_s <= MOST_PER_S_WITH_ROOM and kept.late_p99_ms < ON_TIME_MS:
        assert median_ms < MEDIAN_HOLD_MS, f"holds of {holds_ms} ms"
    assert sum(report["hold"]["held"] for report in reports) > 0, "no client came during a hold"


def _thirds_ms(reports: list[dict[str, Any]]) -> tuple[float, float]:
    """The median holds of the first and of the last third."""
    holds_ms = [float(report["hold"]["duration_s"]) * 1000 for report in reports]
    third = len(holds_ms) // 3
    return statistics.median(holds_ms[:third]), statistics.median(holds_ms[-third:])


def _median_ms(reports: list[dict[str, Any]], name: str) -> float:
    return statistics.median(
        float(phase["duration_s"]) * 1000
        for report in reports
        for phase in report["phases"]
        if phase["name"] == name
    )


def _bearable_rate(lab: ClientServer, service: Service, wanted: int) -> int:
    """What is wanted, or less; the machine may have other things to do just now.

    Less than what is demanded is a failure: it would show something else.
    """
    enough = min(rate for rate in RATES if rate * NEAR_SATURATION >= wanted)
    for rate in (rate for rate in RATES if rate <= enough):
        targets = service.targets(lab.server_addresses)
        with Load(lab.client, targets, rate_per_s=rate, duration_s=MEASURED_S) as load:
            found = load.wait()
        _wait_for_debt(service)
        if not found.failures and found.connect_p99_ms < BORNE_MS:
            found_per_s = min(wanted, round(rate * NEAR_SATURATION))
            assert found_per_s >= min(wanted, DEMANDED_PER_S), f"only {found_per_s}/s are borne now"
            return found_per_s
    raise AssertionError(f"this machine does not bear {RATES[-1]} connections a second now")


def _wait_for_debt(service: Service) -> None:
    """Until who waited has been served: each swap is to begin as the first one did."""
    short = 0

    def settled() -> bool:
        nonlocal short
        lines = service.namespace.run(["ss", "-Htln", "sport = :8080"]).stdout.splitlines()
        queued = sum(int(line.split()[1]) for line in lines)
        short = short + 1 if queued <= QUEUED_AT_REST else 0
        return short >= SETTLED_LOOKS

    wait_until(settled, 20, "the debt of a swap is paid")


def _swaps(
    lab: ClientServer, service: Service, case: Case
) -> tuple[LoadResult, list[dict[str, Any]]]:
    with Load(
        lab.client, service.targets(lab.server_addresses), rate_per_s=case.rate_per_s
    ) as load:
        reports = []
        for number in range(FIRST_SWAP, FIRST_SWAP + SWAPS):
            reports.append(_swap(service, case, number))
            _wait_for_debt(service)
        return load.stop(), reports


def _swap(service: Service, case: Case, number: int) -> dict[str, Any]:
    """From generation *number* - 1 to *number*; the first one of all is the service's own."""
    before = 0 if number == FIRST_SWAP else number - 1
    path = service.directory / "report.json"
    outcome = shell.run_detached(
        service.namespace,
        *["swap", "--pidfile", str(service.pidfile), "--new-pidfile", str(service.pidfile)],
        *["-p", "8080", "--json", str(path), *case.stop(service, before), "--"],
        *service.generation_argv(number),  # type: ignore[attr-defined]
        output=service.log,
    )
    assert outcome == 0, service.log.read_text()[-2000:]
    report: dict[str, Any] = json.loads(path.read_text())
    assert report["outcome"] == "ready", report
    assert report["warnings"] == [], report
    assert report["hold"]["released"] == report["hold"]["held"], report
    assert report["old_generation"]["fate"] in ("ended", "terminated"), report
    return report


def _control(lab: ClientServer, service: Service, case: Case) -> LoadResult:
    """The same without synplug: the old one is stopped as soon as the new one listens."""
    rate = case.control_rate_per_s or case.rate_per_s
    attempted: list[Any] = []
    for number in range(1, MOST_CONTROL_SWAPS + 1):
        with Load(lab.client, service.targets(lab.server_addresses), rate_per_s=rate) as load:
            is_graceful = number <= GRACEFUL_CONTROL_SWAPS
            stop = case.plainly if is_graceful else kill(signal.SIGTERM)
            _swap_plainly(service, stop, number)
            attempted += load.stop().samples
        if LoadResult(samples=tuple(attempted)).failures:
            break
    # the tests that follow begin with the service's own first generation
    service.stop()
    service.start()
    return LoadResult(samples=tuple(attempted))


def _swap_plainly(service: Service, stop: Callable[[Service, int, int], None], number: int) -> None:
    (old,) = service.pids
    argv = service.generation_argv(number)  # type: ignore[attr-defined]
    before = _listeners(service)
    with service.log.open("a") as log:
        new = service.namespace.popen(argv, stdout=log, stderr=log, start_new_session=True)
    wait_until(lambda: len(_listeners(service) - before) >= len(before), 15, "it stands")
    stop(service, old, number - 1)
    wait_until(lambda: not _listeners(service) & before, 15, "the old listeners are gone")
    os.kill(old, signal.SIGTERM)
    service.pidfile.write_text(f"{new.pid}\n")


def _listeners(service: Service) -> set[int]:
    """The inodes of the listening sockets on the service's port."""
    lines = service.namespace.run(["ss", "-Htlne", "sport = :8080"]).stdout.splitlines()
    return {int(word[4:]) for line in lines for word in line.split() if word.startswith("ino:")}
