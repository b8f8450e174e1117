"""How a run ends, what it says, and that nothing is held afterwards."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from netlab.load import Load
from netlab.program import wait_until
from netlab.topology import ClientServer
from tests.integration import shell
from tests.integration.conftest import SimpleService
from tests.integration.connect import connecting, connects_within, holds_in_force


def test_a_command_that_fails_passes_its_status_and_releases_at_once(
    lab: ClientServer, simple: SimpleService
) -> None:
    with Load(lab.client, simple.targets(lab), rate_per_s=200) as load:
        outcome = shell.wrap(lab.server, ["-p", "8080"], ["sh", "-c", "exit 7"])
        result = load.stop()
    assert outcome.status == 7
    assert outcome.report["outcome"] == "command-failed"
    assert outcome.report["command"]["status"] == 7
    assert outcome.report["hold"]["duration_s"] < 1.0
    assert result.failures == 0, result.summary()


def test_a_command_killed_by_a_signal_is_reported_as_a_shell_does(
    lab: ClientServer, simple: SimpleService
) -> None:
    outcome = shell.wrap(lab.server, ["-p", "8080"], ["sh", "-c", "kill -9 $$"])
    assert outcome.status == 128 + signal.SIGKILL


def test_a_service_that_never_binds_is_released_at_the_deadline(
    lab: ClientServer, simple: SimpleService
) -> None:
    stop = ["sh", "-c", f"kill {simple.pid}"]
    outcome = shell.wrap(lab.server, ["-p", "8080", "--max-hold", "700ms"], stop)
    assert outcome.status == 124
    report = outcome.report
    assert report["outcome"] == "deadline"
    assert report["hold"]["reason"] == "deadline"
    assert 0.7 <= report["hold"]["duration_s"] < 1.2
    assert "had no listener in time" in " ".join(report["warnings"])


def test_ready_timeout_ends_the_hold_before_the_deadline(
    lab: ClientServer, simple: SimpleService
) -> None:
    stop = ["sh", "-c", f"kill {simple.pid}"]
    outcome = shell.wrap(lab.server, ["-p", "8080", "--ready-timeout", "300ms"], stop)
    assert outcome.status == 124
    assert outcome.report["hold"]["duration_s"] < 1.0


def test_a_command_that_cannot_be_found_or_executed_never_holds(
    lab: ClientServer, simple: SimpleService, tmp_path: Path
) -> None:
    missing = shell.wrap(lab.server, ["-p", "8080"], ["no-such-command-anywhere"])
    assert missing.status == 127
    assert missing.report["hold"] is None
    assert "not found" in missing.stderr
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\n")
    denied = shell.wrap(lab.server, ["-p", "8080"], [str(plain)])
    assert denied.status == 126
    assert denied.report["hold"] is None
    assert "cannot be executed" in denied.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-p", "eighty"], "'eighty' is not an endpoint"),
        (["-p", "0"], "'0' is not an endpoint"),
        (["-p", "1.2.3.4:99999"], "is not an endpoint"),
        (["-p", "80", "--max-hold", "soon"], "'soon' is not a duration"),
        (["-p", "80", "--max-hold", "0"], "more than 0"),
        (["-p", "80", "--max-held", "-3"], "--max-held"),
        (["-p", "80", "--max-hodl", "3"], "did you mean --max-hold?"),
        (["-p", "80", "--on-full", "explode"], "'explode'"),
        (["-p", "80", "--ready-http", "localhost:80"], "is not a URL"),
        (["-p", "80", "--netns", "nowhere"], "no network namespace 'nowhere'"),
        (["-p", "80", "--json", "/no/such/folder/report"], "/no/such/folder/report"),
        (["--pidfile", "/no/such/pid"], "pidfile /no/such/pid"),
        (["--unit", "no-such-unit"], "no-such-unit"),
        (["--pid", "4194000"], "4194000"),
    ],
)
def test_bad_options_are_named_and_change_nothing(
    lab: ClientServer, tmp_path: Path, options: list[str], words: str
) -> None:
    proof = tmp_path / "ran"
    outcome = shell.run(lab.server, "wrap", *options, "--", "touch", str(proof))
    assert outcome.status == 125
    assert words in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not proof.exists()


def test_without_a_command_or_a_verb(lab: ClientServer) -> None:
    for argv in (["wrap", "-p", "80"], ["wrap", "-p", "80", "--"], [], ["explode"]):
        outcome = shell.run(lab.server, *argv)
        assert outcome.status == 125, argv
        assert len(outcome.stderr.strip().splitlines()) == 1, outcome.stderr


def test_without_the_capability_it_is_named_and_nothing_runs(
    lab: ClientServer, simple: SimpleService, tmp_path: Path
) -> None:
    proof = tmp_path / "ran"
    argv = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "--"]
    argv += [*shell.SYNPLUG, "wrap", "-p", "8080", "--", "touch", str(proof)]
    done = lab.server.run(argv, check=False)
    assert done.returncode == 125
    assert "CAP_NET_ADMIN" in done.stderr
    assert not proof.exists()


@pytest.mark.parametrize("volume", ["--no-quiet", "--quiet"])
def test_best_effort_runs_the_command_without_a_hold(
    lab: ClientServer, simple: SimpleService, tmp_path: Path, volume: str
) -> None:
    proof = tmp_path / "ran"
    argv = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "--"]
    words = ["wrap", volume, "--best-effort", "-p", "8080", "--", "touch", str(proof)]
    done = lab.server.run([*argv, *shell.SYNPLUG, *words], check=False)
    assert done.returncode == 0
    assert "nothing is held" in done.stderr
    assert proof.exists()


def test_a_signal_ends_a_release_that_gets_nowhere(
    lab: ClientServer, simple: SimpleService
) -> None:
    """The new listener has room for a few, and accepts nobody: pacing would go on for ever."""
    (_, _, line) = simple.restart_argv("--backlog", "2", "--lazy", "60")
    options = ["-p", "8080", "--max-hold", "30s", "--quiesce", "0"]
    run = shell.start(
        lab.server, "wrap", *options, "--", "sh", "-c", f"sleep 2\n{line}\nexec sleep 60"
    )
    wait_until(lambda: bool(holds_in_force(lab.server)), 15, "it holds")
    clients = [connecting(lab.client, (lab.server_ipv4, 8080), 20) for _ in range(12)]
    wait_until(lambda: _accept_queue(lab) == 2, 15, "the new listener is full")
    assert holds_in_force(lab.server), "it still paces"
    began_s = time.monotonic()
    run.send_signal(signal.SIGTERM)
    _, stderr = run.communicate(timeout=10)
    assert time.monotonic() - began_s < 2.0
    assert run.returncode == 128 + signal.SIGTERM, stderr
    for client in clients:
        client.kill()
        client.communicate()


@pytest.mark.parametrize(
    "options", [["--pidfile", "stale"], ["--unit", "nosuch"]], ids=lambda words: words[0]
)
def test_best_effort_runs_the_command_for_a_service_that_is_down(
    lab: ClientServer, tmp_path: Path, options: list[str]
) -> None:
    proof = tmp_path / "ran"
    if options[1] == "stale":
        (tmp_path / "pid").write_text("4194303\n")
        options = [options[0], str(tmp_path / "pid")]
    refused = shell.run(lab.server, "wrap", *options, "--", "touch", str(proof))
    assert refused.status == 125
    assert not proof.exists()
    done = shell.run(lab.server, "wrap", "--best-effort", *options, "--", "touch", str(proof))
    assert done.status == 0
    assert "nothing is held" in done.stderr
    assert proof.exists()


def test_what_a_check_has_started_ends_with_it(
    lab: ClientServer, simple: SimpleService, tmp_path: Path
) -> None:
    options = ["-p", "8080", "--check", f"sh -c 'sleep 60 & echo $! >{tmp_path}/child; wait'"]
    run = shell.start(lab.server, "wrap", *options, "--", "true")
    wait_until((tmp_path / "child").exists, 10, "the check runs")
    wait_until(lambda: bool((tmp_path / "child").read_text().strip()), 5, "its pid is there")
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=10)
    assert run.returncode == 128 + signal.SIGTERM
    child = Path(f"/proc/{int((tmp_path / 'child').read_text())}/stat")
    wait_until(
        lambda: not child.exists() or child.read_text().rpartition(")")[2].split()[0] in "ZX",
        5,
        "what the check started has ended",
    )


def test_status_of_somebody_elses_holds_is_no_untruth(
    lab: ClientServer, simple: SimpleService
) -> None:
    """Root without the capabilities that override permissions, and another user's folder."""
    hold = ["hold", "-p", "8080", "--name", "web", "--max-hold", "9s"]
    assert shell.run(lab.server, *hold).status == 0
    line = "chown 65534 /run/synplug/*; exec setpriv --bounding-set=-all --inh-caps=-all "
    line += f"{' '.join(shell.SYNPLUG)} status"
    seen = lab.server.run(["sh", "-c", line], check=False)
    lab.server.run(["sh", "-c", "chown 0 /run/synplug/*"])
    assert seen.returncode == 125, seen
    assert "cannot be read" in seen.stderr or "belongs to user 65534" in seen.stderr
    assert shell.run(lab.server, "release", "--name", "web").status == 0


