"""What each verb needs, and that a keeper has no more than that (docs/privileges.md)."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

import synplug
from netlab.program import Program, wait_until
from netlab.topology import ClientServer
from tests.integration import shell
from tests.integration.conftest import SERVER, SimpleService
from tests.integration.connect import connects_within, holds_in_force
from tests.integration.shell import limited

_BITS = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13}
_NEEDS = {
    "nfqueue": ("net_admin",),
    "nfqueue-iptables": ("net_admin", "net_raw"),
}
#: The names of a keeper's children; what the kernel does not remove is watched.
_WATCHERS = {"nfqueue": [], "nfqueue-iptables": ["synplug-watcher"]}


@pytest.mark.parametrize("backend", _NEEDS)
def test_wrap_needs_no_more(lab: ClientServer, simple: SimpleService, backend: str) -> None:
    options = ["wrap", "--backend", backend, "-p", "8080", "--"]
    argv = limited(_NEEDS[backend], *options, *simple.restart_argv("--delay", "0.1"))
    done = lab.server.run(argv, check=False)
    assert done.returncode == 0, done
    assert "restarted" in done.stderr


@pytest.mark.parametrize(
    ("backend", "missing"), [(name, one) for name, needs in _NEEDS.items() for one in needs]
)
def test_what_is_missing_is_named(
    lab: ClientServer, simple: SimpleService, backend: str, missing: str
) -> None:
    kept = [name for name in _NEEDS[backend] if name != missing]
    argv = limited(kept, "wrap", "--backend", backend, "-p", "8080", "--", "true")
    done = lab.server.run(argv, check=False)
    assert done.returncode == 125
    assert f"CAP_{missing.upper()}" in done.stderr
    assert "not run" in done.stderr or len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("backend", _NEEDS)
def test_hold_and_release_need_no_more(
    lab: ClientServer, simple: SimpleService, backend: str
) -> None:
    argv = ["hold", "--name", "web", "--max-hold", "9s", "--backend", backend, "-p", "8080"]
    lab.server.run(limited(_NEEDS[backend], *argv))
    assert not connects_within(lab.client, (lab.server_ipv4, 8080), 0.2)
    lab.server.run(limited((), "status"))
    lab.server.run(limited((), "release", "--name", "web"))
    assert connects_within(lab.client, (lab.server_ipv4, 8080), 0.5)


@pytest.mark.parametrize("backend", _NEEDS)
def test_swap_needs_no_more(lab: ClientServer, tmp_path: Path, backend: str) -> None:
    server = [sys.executable, str(SERVER), "8080", "--reuseport"]
    pidfile = str(tmp_path / "pid")
    no_more = limited(_NEEDS[backend])[: -len(shell.SYNPLUG)]  # or its sockets were hidden
    with Program(lab.server, [*no_more, *server], listens_on=[("::", 8080)]) as old:
        argv = ["swap", "--backend", backend, "--old-pid", str(old.pid), "--new-pidfile", pidfile]
        alone = limited(_NEEDS[backend], *argv, "--", *server, "--pidfile", pidfile + "-own")
        with (tmp_path / "said").open("w") as said:
            status = lab.server.popen(alone, stdout=said, stderr=said).wait(20)
        assert status == 0, (tmp_path / "said").read_text()
    os.kill(int(Path(pidfile).read_text()), signal.SIGTERM)


_MIGRATE = "/proc/sys/net/ipv4/tcp_migrate_req"


def _swap_with_migrate(lab: ClientServer, tmp_path: Path, *before: str) -> dict[str, Any]:
    """Swap with no more than a swap needs, by way of this command; its report."""
    server = [sys.executable, str(SERVER), "8080", "--reuseport"]
    report, pidfile = tmp_path / "report", tmp_path / "pid"
    no_more = limited(("net_admin",))[: -len(shell.SYNPLUG)]
    with Program(lab.server, [*no_more, *server], listens_on=[("::", 8080)]) as old:
        argv = ["swap", "--migrate", "--old-pid", str(old.pid), "--new-pidfile", str(pidfile)]
        argv += ["--json", str(report), "--", *server]
        with (tmp_path / "said").open("w") as said:
            command = [*before, *limited(("net_admin",), *argv)]
            status = lab.server.popen(command, stdout=said, stderr=said).wait(20)
        assert status == 0, (tmp_path / "said").read_text()
    os.kill(int(pidfile.read_text()), signal.SIGTERM)
    found: dict[str, Any] = json.loads(report.read_text())
    return found


@pytest.fixture
def migrate(lab: ClientServer) -> None:
    if lab.server.run(["cat", _MIGRATE], check=False).returncode:
        pytest.skip("this kernel has no tcp_migrate_req (Linux 5.14)")


@pytest.mark.usefixtures("migrate")
def test_migrate_needs_no_more_than_a_swap(lab: ClientServer, tmp_path: Path) -> None:
    report = _swap_with_migrate(lab, tmp_path)
    assert (report["migrated"], report["warnings"]) == (True, [])
    assert lab.server.run(["cat", _MIGRATE]).stdout == "0\n"


@pytest.mark.usefixtures("migrate")
def test_where_the_parameters_are_read_only_a_swap_goes_on_without(
    lab: ClientServer, tmp_path: Path
) -> None:
    """As by a unit's ProtectKernelTunables=, or in a container."""
    line = 'mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys; exec "$@"'
    report = _swap_with_migrate(lab, tmp_path, "unshare", "--mount", "sh", "-e", "-c", line, "-")
    assert report["migrated"] is False
    (warning,) = report["warnings"]
    assert warning.startswith("--migrate: ")
    assert "Read-only file system" in warning


