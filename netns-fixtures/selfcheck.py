#!/usr/bin/env python3
"""Check the lab against itself: every service, with and without a cold restart.

Without a restart no connection may fail; with a cold restart (and nothing that holds
SYNs) some must. Otherwise the lab could not tell a lossless restart from a lossy one.
Run as root, or as a user who may create user namespaces.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from netlab.errors import LabError
from netlab.isolation import enter_private_namespaces
from netlab.listenwatch import ListenWatch
from netlab.load import Load, LoadResult
from netlab.program import wait_until
from netlab.servers import Gunicorn, HAProxy, HttpServer, Nginx, Redis, Service
from netlab.topology import ClientServer, Namespace

_DURATION_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """A service and the new connections per second that it serves with ease."""

    make: Callable[[Namespace], Service]
    rate_per_s: int


_CASES = (
    Case(make=HAProxy, rate_per_s=3000),
    Case(make=Nginx, rate_per_s=3000),
    Case(make=Redis, rate_per_s=3000),
    Case(make=Gunicorn, rate_per_s=500),
    Case(make=HttpServer, rate_per_s=500),
)


def undisturbed(lab: ClientServer, service: Service, rate_per_s: int) -> LoadResult:
    """Load for 2 s, over IPv4 and IPv6, and nothing else."""
    targets = service.targets(lab.server_addresses)
    with Load(lab.client, targets, rate_per_s, service.protocol, duration_s=_DURATION_S) as load:
        return load.wait()


def restarted(lab: ClientServer, service: Service, rate_per_s: int) -> tuple[LoadResult, float]:
    """Load for 2 s with a cold restart after a fifth; the longest gap in milliseconds."""
    targets = service.targets(lab.server_addresses)
    with (
        ListenWatch(lab.server, service.ports) as watch,
        Load(lab.client, targets, rate_per_s, service.protocol, duration_s=_DURATION_S) as load,
    ):
        begin = time.monotonic() + _DURATION_S / 5
        wait_until(lambda: time.monotonic() >= begin, _DURATION_S, "the restart's turn")
        lab.server.run(service.restart_argv, timeout_s=30)
        service.wait_until_listening()
        result = load.wait()
    return result, max((gap.duration_ms for gap in watch.gaps), default=0.0)


def check(lab: ClientServer, case: Case) -> list[str]:
    """Run one case and print its counts; return what is wrong with them."""
    try:
        return _check(lab, case)
    except LabError as exc:
        return [str(exc)]


def _check(lab: ClientServer, case: Case) -> list[str]:
    with case.make(lab.server) as service:
        name = type(service).__name__
        calm = undisturbed(lab, service, case.rate_per_s)
        print(f"{name:<10} {case.rate_per_s:>5}/s  undisturbed   {calm.summary()}")
        lossy, gap_ms = restarted(lab, service, case.rate_per_s)
        print(f"{name:<10} {case.rate_per_s:>5}/s  cold restart  {lossy.summary()}; ", end="")
        print(f"no listener for {gap_ms:.1f} ms")
    wrong = []
    if calm.failures:
        wrong.append(f"{name}: {calm.failures} failures without a restart")
    if not lossy.failures:
        wrong.append(f"{name}: a cold restart without a hold lost nothing")
    return wrong


def main() -> int:
    """Exit status 0 if the lab tells the truth."""
    enter_private_namespaces()
    wrong: list[str] = []
    with ClientServer() as lab:
        for case in _CASES:
            wrong += check(lab, case)
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
