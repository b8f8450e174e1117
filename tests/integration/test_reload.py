"""Reloads that overlap or reopen listeners."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence

from netlab.load import Load
from netlab.load_result import LoadResult
from netlab.servers import Gunicorn, HAProxy, Nginx, Service
from netlab.topology import ClientServer
from tests.integration import shell

RELOADS = 10


def test_haproxy_sf_with_noreuseport_loses_nobody(lab: ClientServer) -> None:
    with HAProxy(lab.server, reuseport=False) as haproxy:
        control = _reloads(lab, haproxy, 3000, lambda _: haproxy.reload_argv, wrapped=False)
        kept = _reloads(lab, haproxy, 3000, lambda _: haproxy.reload_argv, wrapped=True)
    assert control.failures > 0, "the control lost nothing: the test shows nothing"
    assert kept.failures == 0, kept.summary()
    assert kept.retransmitted == 0, kept.summary()


def test_nginx_hup_with_fewer_reuseport_workers_loses_nobody(lab: ClientServer) -> None:
    with Nginx(lab.server, reuseport=True, workers=4) as nginx:

        def reload(number: int) -> Sequence[str]:
            nginx.set_workers(2 if number % 2 == 0 else 4)
            return nginx.reload_argv

        control = _reloads(lab, nginx, 4000, reload, wrapped=False)
        kept = _reloads(lab, nginx, 4000, reload, wrapped=True)
    assert control.failures > 0, "the control lost nothing: the test shows nothing"
    assert kept.failures == 0, kept.summary()
    assert kept.retransmitted == 0, kept.summary()


def test_a_reload_that_keeps_its_sockets_is_released_when_it_has_settled(
    lab: ClientServer,
) -> None:
    with Gunicorn(lab.server) as gunicorn:
        kept = _reloads(lab, gunicorn, 300, lambda _: gunicorn.reload_argv, wrapped=True)
        outcome = shell.wrap(lab.server, ["-p", "8080", "--settle", "100ms"], gunicorn.reload_argv)
    assert kept.failures == 0, kept.summary()
    report = outcome.report
    before = {listener["inode"] for listener in report["old_listeners"]}
    assert before == {listener["inode"] for listener in report["new_listeners"]}
    assert report["gap_s"] is None
    assert 0.1 < report["hold"]["duration_s"] < 2.0, report


def test_the_listener_of_a_configuration_test_is_not_the_new_one(lab: ClientServer) -> None:
    """`nginx -t` binds and listens for a moment, and nginx itself comes after it."""
    with Nginx(lab.server) as nginx:
        start = nginx.start_argv
        test = shlex.join([*nginx.reload_argv[:-2], "-t", "-q"])
        line = f"{shlex.join(nginx.stop_argv)} && {test} && sleep 0.05 && {shlex.join(start)}"
        control = _reloads(lab, nginx, 1000, lambda _: ["sh", "-c", line], wrapped=False)
        kept = _reloads(lab, nginx, 1000, lambda _: ["sh", "-c", line], wrapped=True)
    assert control.refused > 0, "the control lost nothing: the test shows nothing"
    assert kept.failures == 0, kept.summary()
    assert kept.retransmitted == 0, kept.summary()


def _reloads(
    lab: ClientServer,
    service: Service,
    rate_per_s: int,
    command: Callable[[int], Sequence[str]],
    *,
    wrapped: bool,
) -> LoadResult:
    with Load(lab.client, service.targets(lab.server_addresses), rate_per_s=rate_per_s) as load:
        for number in range(RELOADS):
            argv = command(number)
            if wrapped:
                outcome = shell.wrap(lab.server, ["-p", "8080"], argv)
                assert outcome.status == 0, outcome
                assert outcome.report["outcome"] == "ready", outcome
            else:
                pids = set(service.namespace.pids())
                lab.server.run(argv, timeout_s=30)
                _wait_for_the_old_to_leave(service, pids)
        return load.stop()


def _wait_for_the_old_to_leave(service: Service, before: set[int]) -> None:
    """A control reload is over when some process has gone and the service listens."""
    from netlab.program import wait_until

    wait_until(lambda: bool(before - set(service.namespace.pids())), 10, "old processes left")
    service.wait_until_listening()