@pytest.mark.usefixtures("migrate")
@pytest.mark.parametrize("has_it", [True, False])
def test_another_user_may_set_it_with_that_capability_alone(
    lab: ClientServer, has_it: bool
) -> None:
    """``net/sysctl_net.c``, net_ctl_permissions: who administrates the network has root's mode."""
    kept = ",+net_admin" if has_it else ""
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]
    user += [f"--{which}=-all{kept}" for which in ("bounding-set", "inh-caps", "ambient-caps")]
    done = lab.server.run([*user, "sh", "-c", f"echo 1 >{_MIGRATE}"], check=False)
    assert (done.returncode == 0) is has_it, done
    assert lab.server.run(["cat", _MIGRATE]).stdout == f"{has_it:d}\n"


#: With synplug where everybody may read it, wherever these tests are.
_AS_A_USER = """
mount -t tmpfs -o mode=0755 tmpfs /run && mkdir /run/code && cp -r "$0" /run/code || exit 99
chmod -R a+rX /run/code && cd /run/code || exit 99
mkdir -m 0700 /run/synplug && chown 65534 /run/synplug || exit 99
PYTHONPATH= exec "$@"
"""


@pytest.mark.parametrize(
    ("backend", "has", "lacks"),
    [
        ("nfqueue", ("net_admin", "dac_read_search"), ""),
        ("nfqueue", ("net_admin",), "CAP_DAC_READ_SEARCH"),
        ("nfqueue-iptables", ("net_admin", "net_raw", "dac_override"), ""),
    ],
)
def test_what_another_user_needs(
    lab: ClientServer, simple: SimpleService, backend: str, has: tuple[str, ...], lacks: str
) -> None:
    """With a folder of its own; the kernel's list of queues is root's."""
    kept = "".join(f",+{name}" for name in has)
    copied = str(Path(synplug.__file__).parents[1] / "synplug")
    argv = ["unshare", "--mount", "sh", "-c", _AS_A_USER, copied]
    argv += ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]
    argv += [f"--{which}=-all{kept}" for which in ("bounding-set", "inh-caps", "ambient-caps")]
    # The interpreter of a virtual environment may be where only root may look.
    argv += [os.path.realpath(sys.executable) if lacks else sys.executable, "-m", "synplug"]
    argv += ["wrap", "--backend", backend, "-p", "8080", "--", "true"]
    done = lab.server.run(argv, check=False)
    said = done.stderr
    if lacks:
        assert done.returncode == 125, said
        assert lacks in said
    else:
        assert done.returncode == 0, said
        assert f"by {backend}" in said


def test_swap_says_when_it_may_not_see_the_old_ones_sockets(
    lab: ClientServer, simple: SimpleService
) -> None:
    argv = ["swap", "--old-pid", str(simple.pid), "-p", "8080", "--", "true"]
    done = lab.server.run(limited(("net_admin",), *argv), check=False)
    assert done.returncode == 125
    assert "CAP_SYS_PTRACE" in done.stderr, done


@pytest.mark.parametrize("backend", _NEEDS)
def test_supervise_and_reload_need_no_more(lab: ClientServer, tmp_path: Path, backend: str) -> None:
    server = [sys.executable, str(SERVER), "8080", "--reuseport"]
    argv = ["supervise", "--name", "web", "--backend", backend, "--", *server]
    argv += ["--pidfile", str(tmp_path / "pid-{generation}")]
    alone = limited(_NEEDS[backend], *argv)
    with Program(lab.server, alone, ready=(tmp_path / "pid-1").exists) as supervisor:
        lab.server.run(limited((), "reload", "web"))
        assert (tmp_path / "pid-2").exists()
        assert supervisor.end() == 0, supervisor.output


