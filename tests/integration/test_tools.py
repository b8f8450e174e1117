"""doctor, status, the Python interface."""

from __future__ import annotations

import json
import sys

from netlab.load import Load
from netlab.program import wait_until
from netlab.topology import ClientServer
from tests.integration import shell
from tests.integration.conftest import SimpleService
from tests.integration.connect import connects_within, holds_in_force

_HOLD = """
import synplug, sys, time
with synplug.hold(ports=[8080], max_hold=5.0) as held:
    print("held", flush=True)
    sys.stdin.readline()
print(held.result.counts.held, held.result.reason.value, flush=True)
"""
_WRAP = """
import synplug, json, sys
report = synplug.wrap(json.loads(sys.argv[1]), ports=[8080], max_hold=9.0)
print(report.ok, report.hold.counts.released, report.exit_code)
"""
_ERRORS = """
import synplug
for call in (
    lambda: synplug.wrap([], ports=[1]),
    lambda: synplug.wrap(["true"], ports=[70000]),
    lambda: synplug.wrap(["true"]),
    lambda: synplug.hold([]).__enter__(),
    lambda: synplug.hold([80], max_hold=0).__enter__(),
):
    try:
        call()
    except synplug.UsageError as error:
        print(type(error).__name__)
"""


def test_doctor_tries_it_and_leaves_nothing(lab: ClientServer) -> None:
    outcome = shell.run(lab.server, "doctor")
    assert outcome.status == 0, outcome
    assert "self-test nfqueue " in outcome.stdout
    assert "a SYN waited, was released and connected" in outcome.stdout
    findings = json.loads(shell.run(lab.server, "doctor", "--json").stdout)
    assert (findings["fit"], findings["backend"]) == (True, "nfqueue")


def test_doctor_names_what_is_missing(lab: ClientServer) -> None:
    argv = ["setpriv", "--bounding-set=-net_admin,-sys_admin", "--inh-caps=-net_admin,-sys_admin"]
    done = lab.server.run([*argv, "--", *shell.SYNPLUG, "doctor"], check=False)
    assert done.returncode == 1
    assert "FAIL  CAP_NET_ADMIN" in done.stdout
    assert "remedy: run it as root or with CAP_NET_ADMIN" in done.stdout


def test_status_shows_a_hold_while_it_is_in_force(lab: ClientServer, simple: SimpleService) -> None:
    assert "no hold" in shell.run(lab.server, "status").stdout
    run = shell.start(lab.server, "wrap", "-p", "8080", "--require-new", "--", "sleep", "1")
    wait_until(lambda: bool(holds_in_force(lab.server)), 10, "connections are held")
    said = shell.run(lab.server, "status").stdout
    assert "*:8080  nfqueue" in said
    assert "to the deadline" in said
    run.terminate()
    run.communicate(timeout=20)
    assert "no hold" in shell.run(lab.server, "status").stdout


def test_hold_as_a_context_manager(lab: ClientServer, simple: SimpleService) -> None:
    user = lab.server.popen([sys.executable, "-c", _HOLD], stdin=-1, stdout=-1)
    assert user.stdin is not None
    assert user.stdout is not None
    assert user.stdout.readline() == "held\n"
    assert not connects_within(lab.client, (lab.server_ipv4, 8080), 0.3)
    user.stdin.write("\n")
    user.stdin.close()
    assert user.stdout.read() == "1 asked\n"
    assert user.wait(timeout=10) == 0
    user.stdout.close()
    assert connects_within(lab.client, (lab.server_ipv4, 8080), 0.5)


def test_wrap_from_python(lab: ClientServer, simple: SimpleService) -> None:
    with Load(lab.client, simple.targets(lab), rate_per_s=300) as load:
        command = json.dumps(simple.restart_argv())
        done = lab.server.run([sys.executable, "-c", _WRAP, command], timeout_s=30)
        result = load.stop()
    ok, released, status = done.stdout.split()
    assert (ok, status) == ("True", "0")
    assert int(released) > 0
    assert result.failures == 0, result.summary()


def test_wrong_calls_from_python(lab: ClientServer) -> None:
    done = lab.server.run([sys.executable, "-c", _ERRORS])
    assert done.stdout.split() == [
        "UsageError", "UsageError", "TargetError", "UsageError", "UsageError",
    ]  # fmt: skip
