"""Restarts of configured services, with the configuration where an operator has it."""

from __future__ import annotations

import json
from pathlib import Path

from netlab.load import Load
from netlab.program import wait_until
from netlab.servers import HAProxy
from netlab.topology import ClientServer
from tests.integration import shell
from tests.integration.conftest import SimpleService


def test_a_configured_service_restarts_by_its_name(lab: ClientServer, etc: Path) -> None:
    with HAProxy(lab.server) as haproxy:
        (etc / "synplug.toml").write_text("[defaults]\nmax-hold = '9s'\njson = '-'\n")
        (etc / "synplug.d").mkdir()
        (etc / "synplug.d" / "edge.toml").write_text(
            f"[service.edge]\nport = {json.dumps(haproxy.ports)}\n"
            f"restart = {json.dumps(haproxy.restart_argv)}\n"
        )
        assert shell.run(lab.server, "config", "check").status == 0
        targets = haproxy.targets(lab.server_addresses)
        with Load(lab.client, targets, rate_per_s=500) as load:
            haproxy.namespace.run(haproxy.restart_argv, timeout_s=30)
            haproxy.wait_until_listening()
            control = load.stop()
        assert control.failures > 0, "the control lost nothing: the test shows nothing"
        with Load(lab.client, targets, rate_per_s=500) as load:
            for words in (["restart", "edge"], ["wrap", "-s", "edge"], ["restart", "edge", "-q"]):
                done = shell.run(lab.server, *words)
                assert done.status == 0, done
                assert done.report["hold"]["held"] > 0
                assert done.report["endpoints"] == [f"*:{port}" for port in haproxy.ports]
                assert (done.stderr == "") == ("-q" in words)
            kept = load.stop()
        assert kept.failures == 0, kept.summary()


def test_a_configured_hold_has_the_service_s_name_and_deadline(
    lab: ClientServer, simple: SimpleService, tmp_path: Path
) -> None:
    place = tmp_path / "web.toml"
    place.write_text(f"[service.web]\npidfile = '{simple.pidfile}'\nmax-hold = '15s'\n")
    place.chmod(0o600)
    config = ["-s", "web", "--config", str(place)]
    assert shell.run(lab.server, "hold", *config).status == 0
    (entry,) = json.loads(shell.run(lab.server, "status", "--json").stdout)
    assert entry["name"] == "web"
    lab.server.run(simple.restart_argv())
    wait_until(simple.listens, 5, "it listens again")
    released = shell.run(lab.server, "release", *config, "--json", "-")
    assert (released.status, released.report["outcome"]) == (0, "ready"), released


def test_an_untrusted_or_wrong_file_restarts_nothing(
    lab: ClientServer, simple: SimpleService, tmp_path: Path
) -> None:
    mark = tmp_path / "it-ran"
    place = tmp_path / "web.toml"
    place.write_text(f"[service.web]\nport = 8080\nrestart = {json.dumps(['touch', str(mark)])}\n")
    place.chmod(0o666)
    refused = shell.run(lab.server, "restart", "web", "--config", str(place))
    assert (refused.status, mark.exists()) == (125, False), refused
    assert "can be written by others" in refused.stderr
    place.write_text(place.read_text() + "max-hodl = 1\n")
    place.chmod(0o600)
    refused = shell.run(lab.server, "restart", "web", "--config", str(place))
    assert (refused.status, mark.exists()) == (125, False), refused
    assert f"{place}:4: unknown key 'max-hodl'; did you mean max-hold?" in refused.stderr
    place.write_text(place.read_text().replace("max-hodl", "max-hold"))
    shell.run(lab.server, "restart", "web", "--config", str(place))
    assert mark.exists(), "the control: the same file, in order"
