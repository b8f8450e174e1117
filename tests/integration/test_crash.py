"""Whoever is killed while connections are held: traffic flows again, and nothing is in the way."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from netlab.program import wait_until
from netlab.topology import ClientServer
from tests.document_blocks import block
from tests.integration import shell
from tests.integration.conftest import SimpleService
from tests.integration.connect import connecting, connects_within, holds_in_force

BACKENDS = ["nfqueue", "nfqueue-iptables"]
_FAULTY = Path(__file__).with_name("programs") / "faulty_synplug.py"


@pytest.fixture(params=BACKENDS)
def holding(
    request: pytest.FixtureRequest, lab: ClientServer, simple: SimpleService
) -> Iterator[subprocess.Popen[str]]:
    """A run that holds while its command sleeps; the command is ended afterwards."""
    argv = ["wrap", "--backend", request.param, "--max-hold", "30s", "-p", "8080", "--"]
    run = shell.start(lab.server, *argv, "sleep", "60")
    wait_until(lambda: bool(_children_named(run.pid, "sleep")), 15, "the command runs")
    assert not connects_within(lab.client, (lab.server_ipv4, 8080), 0.2), "nothing is held"
    yield run
    run.kill()
    run.communicate()


def test_the_orchestrator_is_killed(lab: ClientServer, holding: subprocess.Popen[str]) -> None:
    waiting = connecting(lab.client, (lab.server_ipv6, 8080), 10)
    keeper = holds_in_force(lab.server)[0]["keeper"]
    (command,) = _children_named(holding.pid, "sleep")
    holding.kill()
    began_s = time.monotonic()
    assert connects_within(lab.client, (lab.server_ipv4, 8080), 1.0)
    assert time.monotonic() - began_s < 1.0
    assert float(waiting.communicate(timeout=10)[0]) < 2.0, "the keeper lets go, it does not drop"
    wait_until(lambda: not os.path.exists(f"/proc/{keeper}"), 5, "the keeper has ended")
    os.kill(command, signal.SIGTERM)


def test_the_keeper_is_killed(lab: ClientServer, holding: subprocess.Popen[str]) -> None:
    keeper = holds_in_force(lab.server)[0]["keeper"]
    (command,) = _children_named(holding.pid, "sleep")
    os.kill(keeper, signal.SIGKILL)
    assert connects_within(lab.client, (lab.server_ipv4, 8080), 1.0)
    assert holding.poll() is None, "the command is seen to its end"
    os.kill(command, signal.SIGTERM)
    _, stderr = holding.communicate(timeout=10)
    assert holding.returncode == 128 + signal.SIGTERM, "the command's status passes"
    assert "no longer held" in stderr


def test_the_keeper_is_killed_and_the_command_succeeds(
    lab: ClientServer, simple: SimpleService
) -> None:
    run = shell.start(lab.server, "wrap", "-p", "8080", "--", "sleep", "1")
    wait_until(lambda: bool(_children_named(run.pid, "sleep")), 15, "the command runs")
    os.kill(holds_in_force(lab.server)[0]["keeper"], signal.SIGKILL)
    _, stderr = run.communicate(timeout=10)
    assert run.returncode == 125, "a hold that was lost is no success"
    assert "no longer held" in stderr
    assert "status 0" in stderr, "and it is said that the command ran"


def test_both_are_killed(lab: ClientServer, holding: subprocess.Popen[str]) -> None:
    keeper = holds_in_force(lab.server)[0]["keeper"]
    (command,) = _children_named(holding.pid, "sleep")
    watchers = watchers_of(keeper)
    os.kill(keeper, signal.SIGSTOP)  # so that it cannot clean up between the two
    holding.kill()
    holding.wait(timeout=10)  # who cleans up lets it have its locks as long as it lives
    os.kill(keeper, signal.SIGKILL)
    assert connects_within(lab.client, (lab.server_ipv4, 8080), 1.0)
    os.kill(command, signal.SIGTERM)
    if "nfqueue-iptables" in str(holding.args):  # has a watcher, since the kernel leaves a rule
        until_cleaned_up(lab, watchers)
        return
    recovered = shell.run(lab.server, "recover")
    assert recovered.status == 0, recovered
    assert "cleaned up" in recovered.stdout
    assert "no dead run" in shell.run(lab.server, "recover").stdout


def watchers_of(keeper: int) -> list[int]:
    """Descriptors of that keeper's watchers: readable once they have ended, see pidfd_open(2)."""
    return [os.pidfd_open(pid) for pid in _children_named(keeper, "synplug-watcher")]