def test_nothing_inferred_lists_who_listens(lab: ClientServer, simple: SimpleService) -> None:
    outcome = shell.run(lab.server, "wrap", "--", "./restart-everything")
    assert outcome.status == 125
    assert re.search(rf"-p 8080  python\S* \(pid {simple.pid}\)", outcome.stderr)
    assert "-p" in outcome.stderr


def test_a_failing_check_keeps_the_command_from_running(
    lab: ClientServer, simple: SimpleService, tmp_path: Path
) -> None:
    proof = tmp_path / "ran"
    options = ["-p", "8080", "--check", "sh -c 'echo line 3: unknown keyword >&2; exit 1'"]
    outcome = shell.wrap(lab.server, options, ["touch", str(proof)])
    assert outcome.status == 125
    assert "line 3: unknown keyword" in outcome.stderr
    assert outcome.report["hold"] is None
    assert not proof.exists()
    good = shell.wrap(lab.server, ["-p", "8080", "--check", "true"], ["touch", str(proof)])
    assert good.status == 0
    assert proof.exists()


def test_the_report_is_never_mixed_with_the_commands_output(
    lab: ClientServer, simple: SimpleService, tmp_path: Path
) -> None:
    noise = ["sh", "-c", "echo noise; echo more noise >&2"]
    outcome = shell.wrap(lab.server, ["-p", "8080"], noise)
    assert outcome.report["schema"] == "synplug.report/1"
    assert "noise\n" in outcome.stderr
    file = tmp_path / "report.json"
    file.write_text("x" * 10_000)
    done = shell.run(lab.server, "wrap", "-q", "-p", "8080", "--json", str(file), "--", *noise)
    assert done.stdout == "noise\n"
    assert done.stderr == "more noise\n", "quiet means quiet where all went well"
    assert json.loads(file.read_text())["exit_code"] == 0