@pytest.mark.parametrize("backend", _NEEDS)
def test_recover_needs_no_more(lab: ClientServer, simple: SimpleService, backend: str) -> None:
    """And with less it says what is missing, and leaves all as it is."""
    run_id = _hold_that_dies(lab, backend)
    for missing in _NEEDS[backend]:
        kept = [name for name in _NEEDS[backend] if name != missing]
        done = lab.server.run(limited(kept, "recover"), check=False)
        assert done.returncode == 125
        assert f"CAP_{missing.upper()}" in done.stderr + done.stdout
    done = lab.server.run(limited(_NEEDS[backend], "recover"), check=False)
    assert done.returncode == 0, done
    assert f"run {run_id}  *:8080  {backend}  cleaned up" in done.stdout
    assert f"synplug-{run_id}" not in lab.server.run(["iptables-legacy-save"]).stdout


def _hold_that_dies(lab: ClientServer, backend: str) -> str:
    """Hold, and kill the keeper, and its watcher before that could clean up; the run."""
    argv = ["hold", "--name", "web", "--max-hold", "30s", "--backend", backend, "-p", "8080"]
    assert shell.run(lab.server, *argv).status == 0
    (entry,) = holds_in_force(lab.server)
    keeper = entry["keeper"]
    watchers = _children(keeper)
    os.kill(keeper, signal.SIGSTOP)
    for pid in (*watchers, keeper):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not os.path.exists(f"/proc/{keeper}"), 5, "the keeper has ended")
    return str(entry["run_id"])


@pytest.mark.parametrize(
    ("capabilities", "works"),
    [
        (("net_admin", "sys_admin"), {"nfqueue": True, "nfqueue-iptables": False}),
        (("net_admin", "sys_admin", "net_raw"), {"nfqueue": True, "nfqueue-iptables": True}),
        (("net_raw", "sys_admin"), {"CAP_NET_ADMIN": False, "nfqueue": False}),
        # By a user namespace, in which it has all capabilities.
        (("net_admin",), {"nfqueue": True, "nfqueue-iptables": True}),
    ],
)
def test_what_doctor_needs(
    lab: ClientServer, capabilities: tuple[str, ...], works: dict[str, bool]
) -> None:
    done = lab.server.run(limited(capabilities, "doctor", "--json"), check=False)
    found = json.loads(done.stdout)
    oks = {one["name"].removeprefix("self-test "): one["ok"] for one in found["findings"]}
    assert {name: oks[name] for name in works} == works, found
    assert done.returncode == (0 if works["nfqueue"] else 1)


@pytest.mark.parametrize("backend", _NEEDS)
def test_the_keeper_has_no_more(lab: ClientServer, simple: SimpleService, backend: str) -> None:
    argv = ["hold", "--name", "web", "--max-hold", "9s", "--backend", backend, "-p", "8080"]
    assert shell.run(lab.server, *argv).status == 0
    (entry,) = holds_in_force(lab.server)
    wanted = sum(1 << _BITS[f"CAP_{name.upper()}"] for name in _NEEDS[backend])
    watchers = _children(entry["keeper"])
    assert [_status(pid)["Name"] for pid in watchers] == _WATCHERS[backend]
    for pid in (entry["keeper"], *watchers):
        status = _status(pid)
        for which in ("CapEff", "CapPrm"):
            assert int(status[which], 16) == wanted, (status["Name"], which)
        assert int(status["CapInh"], 16) == 0
        assert status["NoNewPrivs"] == "1"
    for pid in watchers:  # it may not be able to read it any more
        assert "libxtwrapper" in Path(f"/proc/{pid}/maps").read_text()
    assert shell.run(lab.server, "release", "--name", "web").status == 0


def test_the_command_keeps_all_that_the_caller_has(
    lab: ClientServer, simple: SimpleService
) -> None:
    """The control: nothing of the keeper's limits reaches the command."""
    show = [sys.executable, "-c", "print(open('/proc/self/status').read())"]
    plain = lab.server.run(show).stdout
    wrapped = lab.server.run([*shell.SYNPLUG, "wrap", "-q", "-p", "8080", "--", *show]).stdout
    for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb", "NoNewPrivs"):
        assert _fields(wrapped)[name] == _fields(plain)[name], name


def test_another_users_process_needs_ptrace(lab: ClientServer, simple: SimpleService) -> None:
    """A process that may more than we do hides its descriptors: then name the ports."""
    target = ["wrap", "--pid", str(simple.pid), "--", "true"]
    done = lab.server.run(limited(("net_admin",), *target), check=False)
    assert done.returncode == 125
    assert "CAP_SYS_PTRACE" in done.stderr, done
    allowed = lab.server.run(limited(("net_admin", "sys_ptrace"), *target), check=False)
    assert allowed.returncode == 0, allowed


def _status(pid: int) -> dict[str, str]:
    with open(f"/proc/{pid}/status") as file:
        return _fields(file.read())


def _children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return list(map(int, file.read().split()))


def _fields(text: str) -> dict[str, str]:
    lines = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, _, value in lines}
