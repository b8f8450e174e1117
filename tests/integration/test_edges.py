"""Odd callers, odd services, odd places: what clumsy days bring."""

from __future__ import annotations

import json
from pathlib import Path

from netlab.load import Load
from netlab.program import wait_until
from netlab.servers import Nginx
from netlab.topology import ClientServer
from tests.integration import shell
from tests.integration.conftest import SimpleService

_WRAP = " ".join(shell.SYNPLUG) + " wrap"


def test_a_port_that_the_new_configuration_drops(lab: ClientServer) -> None:
    """The other one's clients wait some seconds, and nobody is lost; the report names the port."""
    with Nginx(lab.server, ports=(8080, 8443)) as nginx:
        targets = [(address, 8080) for address in lab.server_addresses]
        with Load(lab.client, targets, rate_per_s=300) as load:
            configuration = nginx.directory / "nginx.conf"
            lines = configuration.read_text().splitlines()
            kept = [line for line in lines if ":8443" not in line]
            assert kept != lines
            configuration.write_text("\n".join(kept))
            outcome = shell.wrap(lab.server, ["-p", "8080,8443"], nginx.restart_argv)
            result = load.stop()
    assert outcome.status == 0, outcome
    assert outcome.report["readiness"] == "partial"
    assert outcome.report["hold"]["reason"] == "asked", "not the deadline"
    assert "nobody listens on *:8443 after the command" in outcome.report["warnings"]
    assert result.failures == 0, result.summary()


def test_kill_returns_before_the_old_one_is_gone(lab: ClientServer, simple: SimpleService) -> None:
    """Its supervisor starts it anew; unchanged listeners are not taken for a reload."""
    supervisor = f"while [ -d /proc/{simple.pid} ] && grep -qs '^State:[[:space:]]*[^ZX[:space:]]' "
    supervisor += f"/proc/{simple.pid}/status; do sleep 0.01; done; sleep 0.8; "
    lab.server.popen(["sh", "-c", supervisor + simple.start_argv()[2]])
    with Load(lab.client, simple.targets(lab), rate_per_s=200) as load:
        old = simple.pid
        outcome = shell.wrap(lab.server, [], ["kill", "-TERM", str(old)])
        wait_until(lambda: simple.pid != old, 10, "the new one listens")
        result = load.stop()
    assert outcome.status == 0, outcome
    assert outcome.report["readiness"] == "replaced"
    assert result.failures == 0, result.summary()


def test_a_caller_that_ignores_sigchld(lab: ClientServer, simple: SimpleService) -> None:
    restart = simple.directory / "restart"
    restart.write_text("#!/bin/sh\n" + simple.restart_argv("--delay", "0.3")[2])
    restart.chmod(0o755)
    with Load(lab.client, simple.targets(lab), rate_per_s=200) as load:
        line = f'trap "" CHLD; exec {_WRAP} -p 8080 -- {restart}'
        done = lab.server.run(["bash", "-c", line], check=False, timeout_s=30)
        result = load.stop()
    assert done.returncode == 0, done.stderr
    assert result.failures == 0, result.summary()


def test_a_standard_error_that_nobody_reads(
    lab: ClientServer, simple: SimpleService, tmp_path: Path
) -> None:
    for options, command, status in (
        ("-p 9999,8080 --settle 0", f"touch {tmp_path}/ran", 0),
        ("-p 8080", "sh -c 'exit 3'", 3),
        ("-p 8080 --max-hold 300ms --require-new --settle 0", "true", 124),
        ("-p eighty", "true", 125),
    ):
        line = f"({_WRAP} {options} -- {command}; echo $? >&3) 2>&1 | sleep 0"
        done = lab.server.run(["bash", "-c", f"exec 3>&1; {line}"], timeout_s=30)
        assert done.stdout.strip() == str(status), (options, command)
    assert (tmp_path / "ran").exists()


def test_a_standard_output_that_nobody_reads(lab: ClientServer, simple: SimpleService) -> None:
    for verb, status in (("status", 0), ("doctor --json", 0), ("--help", 0)):
        line = f"exec 3>&1; ({' '.join(shell.SYNPLUG)} {verb}; echo $? >&3) | true"
        done = lab.server.run(["bash", "-c", line])
        assert (done.stdout.strip(), done.stderr) == (str(status), "")


def test_a_read_only_run(lab: ClientServer, simple: SimpleService, tmp_path: Path) -> None:
    """As under systemd's ProtectSystem=strict: one line, and best effort still runs the command."""
    proof = tmp_path / "ran"
    for options, status in (("", 125), ("--best-effort", 0)):
        line = "mount -o remount,ro,bind /run /run 2>/dev/null || mount -o remount,ro /run; "
        line += f"exec {_WRAP} {options} -p 8080 -- touch {proof}"
        done = lab.server.run(["unshare", "-m", "sh", "-c", line], check=False)
        assert done.returncode == status, done.stderr
        assert "Read-only file system" in done.stderr
        assert "Traceback" not in done.stderr
        assert proof.exists() is (status == 0)


def test_a_report_that_cannot_be_written_does_not_hide_the_commands_status(
    lab: ClientServer, simple: SimpleService
) -> None:
    for command, status in (("sh -c 'exit 3'", 3), ("true", 125)):
        line = f"{_WRAP} -p 8080 --settle 0 --json /dev/full -- {command}"
        done = lab.server.run(["bash", "-c", line], check=False)
        assert done.returncode == status
        assert "could not be written: No space left on device" in done.stderr
        assert "command   status" in done.stderr, "the report for people is there all the same"


def test_the_commands_environment_is_the_callers(lab: ClientServer, simple: SimpleService) -> None:
    line = f"env -i PATH=$PATH {_WRAP} -q -p 8080 --settle 0 -- env"
    done = lab.server.run(["bash", "-c", line])
    names = {entry.partition("=")[0] for entry in done.stdout.splitlines()}
    assert names <= {"PATH"}, "Python sets LC_CTYPE for itself (PEP 538)"


def test_a_script_without_an_interpreter_line(
    lab: ClientServer, simple: SimpleService, tmp_path: Path
) -> None:
    script = tmp_path / "script"
    script.write_text("exit 6\n")
    script.chmod(0o755)
    assert shell.wrap(lab.server, ["-p", "8080"], [str(script)]).status == 6


def test_a_term_after_the_commands_end_is_no_success(
    lab: ClientServer, simple: SimpleService
) -> None:
    """A service that takes long to come back, and an operator who gives up."""
    run = shell.start(
        lab.server, "wrap", "--json", "-", "-p", "8080", "--", *simple.restart_argv("--delay", "30")
    )
    wait_until(lambda: not simple.listens(), 10, "the old one is gone")
    wait_until(lambda: not _has_children(run.pid), 10, "the command has ended")
    run.terminate()
    stdout, stderr = run.communicate(timeout=10)
    assert run.returncode == 128 + 15, stderr
    assert json.loads(stdout)["outcome"] == "interrupted"


def _has_children(pid: int) -> bool:
    """Whether a shell or sleep of the command is still there; the keeper always is."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return len(children) > 1