def until_cleaned_up(lab: ClientServer, watchers: list[int]) -> None:
    """Until that one watcher is done: the last that it removes are its locks and their folder."""
    (watcher,) = watchers
    with os.fdopen(watcher) as ended:
        assert select.select([ended], [], [], 5)[0], "the watcher has not ended"
    assert _entries(lab) == []


def _hold_whose_rule_stays(lab: ClientServer) -> str:
    """Hold, and kill keeper and watcher; the run."""
    options = ["--backend", "nfqueue-iptables", "--name", "web", "--max-hold", "30s"]
    assert shell.run(lab.server, "hold", "-p", "8080", *options).status == 0
    (hold,) = holds_in_force(lab.server)
    (watcher,) = _children_named(hold["keeper"], "synplug-watcher")
    assert os.getsid(watcher) == watcher, "a session of its own"
    os.kill(hold["keeper"], signal.SIGSTOP)  # so that the watcher does not act between the two
    os.kill(watcher, signal.SIGKILL)
    os.kill(hold["keeper"], signal.SIGKILL)
    return str(hold["run_id"])


def test_everything_is_killed(lab: ClientServer, simple: SimpleService) -> None:
    """The watcher, too: then a rule that lets packets pass stays until recover."""
    run_id = _hold_whose_rule_stays(lab)
    assert connects_within(lab.client, (lab.server_ipv4, 8080), 1.0)
    rules = lab.server.run(["iptables-legacy", "-t", "mangle", "-S"]).stdout
    assert "--queue-bypass" in rules
    recovered = shell.run(lab.server, "recover").stdout
    for tool in ("iptables-legacy", "ip6tables-legacy"):
        assert (
            f"chain synplug-{run_id} and what jumps there, in table mangle of {tool}" in recovered
        )


def test_the_readme_s_lines_clear_a_rule_that_stayed(
    lab: ClientServer, simple: SimpleService
) -> None:
    """As they stand there, but for the run; and the same with the other tool."""
    run_id = _hold_whose_rule_stays(lab)
    text = block("README.md", "iptables-legacy -t mangle").replace("1a2b3c4d", run_id)
    for tool in ("iptables-legacy", "ip6tables-legacy"):
        rules = [tool, "-t", "mangle", "-S"]
        assert run_id in lab.server.run(rules).stdout
        lab.server.run(["sh", "-e", "-c", text.replace("iptables-legacy", tool)])
        assert run_id not in lab.server.run(rules).stdout
    assert "cleaned up" in shell.run(lab.server, "recover").stdout, "files alone are left"


@pytest.mark.parametrize("backend", BACKENDS)
def test_another_pid_namespaces_hold_is_no_dead_run(
    lab: ClientServer, simple: SimpleService, backend: str
) -> None:
    """Its keeper's pid is nobody's there."""
    options = ["--backend", backend, "--name", "web", "--max-hold", "30s"]
    assert shell.run(lab.server, "hold", "-p", "8080", *options).status == 0
    apart = ["unshare", "--pid", "--fork", "--mount-proc", *shell.SYNPLUG]
    (seen,) = json.loads(lab.server.run([*apart, "status", "--json"]).stdout)
    assert seen["live"]
    assert "no dead run" in lab.server.run([*apart, "recover"]).stdout
    assert not connects_within(lab.client, (lab.server_ipv4, 8080), 0.2), "it holds on"
    assert shell.run(lab.server, "release", "--name", "web").status == 0


