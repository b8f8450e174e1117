"""``synplug supervise``: one parent, changing generations, and nobody lost or orphaned."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from signal import Signals

import pytest

from netlab.load import Load
from netlab.load_result import LoadResult
from netlab.program import Program, wait_until
from netlab.topology import ClientServer
from synplug.handover.timeline import Step, SwapStep
from tests.integration import shell
from tests.integration.conftest import SERVER
from tests.integration.connect import connects_within, is_refused
from tests.integration.fault_machine import LAUNCHER
from tests.integration.fault_points import Fault, Party
from tests.integration.supervised import Supervised, supervised

RATE_PER_S = 300
MODEST_RATE_PER_S = 200
LEAST_SERVED = 20
#: No text in any encoding, and what a terminal would take for a command.
SAID = b"\0\xff\xfe\x1b[31m\r\n"


@pytest.fixture
def app(lab: ClientServer, tmp_path: Path) -> Iterator[Supervised]:
    with supervised(lab, tmp_path) as made:
        yield made


def test_ten_reloads_under_load_with_bad_ones_among_them(app: Supervised) -> None:
    targets = [(address, 8080) for address in app.lab.server_addresses]
    with app.start("--ready-timeout", "3s", "--linger", "2s"):
        with Load(app.lab.client, targets, rate_per_s=RATE_PER_S) as load:
            for _ in range(5):
                assert app.reload().status == 0, app.program.output
            before = app.pid(6)
            descriptors = app.descriptors()
            for line in ("exit 7", "exec sleep 100"):
                app.serve_with(line)
                failed = app.reload()
                assert failed.status == 125, failed
                assert "generation 6 serves on" in failed.stderr
            app.serve(port=8081)
            failed = app.reload()
            assert failed.status == 125
            assert "does not listen on" in failed.stderr
            assert app.generations() == {before}, "a bad generation was left"
            app.serve()
            for _ in range(5):
                assert app.reload().status == 0, app.program.output
            result = load.stop()
        wait_until(lambda: len(app.generations()) == 1, 10, "old generations have ended")
        assert app.zombies() == []
        assert app.descriptors() <= descriptors, "each reload leaves a descriptor open"
        assert app.program.end(signal.SIGTERM) == 0, app.program.output
        print(result.summary(), re.findall(r"for (\d+ ms) by", app.program.output))
    assert result.failures == 0, result.summary()
    assert result.retransmitted == 0, result.summary()


def test_the_control_without_a_hold_loses_somebody(app: Supervised) -> None:
    """The same overlap by hand: the old one is told to end while clients are in its queue."""
    lab, server = app.lab, [sys.executable, str(SERVER), "8080", "--reuseport"]
    server += ["--think", "0.005"]
    targets = [(address, 8080) for address in lab.server_addresses]
    endpoint = [("::", 8080)]
    old = Program(lab.server, server, listens_on=endpoint)
    failures = 0
    with old, Load(lab.client, targets, rate_per_s=RATE_PER_S) as load:
        for _ in range(10):
            pids = app.generations()
            with_both = lab.server.popen(server)
            wait_until(lambda: _listeners(lab) == 2, 10, "both stand")
            for pid in pids:
                os.kill(pid, signal.SIGTERM)
            wait_until(lambda: _listeners(lab) == 1, 10, "the old one is gone")
        failures = load.stop().failures
        with_both.terminate()
        with_both.wait()
    assert failures > 0, "the control lost nobody: the test shows nothing"


def test_three_reloads_at_once_are_two_swaps(app: Supervised) -> None:
    """The first begins at once; the others ask for one that begins after them."""
    with app.start("--linger", "1s"):
        with modest_load(app) as load:
            for _ in range(3):
                app.program.send_signal(Signals.SIGHUP)
                _pass_time(0.03)
            wait_until(
                lambda: app.manager.states().count("READY") == 3, 15, "two reloads have ended"
            )
            result = load.stop()
        assert app.reload().status == 0
        assert app.manager.states() == ["READY", *["RELOADING", "READY"] * 3]
        assert app.program.end(signal.SIGTERM) == 0
    assert result.failures == 0, result.summary()


def test_the_json_report_is_that_of_the_newest_swap(app: Supervised) -> None:
    path = app.directory / "report.json"
    with app.start("--json", str(path)):
        assert path.read_text() == "", "nothing was swapped yet"
        pid = app.pid(1)
        assert app.reload().status == 0
        first = json.loads(path.read_text())
        assert (first["outcome"], first["old_generation"]["pid"]) == ("ready", pid)
        app.serve_with("exit 7")
        assert app.reload().status == 125
        second = json.loads(path.read_text())
        assert (second["outcome"], second["exit_code"]) == ("command-failed", 7)
        assert second["old_generation"]["fate"] == "serving"
        assert app.program.end(signal.SIGTERM) == 0


def test_with_a_dash_only_reports_come_on_standard_output(app: Supervised) -> None:
    app.serve_with(f"echo said; exec sh {app.good_script()} $1")
    argv = [*shell.SYNPLUG, "supervise", "--name", "app", "--json", "-", "--", "sh"]
    child = subprocess.Popen(
        app.lab.server.command([*argv, str(app.script), "{generation}"]),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NOTIFY_SOCKET": str(app.manager.path)},
    )
    wait_until(lambda: "READY" in app.manager.states(), 10, "it serves")
    for _ in range(2):
        assert app.reload().status == 0
    child.terminate()
    reports, said = child.communicate(timeout=10)
    assert [json.loads(line)["outcome"] for line in reports.splitlines()] == ["ready"] * 2
    assert said.splitlines().count("said") == 3


def test_what_the_manager_is_told(app: Supervised) -> None:
    with app.start():
        began_us = time.monotonic_ns() // 1000
        assert app.reload().status == 0
        app.serve_with("exit 7")
        assert app.reload().status == 125
        wait_until(
            lambda: sum("WATCHDOG" in one for one in app.manager.heard) >= 2, 5, "signs of life"
        )
        assert app.program.end(signal.SIGTERM) == 0
    assert app.manager.states() == ["READY", *["RELOADING", "READY"] * 2, "STOPPING"]
    for name in ("READY", "RELOADING", "STOPPING", "WATCHDOG"):
        assert {one[name] for one in app.manager.heard if name in one} == {"1"}, name
    reloading = [one for one in app.manager.heard if "RELOADING" in one]
    assert began_us < int(reloading[0]["MONOTONIC_USEC"]) < time.monotonic_ns() // 1000
    ready = [one["STATUS"] for one in app.manager.heard if "READY" in one]
    assert ready[:2] == ["generation 1 serves", "generation 2 serves"]
    assert "generation 2 serves; the last reload failed" in ready[2]


def test_what_a_generation_says_passes_through_untouched(app: Supervised) -> None:
    """Byte for byte, on each stream of its own."""
    said = "".join(f"\\{byte:03o}" for byte in SAID)
    app.serve_with(f"printf '{said}1'; printf '{said}2' >&2; exit 7")
    argv = [*shell.SYNPLUG, "supervise", "--name", "app", "--", "sh", str(app.script), "1"]
    done = subprocess.run(app.lab.server.command(argv), capture_output=True, check=False)
    assert done.returncode == 7
    assert done.stdout == SAID + b"1"
    assert done.stderr.startswith(SAID + b"2")


def test_generations_have_their_number_and_not_the_managers_socket(app: Supervised) -> None:
    with app.start():
        environment = Path(f"/proc/{app.pid(1)}/environ").read_bytes().split(b"\0")
        assert b"SYNPLUG_GENERATION=1" in environment
        assert not [one for one in environment if one.startswith((b"NOTIFY_", b"WATCHDOG_"))]
        assert app.program.end(signal.SIGTERM) == 0


def test_a_generation_that_dies_ends_the_supervisor_with_its_status(app: Supervised) -> None:
    with app.start(), modest_load(app) as load:
        assert app.reload().status == 0
        pid = app.pid(2)
        crashed_ns = time.monotonic_ns()
        os.kill(pid, signal.SIGSEGV)
        assert app.program.wait() == 128 + signal.SIGSEGV
        result = load.stop()
    assert_none_failed_before(crashed_ns, result)


def test_one_that_dies_while_the_next_one_starts_is_replaced_by_it(app: Supervised) -> None:
    """Nobody listens for that while; the supervisor goes on as soon as somebody can."""
    with app.start("--ready-timeout", "20s"):
        first = app.pid(1)
        app.serve_with(f"sleep 0.5; exec sh {app.good_script()} $1")
        app.program.send_signal(Signals.SIGHUP)
        wait_until(lambda: len(app.generations()) == 2, 10, "the next one is starting")
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: "READY" in app.manager.states()[1:], 15, "the reload has ended")
        assert connects_within(app.lab.client, (app.lab.server_ipv4, 8080), 2.0)
        assert app.program.end(signal.SIGTERM) == 0, app.program.output


def test_one_that_dies_while_the_next_one_fails_ends_the_supervisor(app: Supervised) -> None:
    with app.start("--ready-timeout", "1s"):
        app.serve_with("exec sleep 100")
        app.program.send_signal(Signals.SIGHUP)
        wait_until(lambda: len(app.generations()) == 2, 10, "the next one is starting")
        os.kill(app.pid(1), signal.SIGSEGV)
        assert app.program.wait() == 128 + signal.SIGSEGV


def test_a_supervisor_that_is_killed_leaves_its_generation_serving(app: Supervised) -> None:
    """As the manual says; the init system ends what is left in the control group."""
    with app.start():
        app.program.end(signal.SIGKILL)
        assert connects_within(app.lab.client, (app.lab.server_ipv4, 8080), 2.0)
        assert shell.run(app.lab.server, "reload", "app").status == 3
        assert shell.run(app.lab.server, "recover").status == 0
        os.kill(app.pid(1), signal.SIGTERM)
        wait_until(lambda: not app.generations(), 5, "it is gone")


def test_setpriv_ends_a_generation_with_its_supervisor(app: Supervised) -> None:
    """What docs/envoy.md says of PR_SET_PDEATHSIG, for those who run it without an init system."""
    with app.start(before=["setpriv", "--pdeathsig", "TERM"]):
        assert app.reload().status == 0
        app.program.end(signal.SIGKILL)
        wait_until(lambda: not app.generations(), 5, "it is gone")
        assert is_refused(app.lab.client, (app.lab.server_ipv4, 8080))
        assert shell.run(app.lab.server, "recover").status == 0


def test_a_first_generation_that_does_not_come_up(app: Supervised) -> None:
    app.serve_with("exit 7")
    outcome = shell.run(
        app.lab.server, "supervise", "--name", "app", "--", "sh", str(app.script), "1"
    )
    assert outcome.status == 7


def test_what_a_check_says_is_nothing_that_a_terminal_obeys(app: Supervised) -> None:
    check = app.directory / "check"
    check.write_text(r"printf '\033]0;title\007\033[31mred'; exit 1")
    argv = ["supervise", "--name", "app", "--ready-cmd", f"sh {check}", "--ready-timeout", "0.5s"]
    outcome = shell.run(app.lab.server, *argv, "--", "sh", str(app.script), "1")
    assert outcome.status == 124
    assert r"\x1b]0;title\x07\x1b[31mred" in outcome.stderr
    assert "\x1b" not in outcome.stderr


def test_sigusr1_goes_to_the_generations_and_ends_nothing(app: Supervised) -> None:
    """By it they open their log files anew; hot-restarter.py passes it on, too."""
    heard = app.directory / "heard"
    app.serve_with(f"trap 'echo $1 >>{heard}' USR1; sh {app.good_script()} $1 & wait; wait")
    with app.start():
        assert app.reload().status == 0
        heard.unlink(missing_ok=True)
        app.program.send_signal(Signals.SIGUSR1)
        wait_until(heard.exists, 5, "a generation has heard it")
        assert heard.read_text() == "2\n"
        assert connects_within(app.lab.client, (app.lab.server_ipv4, 8080), 2.0)
        os.kill(app.pid(2), signal.SIGTERM)  # the shell waits for it
        assert app.program.wait() == 0


@pytest.mark.parametrize("number", [Signals.SIGTERM, Signals.SIGINT, Signals.SIGQUIT])
def test_a_signal_during_a_swap_ends_everything(app: Supervised, number: Signals) -> None:
    with app.start("--ready-timeout", "20s"), modest_load(app) as load:
        app.serve_with("exec sleep 100")
        app.program.send_signal(Signals.SIGHUP)
        wait_until(lambda: len(app.generations()) == 2, 10, "the new generation is there")
        _pass_time(0.2)
        ended_ns = time.monotonic_ns()
        assert app.program.end(number) == 0, app.program.output
        result = load.stop()
    assert_none_failed_before(ended_ns, result)


def test_a_signal_reaches_the_serving_one_though_the_new_one_is_deaf(app: Supervised) -> None:
    """It does not wait until the swap has given up, and that takes none of --kill-after."""
    with app.start("--ready-timeout", "20s", "--kill-after", "60s"):
        first = app.pid(1)
        app.serve_with("trap '' TERM; sleep 100; sleep 100")
        app.program.send_signal(Signals.SIGHUP)
        wait_until(lambda: len(app.generations()) == 2, 10, "the new generation is there")
        app.program.send_signal(Signals.SIGTERM)
        wait_until(lambda: first not in app.generations(), 2, "the old one has heard it")
        assert app.program.returncode is None, "the new one is waited for"
        assert app.program.wait() == 0, app.program.output


@pytest.mark.parametrize("step", [Step.HOLD, Step.DRAIN, SwapStep.STOP, Step.RELEASE])
def test_a_signal_at_a_step_under_the_hold_ends_everything(
    app: Supervised, step: Step | SwapStep
) -> None:
    """Nobody is left behind, and nothing held: the lab looks."""
    facts = app.directory / "facts"
    accident = [f"swap {step.value}", Party.ORCHESTRATOR.value, Fault.SIGTERM.value, str(facts)]
    with app.start("--linger", "1s", synplug=[sys.executable, str(LAUNCHER), *accident]):
        app.program.send_signal(Signals.SIGHUP)
        assert app.program.wait() == 0, app.program.output
    assert "fault" in facts.read_text(), "it struck"
    assert not app.generations()


def test_a_daemon_that_leaves_its_first_process_is_followed(app: Supervised) -> None:
    """Orphans come to the supervisor, which knows whose they are, and collects them."""
    server = f"{sys.executable} {SERVER} 8080 --reuseport"
    app.serve_with(f"setsid {server} --pidfile {app.directory}/pid-$1 </dev/null &")
    with app.start("--linger", "1s"):
        for _ in range(2):
            assert app.reload().status == 0, app.program.output
        wait_until(lambda: app.generations() == {app.pid(3)}, 10, "only the last one lives")
        wait_until(lambda: not app.zombies(), 5, "all are collected")
        assert app.program.end(signal.SIGTERM) == 0


def test_a_daemon_that_dies_ends_the_supervisor_with_its_status(app: Supervised) -> None:
    """Not with that of its first process, which has succeeded."""
    server = f"{sys.executable} {SERVER} 8080 --reuseport"
    app.serve_with(f"setsid {server} --pidfile {app.directory}/pid-$1 </dev/null &")
    with app.start():
        assert app.reload().status == 0, app.program.output
        os.kill(app.pid(2), signal.SIGSEGV)
        assert app.program.wait() == 128 + signal.SIGSEGV


def test_a_daemon_that_dies_ends_the_supervisor_though_a_helper_of_it_lives(
    app: Supervised,
) -> None:
    server = f"{sys.executable} {SERVER} 8080 --reuseport --pidfile {app.directory}/pid-$1"
    app.serve_with(f"setsid {server} </dev/null & setsid sleep 321 </dev/null &")
    with app.start():
        assert app.reload().status == 0, app.program.output
        os.kill(app.pid(2), signal.SIGSEGV)
        assert app.program.wait() == 128 + signal.SIGSEGV


def test_what_a_check_leaves_behind_is_collected(app: Supervised) -> None:
    with app.start("--check", "setsid -f sleep 0.2"):
        assert app.reload().status == 0, app.program.output
        wait_until(lambda: app.generations() == {app.pid(2)}, 5, "it has ended")
        wait_until(lambda: not app.zombies(), 5, "it is collected")
        assert app.program.end(signal.SIGTERM) == 0


def test_a_reload_that_fails_ends_nothing_of_the_one_that_serves(app: Supervised) -> None:
    """Even what that one starts, in a session of its own, while the new one is about to fail."""
    go = app.directory / "go"
    helper = f"while ! test -e {go}; do sleep 0.02; done; exec setsid -f sleep 321"
    app.serve_with(f"({helper}) & exec sh {app.good_script()} $1")
    with app.start("--ready-timeout", "2s", "--linger", "1s", "--kill-after", "1s"):
        app.serve_with("exec sleep 100")
        app.program.send_signal(Signals.SIGHUP)
        wait_until(lambda: b"100" in _words(app), 10, "the next one is starting")
        go.touch()
        wait_until(lambda: b"321" in _words(app), 2, "the old one's helper is there")
        wait_until(lambda: b"100" not in _words(app), 15, "the reload has failed")
        wait_until(lambda: "READY" in app.manager.states()[1:], 15, "and that is over")
        assert b"321" in _words(app)
        assert app.program.end(signal.SIGTERM) == 0, app.program.output
        assert b"321" not in _words(app), "it goes with its own generation"


def modest_load(app: Supervised) -> Load:
    targets = [(address, 8080) for address in app.lab.server_addresses]
    return Load(app.lab.client, targets, rate_per_s=MODEST_RATE_PER_S)


def assert_none_failed_before(end_ns: int, result: LoadResult) -> None:
    """Whoever waits for an answer at that time may lose it."""
    early = [one for one in result.failed if one.opened_at_ns + one.total_ns < end_ns]
    assert early == [], result.summary()
    assert result.ok >= LEAST_SERVED, f"this shows nothing: {result.summary()}"
    assert result.failures > 0, "the control: nobody serves after it"


def _words(app: Supervised) -> set[bytes]:
    """All arguments of the processes that live in the namespace."""
    return {word for words in app.words().values() for word in words}


def test_a_second_supervisor_of_that_name_is_refused(app: Supervised) -> None:
    with app.start():
        argv = ("supervise", "--name", "app", "--", "true")
        outcome = shell.run(app.lab.server, *argv)
        assert outcome.status == 125
        assert "a supervisor named 'app' runs" in outcome.stderr
        assert connects_within(app.lab.client, (app.lab.server_ipv4, 8080), 2.0)
        assert app.program.end(signal.SIGTERM) == 0
    assert shell.run(app.lab.server, "reload", "app").status == 3


def _listeners(lab: ClientServer) -> int:
    return len(lab.server.run(["ss", "-Htln", "sport = :8080"]).stdout.splitlines())


def _pass_time(seconds: float) -> None:
    """Signals in the order and at the distance that the test is about."""
    until = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= until, seconds + 5, "some time")