def test_closed_standard_streams_stay_closed_for_the_command(
    lab: ClientServer, simple: SimpleService, tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    line = f"exec {' '.join(shell.SYNPLUG)} wrap -p 8080 --settle 0 -- "
    look = ["sh", "-c", f"ls /proc/$$/fd > {seen}"]
    done = lab.server.run(["sh", "-c", f'{line} "$@" <&- 2>&-', "sh", *look], check=False)
    assert done.returncode == 0
    assert done.stdout == "", "the report must not go where the command's output goes"
    assert not {"0", "2"} & set(seen.read_text().split())


def test_what_the_command_inherits(lab: ClientServer, simple: SimpleService) -> None:
    """Environment, folder, descriptors, mask and capabilities, with and without synplug."""
    # The state is grep's own: a shell blocks signals while it waits for its child.
    state = "grep -E 'SigBlk|SigCgt|Cap' /proc/self/status"
    look = ["sh", "-c", f"env | sort; pwd; ls /proc/$$/fd; {state}"]
    plain = lab.server.run(look)
    wrapped = shell.run(lab.server, "wrap", "-p", "8080", "--settle", "0", "--", *look)
    assert wrapped.stdout == plain.stdout


def test_quiet_is_loud_on_failure(lab: ClientServer, simple: SimpleService) -> None:
    outcome = shell.run(lab.server, "wrap", "-q", "-p", "8080", "--", "false")
    assert outcome.status == 1
    assert "the command failed" in outcome.stderr


def test_dry_run_says_what_it_would_do_and_does_not(
    lab: ClientServer, simple: SimpleService, tmp_path: Path
) -> None:
    proof = tmp_path / "ran"
    outcome = shell.run(lab.server, "wrap", "-n", "-p", "8080", "--", "touch", str(proof))
    assert outcome.status == 0
    assert "queue num N bypass" in outcome.stdout
    assert f"touch {proof}" in outcome.stdout
    assert "release (paced)" in outcome.stdout
    assert not proof.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_goes_to_the_command_and_ends_the_hold(
    lab: ClientServer, simple: SimpleService, tmp_path: Path, number: signal.Signals
) -> None:
    ready, got = tmp_path / "ready", tmp_path / "got"
    trap = f"trap 'touch {got}; exit 5' {number.name[3:]}; touch {ready}; "
    trap += "while :; do sleep 0.01; done"
    run = shell.start(lab.server, "wrap", "--json", "-", "-p", "8080", "--", "sh", "-c", trap)
    wait_until(ready.exists, 10, "the command runs")
    assert holds_in_force(lab.server)
    run.send_signal(number)
    stdout, stderr = run.communicate(timeout=10)
    assert run.returncode == 5, stderr
    assert got.exists()
    assert json.loads(stdout)["outcome"] == "interrupted"
    assert connects_within(lab.client, (lab.server_ipv4, 8080), 0.5)


def test_a_foreground_command_is_released_when_ready_and_seen_to_its_end(
    lab: ClientServer, simple: SimpleService
) -> None:
    """``wrap -- ./serve`` where the command is the service: the hold ends, wrap stays."""
    server = simple.start_argv()[2].replace("setsid ", "exec ").replace(" &", "")
    foreground = f"{simple.stop_line()}\n{server}"
    run = shell.start(lab.server, "wrap", "-p", "8080", "--", "sh", "-c", foreground)
    old = simple.pid
    wait_until(lambda: simple.pidfile.exists() and simple.pid != old, 10, "new one listens")
    wait_until(lambda: not holds_in_force(lab.server), 10, "the hold has ended")
    assert run.poll() is None
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=10) == 0
    assert isinstance(run, subprocess.Popen)
    run.communicate()


def _accept_queue(lab: ClientServer) -> int:
    """How many connections the listener has not accepted yet."""
    lines = lab.server.run(["ss", "-Hltn", "sport = :8080"]).stdout.splitlines()
    return sum(int(line.split()[1]) for line in lines)