@pytest.fixture(params=["unified"])
def group(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A control group, as a unit or a container has one."""
    made = Path("/sys/fs/cgroup", request.param, "synplug-test")
    made.mkdir(exist_ok=True)
    yield made
    wait_until(lambda: not (made / "cgroup.procs").read_text(), 5, "the group is empty")
    made.rmdir()


_IN_A_GROUP = f"{' '.join(shell.SYNPLUG)} hold -p 8080 --backend nfqueue-iptables --name web"


def test_a_watcher_survives_its_control_group(
    lab: ClientServer, simple: SimpleService, group: Path
) -> None:
    """As by a unit's KillMode=control-group, or cgroup.kill(7)."""
    line = f"echo $$ >{group}/cgroup.procs; exec {_IN_A_GROUP} --max-hold 30s"
    assert "control group" not in lab.server.run(["sh", "-c", line]).stderr
    members = [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
    keeper = holds_in_force(lab.server)[0]["keeper"]
    assert keeper in members
    watchers = watchers_of(keeper)
    (group / "cgroup.kill").write_text("1")
    assert connects_within(lab.client, (lab.server_ipv4, 8080), 1.0)
    until_cleaned_up(lab, watchers)


def test_a_watcher_that_cannot_leave_its_control_group_is_told(
    lab: ClientServer, simple: SimpleService, group: Path
) -> None:
    """With a read-only control group file system, as by ProtectControlGroups=, or a container's."""
    line = f"echo $$ >{group}/cgroup.procs; mount -o remount,bind,ro /sys/fs/cgroup/unified; "
    line += f"exec {_IN_A_GROUP} --max-hold 30s"
    argv = ["unshare", "--mount", "sh", "-c", line]
    said = lab.server.run(argv).stderr
    released = shell.run(lab.server, "release", "--name", "web", "--now", "--json", "-")
    (warning,) = released.report["warnings"]
    assert f"synplug: {warning}" in said.splitlines(), "at once, and in the report"
    assert "iptables chain mangle synplug-" in warning
    assert "synplug recover" in warning
    lab.server.run(argv)
    (group / "cgroup.kill").write_text("1")
    assert connects_within(lab.client, (lab.server_ipv4, 8080), 1.0)
    assert "synplug-" in lab.server.run(["iptables-legacy", "-t", "mangle", "-S"]).stdout
    assert "cleaned up" in shell.run(lab.server, "recover").stdout


@pytest.mark.parametrize("group", ["systemd", "freezer"], indirect=True)
def test_a_watcher_leaves_the_groups_of_version_1_too(
    lab: ClientServer, simple: SimpleService, group: Path
) -> None:
    """Who keeps them kills what is in them; what is frozen cleans up after nobody."""
    line = f"echo $$ >{group}/cgroup.procs; exec {_IN_A_GROUP} --max-hold 30s"
    assert "control group" not in lab.server.run(["sh", "-c", line]).stderr
    keeper = holds_in_force(lab.server)[0]["keeper"]
    assert group.joinpath("cgroup.procs").read_text().split() == [str(keeper)]
    assert len(watchers_of(keeper)) == 1
    assert shell.run(lab.server, "release", "--name", "web").status == 0


@pytest.mark.parametrize(
    "enter",
    [
        "exec unshare --mount --cgroup sh -c "
        '"umount -l /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup; {hold}"',
        'exec unshare --pid --fork --mount-proc sh -c "{hold}; exit"',
    ],
    ids=["a root group of a container", "a PID namespace that ends"],
)
def test_a_watcher_that_cannot_leave_its_container_is_told(
    lab: ClientServer, simple: SimpleService, group: Path, enter: str
) -> None:
    """It may write there, and is not out for that."""
    line = f"echo $$ >{group}/cgroup.procs; {enter.format(hold=f'{_IN_A_GROUP} --max-hold 30s')}"
    said = lab.server.run(["sh", "-c", line]).stderr
    assert "iptables chain mangle synplug-" in said
    assert "synplug recover" in said
    (group / "cgroup.kill").write_text("1")
    assert connects_within(lab.client, (lab.server_ipv4, 8080), 1.0)
    assert "synplug-" in lab.server.run(["iptables-legacy", "-t", "mangle", "-S"]).stdout
    assert "cleaned up" in shell.run(lab.server, "recover").stdout


def _stopped_while_it_removes_the_rest(lab: ClientServer, facts: Path, backend: str) -> int:
    """A keeper, stopped; its run has ended."""
    argv = [sys.executable, str(_FAULTY), "Backend.remove", "keeper", "SIGSTOP", str(facts)]
    lab.server.run([*argv, "wrap", "--backend", backend, "-p", "8080", "--", "true"])
    keeper = int(facts.read_text().split()[3])
    assert "T (stopped)" in Path(f"/proc/{keeper}/status").read_text()
    return keeper


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_keeper_that_is_stopped_while_it_removes_the_rest_blocks_nobody(
    lab: ClientServer, simple: SimpleService, tmp_path: Path, backend: str
) -> None:
    """Nobody may hold meanwhile, so the kernel ends it, and the next run goes on."""
    keeper = _stopped_while_it_removes_the_rest(lab, tmp_path / "facts", backend)
    watchers = watchers_of(keeper)
    assert connects_within(lab.client, (lab.server_ipv4, 8080), 1.0)
    hold = ["hold", "--backend", backend, "-p", "8090", "--name", "next", "--max-hold", "9s"]
    following = shell.run(lab.server, *hold)
    assert following.status == 0, following
    assert shell.run(lab.server, "release", "--name", "next", "--now").status == 0
    wait_until(lambda: not os.path.exists(f"/proc/{keeper}"), 12, "the stopped one has ended")
    if watchers:
        until_cleaned_up(lab, watchers)
    assert "synplug" not in lab.server.run(["nft", "list", "ruleset"]).stdout
    assert shell.run(lab.server, "recover").status == 0


@pytest.mark.parametrize("group", ["freezer"], indirect=True)
def test_a_keeper_that_is_frozen_while_it_removes_the_rest_is_named(
    lab: ClientServer, simple: SimpleService, tmp_path: Path, group: Path
) -> None:
    """Version 1's freezer keeps it from its end, too: who comes then changes nothing."""
    keeper = _stopped_while_it_removes_the_rest(lab, tmp_path / "facts", "nfqueue")
    with _frozen(group, keeper):
        before = lab.server.run(["nft", "list", "ruleset"]).stdout
        refused = shell.run(lab.server, "wrap", "-p", "8080", "--", "touch", str(tmp_path / "ran"))
        assert refused.status == 125
        assert f"pid {keeper}, does not end the removal" in refused.stderr
        assert f"kill -9 {keeper}" in refused.stderr
        assert not (tmp_path / "ran").exists()
        assert lab.server.run(["nft", "list", "ruleset"]).stdout == before
        assert [one["keeper"] for one in _entries(lab)] == [keeper]
        assert connects_within(lab.client, (lab.server_ipv4, 8080), 1.0)
    wait_until(lambda: not os.path.exists(f"/proc/{keeper}"), 5, "it has ended")
    assert shell.run(lab.server, "wrap", "-p", "8080", "--", "true").status == 0


@pytest.mark.parametrize("group", ["freezer"], indirect=True)
def test_a_keeper_that_is_frozen_holds_until_it_is_thawed(
    lab: ClientServer, simple: SimpleService, group: Path
) -> None:
    """The kernel cannot end it before; the run does not wait for it, and says so."""
    options = ["wrap", "--max-hold", "1s", "-p", "8080", "--require-new", "--", "sleep", "60"]
    run = shell.start(lab.server, *options)
    wait_until(lambda: bool(_children_named(run.pid, "sleep")), 15, "the command runs")
    (command,) = _children_named(run.pid, "sleep")
    keeper = holds_in_force(lab.server)[0]["keeper"]
    with _frozen(group, keeper):
        time.sleep(2.0)  # the deadline, and what the kernel gives the keeper after that
        assert not connects_within(lab.client, (lab.server_ipv4, 8080), 0.5)
        os.kill(command, signal.SIGTERM)
        _, stderr = run.communicate(timeout=20)
        assert run.returncode == 128 + signal.SIGTERM
        assert "has not ended: connections may still be held" in stderr
    assert connects_within(lab.client, (lab.server_ipv4, 8080), 0.5)
    assert shell.run(lab.server, "recover").status == 0


@pytest.mark.parametrize("group", ["unified"], indirect=True)
def test_a_keeper_that_is_frozen_by_version_2_is_ended_after_the_deadline(
    lab: ClientServer, simple: SimpleService, group: Path
) -> None:
    options = ["-p", "8080", "--name", "web", "--max-hold", "1s"]
    assert shell.run(lab.server, "hold", *options).status == 0
    keeper = holds_in_force(lab.server)[0]["keeper"]
    (group / "cgroup.procs").write_text(str(keeper))
    (group / "cgroup.freeze").write_text("1")
    wait_until(lambda: "frozen 1" in (group / "cgroup.events").read_text(), 1, "it is frozen")
    waiting = connecting(lab.client, (lab.server_ipv4, 8080), 10)
    assert waiting.communicate(timeout=15)[0].strip()[0].isdigit(), "it connects"
    wait_until(lambda: not os.path.exists(f"/proc/{keeper}"), 5, "the keeper has ended")
    assert shell.run(lab.server, "recover").status == 0


@contextmanager
def _frozen(group: Path, pid: int) -> Iterator[None]:
    """Freeze a process, and thaw it."""
    (group / "cgroup.procs").write_text(str(pid))
    state = group / "freezer.state"
    state.write_text("FROZEN")
    try:
        wait_until(lambda: state.read_text().strip() == "FROZEN", 5, "it is frozen")
        yield
    finally:
        state.write_text("THAWED")


def _entries(lab: ClientServer) -> list[dict[str, Any]]:
    """What ``synplug status`` shows, of dead runs, too."""
    entries: list[dict[str, Any]] = json.loads(shell.run(lab.server, "status", "--json").stdout)
    return entries


def test_a_stopped_keeper_is_ended_after_the_deadline(
    lab: ClientServer, simple: SimpleService
) -> None:
    run = shell.start(
        lab.server, "wrap", "--max-hold", "1s", "-p", "8080", "--require-new", "--", "sleep", "3"
    )
    wait_until(lambda: bool(_children_named(run.pid, "sleep")), 15, "the command runs")
    os.kill(holds_in_force(lab.server)[0]["keeper"], signal.SIGSTOP)
    _, stderr = run.communicate(timeout=20)
    assert run.returncode == 125
    assert "did not" in stderr
    assert connects_within(lab.client, (lab.server_ipv4, 8080), 1.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_both_are_stopped_past_the_deadline(
    lab: ClientServer, simple: SimpleService, backend: str
) -> None:
    options = ["--backend", backend, "--max-hold", "2s", "-p", "8080", "--require-new"]
    run = shell.start(lab.server, "wrap", *options, "--", "sleep", "60")
    wait_until(lambda: bool(_children_named(run.pid, "sleep")), 15, "the command runs")
    (command,) = _children_named(run.pid, "sleep")
    (hold,) = holds_in_force(lab.server)
    for pid in (run.pid, hold["keeper"]):
        os.kill(pid, signal.SIGSTOP)
    try:
        assert not connects_within(lab.client, (lab.server_ipv4, 8080), 0.2), "nothing is held"
        left_s = hold["deadline_s"] - time.monotonic()
        # One whose SYN is not held at the deadline: a retransmission comes a second later.
        time.sleep(max(0.0, left_s) + 0.7)
        assert connects_within(lab.client, (lab.server_ipv4, 8080), 0.3)
    finally:
        os.kill(command, signal.SIGTERM)
        run.send_signal(signal.SIGCONT)
    _, stderr = run.communicate(timeout=10)
    assert "no longer held" in stderr
    assert run.returncode == 128 + signal.SIGTERM


def test_sigterm_to_the_keeper_releases(lab: ClientServer, simple: SimpleService) -> None:
    run = shell.start(lab.server, "wrap", "-p", "8080", "--require-new", "--", "sleep", "2")
    wait_until(lambda: bool(_children_named(run.pid, "sleep")), 15, "the command runs")
    waiting = connecting(lab.client, (lab.server_ipv4, 8080), 10)
    os.kill(holds_in_force(lab.server)[0]["keeper"], signal.SIGTERM)
    assert float(waiting.communicate(timeout=10)[0]) < 0.9
    _, stderr = run.communicate(timeout=10)
    assert "signal" in stderr
    assert run.returncode == 125, stderr


_KILL_WHILE_ARMED = """
import os, signal, sys
from synplug.errors import KeeperError
from synplug.handover.request import HoldOptions, hold_spec
from synplug.holding.handle import KeptHold
from synplug.holding.locks import RunLocks
from synplug.model import BackendName, Endpoint

spec = hold_spec((Endpoint(port=8080),), HoldOptions(backend=BackendName(sys.argv[1])))
locks = RunLocks(spec.endpoints)
locks.take(timeout_s=0)
kept = KeptHold(spec, locks)
kept.arm()
os.kill(kept.keeper_pid, signal.SIGKILL)
try:
    kept.hold()
except KeeperError as error:
    print(error)
finally:
    kept.close()
    locks.drop()
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_keeper_is_killed_while_armed(
    lab: ClientServer, simple: SimpleService, backend: str
) -> None:
    done = lab.server.run([sys.executable, "-c", _KILL_WHILE_ARMED, backend])
    assert "no longer held" in done.stdout
    assert connects_within(lab.client, (lab.server_ipv4, 8080), 0.5)


_FORKS = """
import os, signal, sys, time, synplug
with synplug.hold(ports=[8080], max_hold=30):
    if os.fork() == 0:
        time.sleep(8)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_program_that_forked_is_killed(lab: ClientServer, simple: SimpleService) -> None:
    """Its child has the channel's other end, too: the end of file alone would not tell."""
    program = lab.server.popen([sys.executable, "-c", _FORKS], stdout=subprocess.PIPE)
    assert program.stdout is not None
    assert program.stdout.readline() == "held\n"
    waiting = connecting(lab.client, (lab.server_ipv4, 8080), 10)
    time.sleep(0.3)
    program.kill()
    assert float(waiting.communicate(timeout=15)[0]) < 2.0, "the keeper lets go"
    program.communicate()  # the child's end


_HOST = """
import signal, synplug
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
with synplug.hold([8080]) as held:
    pass
print(held.result.reason.value)
try:
    with synplug.hold([8080]) as held:
        raise RuntimeError
except RuntimeError:
    print(held.result.reason.value)
"""


def test_a_host_that_collects_every_child_itself(lab: ClientServer, simple: SimpleService) -> None:
    done = lab.server.run([sys.executable, "-W", "error", "-c", _HOST])
    assert done.stdout.split() == ["asked", "asked"]
    assert done.stderr == ""


def _children_named(pid: int, name: str) -> list[int]:
    """The descendants of *pid* that run *name*; nsenter(1) stands between us and synplug."""
    found = []
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        try:
            with open(f"/proc/{parent}/task/{parent}/children") as file:
                children = list(map(int, file.read().split()))
        except OSError:
            continue
        for child in children:
            waiting.append(child)
            try:
                with open(f"/proc/{child}/comm") as file:
                    if file.read().strip() == name:
                        found.append(child)
            except OSError:
                continue
    return found
