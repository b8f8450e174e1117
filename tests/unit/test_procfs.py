"""What /proc tells of processes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synplug.cli import main
from synplug.kernel import control_group, procfs
from synplug.kernel.procfs import control_group_members, is_unit_path

# --- this machine


def test_sysctl() -> None:
    expected = Path("/proc/sys/net/core/somaxconn").read_text(encoding="ascii").strip()
    assert procfs.sysctl("net.core.somaxconn") == expected
    assert procfs.sysctl("net.core.no_such_thing") == ""


def test_a_zombie_is_not_alive() -> None:
    with subprocess.Popen(["true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not procfs.is_alive(child.pid)
    assert procfs.is_alive(os.getpid())


def test_who_was_started_since() -> None:
    """Numbers may begin anew in between, so a few are tried."""
    for _ in range(3):
        with (
            subprocess.Popen(["sleep", "60"]) as first,
            subprocess.Popen(["sleep", "60"]) as second,
        ):
            found = procfs.started_since(first.pid)
            first.kill()
            second.kill()
        if first.pid < second.pid:
            assert second.pid in found
            assert first.pid not in found
            return
    pytest.fail("of two processes the later one had the smaller number, thrice")


def test_the_words_of_all_since_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has ended is left out, collected or not; who is ending is there, and has none."""
    with (
        subprocess.Popen(["sleep", "61"]) as first,
        subprocess.Popen(["true"]) as ended,
        subprocess.Popen(["true"]) as gone,
        subprocess.Popen(["sleep", "62"]) as last,
    ):
        gone.wait()
        while not procfs.command_line(last.pid):  # it is not yet what it will be
            time.sleep(0.001)
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        real = procfs.sysctl
        last_pid = real("kernel.ns_last_pid")
        monkeypatch.setattr(procfs, "sysctl", lambda _: str(last.pid))
        monkeypatch.setattr(procfs, "is_in_first_namespace", lambda _: True)
        found = procfs.command_lines_since(first.pid, 1 << 22)
        monkeypatch.setattr(procfs, "_is_ending", lambda pid: pid == ended.pid)
        ending = procfs.command_lines_since(first.pid, 1 << 22)
        too_many = procfs.command_lines_since(first.pid, last.pid - first.pid)
        monkeypatch.setattr(procfs, "sysctl", lambda _: str(first.pid - 1))
        anew = procfs.command_lines_since(first.pid, 1 << 22)
        monkeypatch.setattr(procfs, "sysctl", real)
        first.kill()
        last.kill()
    assert last_pid == "" or int(last_pid) >= last.pid
    assert found is not None
    assert [words for words in found if words[:1] in ([], ["sleep"])] == [
        ["sleep", "61"],
        ["sleep", "62"],
    ]
    assert ending is not None
    assert len(ending) == len(found) + 1
    assert [] in ending
    assert (too_many, anew) == (None, None)


def test_of_who_may_be_in_another_pid_namespace_nothing_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(procfs, "sysctl", lambda _: str(os.getpid()))
    monkeypatch.setattr(procfs, "is_in_first_namespace", lambda kind: kind != "pid")
    assert procfs.command_lines_since(os.getpid(), 10) is None
    monkeypatch.setattr(procfs, "is_in_first_namespace", lambda _: True)
    assert procfs.command_lines_since(os.getpid(), 10) == [procfs.command_line(os.getpid())]


@pytest.mark.parametrize(
    ("state", "flags", "is_ending"),
    [("R", 0x404004, True), ("D", 0, True), ("Z", 0x40000C, False), ("I", 0x4208060, False)],
)
def test_who_has_no_words_is_ending_or_a_thread_of_the_kernels_own_or_has_ended(
    monkeypatch: pytest.MonkeyPatch, state: str, flags: int, *, is_ending: bool
) -> None:
    monkeypatch.setattr(procfs, "_stat", lambda _: [state, *["0"] * 5, str(flags), "0"])
    assert procfs._is_ending(4242) is is_ending
    monkeypatch.setattr(procfs, "_stat", lambda _: [])
    assert not procfs._is_ending(4242)


@pytest.mark.parametrize("refusal", [PermissionError, FileNotFoundError])
def test_hidden_processes_are_not_none(
    monkeypatch: pytest.MonkeyPatch, refusal: type[OSError]
) -> None:
    """With hidepid they cannot be read, or seem not to be there at all, pid 1 among them."""

    def refuse(*_: object) -> None:
        raise refusal

    is_there = refusal is PermissionError
    monkeypatch.setattr(procfs, "is_in_first_namespace", lambda _: True)
    monkeypatch.setattr(procfs, "sysctl", lambda _: "4243")
    monkeypatch.setattr(os.path, "isdir", lambda _: is_there)
    monkeypatch.setattr(os, "open", refuse)
    found = procfs.command_lines_since(4242, 100)
    monkeypatch.undo()
    assert found is None


@pytest.mark.parametrize("environment", [{}, {"FIRST": "a=b", "SECOND": ""}])
def test_the_environment_is_that_of_the_start(environment: dict[str, str]) -> None:
    """Python itself adds LC_CTYPE to an empty one (PEP 538)."""
    program = (
        "import os; from synplug.kernel.procfs import initial_variables;"
        "os.environ['LATER'] = '1'; os.environ.pop('FIRST', None);"
        "print(*sorted(name.decode() for name in initial_variables()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == sorted(environment)


def test_the_command_of_an_empty_environment_gets_an_empty_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for known, stays in ((set(), False), ({b"LC_CTYPE"}, True), (None, True)):
        monkeypatch.setenv("LC_CTYPE", "C.UTF-8")
        monkeypatch.setattr(main, "initial_variables", lambda known=known: known)
        main._undo_locale_coercion()
        assert ("LC_CTYPE" in os.environ) is stays


# --- control groups

UNIT = "nginx.service"


@pytest.mark.parametrize(
    ("path", "counts"),
    [
        ("/system.slice/nginx.service", True),
        ("/nginx.service", True),
        ("/system.slice/system-web.slice/nginx.service", True),
        ("/system.slice/nginx.service/workers/7", True),
        ("/system.slice", False),
        ("/system.slice/nginx.service.d", False),
        ("/system.slice/other.service", False),
        ("/system.slice/other.service/nginx.service", False),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/nginx.service", False),
        ("/user.slice/user-1000.slice/user@1000.service/nginx.service", False),
        ("/machine.slice/machine-web.scope/system.slice/nginx.service", False),
        ("/machine.slice/systemd-nspawn@web.service/payload/system.slice/nginx.service", False),
        ("/system.slice/docker-0123abcd.scope/system.slice/nginx.service", False),
        ("/docker/0123abcd/system.slice/nginx.service", False),
        ("/lxc.payload.web/system.slice/nginx.service", False),
        ("/kubepods.slice/kubepods-pod1.slice/cri-containerd-0.scope/nginx.service", False),
        ("/../nginx.service", False),
        ("", False),
        ("/", False),
    ],
)
def test_a_unit_of_the_systems_manager(path: str, counts: bool) -> None:
    assert is_unit_path(path, UNIT, root="") is counts


@pytest.mark.parametrize(
    ("unit", "counts"),
    [("user.slice", True), ("user@1000.service", True), ("app.slice", False), ("x.scope", False)],
)
def test_slices_and_managers_of_users_can_be_named(unit: str, counts: bool) -> None:
    path = "/user.slice/user-1000.slice/user@1000.service/app.slice/x.scope"
    assert is_unit_path(path, unit, root="") is counts


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\n"), min_size=1, max_size=6)
SLICES = st.lists(NAMES.map(lambda name: f"{name}.slice"), max_size=4)


@given(before=SLICES, after=st.lists(NAMES, max_size=3), root=st.lists(NAMES, max_size=2))
def test_below_slices_and_below_the_root(
    before: list[str], after: list[str], root: list[str]
) -> None:
    above = "".join(f"/{name}" for name in root)
    path = above + "/" + "/".join([*before, UNIT, *after])
    assert is_unit_path(path, UNIT, root=above)
    assert not is_unit_path(path, UNIT, root=f"{above}/elsewhere")


@given(before=SLICES, other=NAMES, between=SLICES)
def test_below_anything_else_it_is_somebody_elses(
    before: list[str], other: str, between: list[str]
) -> None:
    path = "/" + "/".join([*before, f"{other}.service", *between, UNIT])
    assert not is_unit_path(path, UNIT, root="")


def machine(monkeypatch: pytest.MonkeyPatch, files: dict[int, str]) -> None:
    """Processes with these /proc/PID/cgroup."""
    monkeypatch.setattr(procfs, "pids", lambda: iter(files))
    texts = {f"/proc/{pid}/cgroup": text for pid, text in files.items()}
    monkeypatch.setattr(procfs, "_read", lambda path: texts.get(path, ""))


@pytest.mark.parametrize("hierarchy", ["0::", "1:name=systemd:"])
def test_the_systems_unit_and_not_the_users(
    hierarchy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = "/user.slice/user-1000.slice/user@1000.service"
    machine(
        monkeypatch,
        {
            1: f"{hierarchy}/init.scope\n",
            10: f"{hierarchy}/system.slice/nginx.service\n",
            11: f"9:memory:/system.slice\n{hierarchy}/system.slice/nginx.service\n",
            20: f"{hierarchy}{user}/app.slice/nginx.service\n",
            30: f"9:memory:/system.slice/nginx.service\n{hierarchy}/system.slice/b.service\n",
            40: "",
        },
    )
    assert control_group_members(UNIT) == {10, 11}


def test_in_a_container_that_sees_the_hosts_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a cgroup namespace of its own, every path begins with the container's."""
    machine(
        monkeypatch,
        {
            1: "1:name=systemd:/docker/0123/init.scope\n",
            10: "1:name=systemd:/docker/0123/system.slice/nginx.service\n",
            20: "1:name=systemd:/docker/0123/docker/4567/system.slice/nginx.service\n",
        },
    )
    assert control_group_members(UNIT) == {10}


def test_without_systemd_as_init(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, {1: "0::/\n", 10: "0::/nginx.service\n", 20: "0::/other\n"})
    assert control_group_members(UNIT) == {10}


def test_a_hidden_pid_1_is_taken_for_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """With hidepid (proc(5)) and without root."""
    machine(monkeypatch, {10: "0::/system.slice/nginx.service\n"})
    assert control_group_members(UNIT) == {10}


@pytest.mark.parametrize("is_refused", [True, False], ids=["refused", "without effect"])
@pytest.mark.parametrize(
    ("groups", "other_namespace", "is_apart"),
    [
        ("0::/\n", "", True),
        ("9:memory:/some\n1:name=systemd:/\n0::/\n", "", True),
        ("", "", True),
        ("0::/\n", "cgroup", False),
        ("0::/\n", "pid", False),
        ("0::/system.slice/app.service\n", "", False),
        ("1:name=systemd:/system.slice/app.service\n0::/\n", "", False),
        ("6:cpu,freezer:/docker/0123\n1:name=systemd:/\n0::/\n", "", False),
    ],
)
def test_who_cannot_leave_a_control_group_is_safe_only_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    groups: str,
    other_namespace: str,
    is_apart: bool,
    is_refused: bool,
) -> None:
    """Whatever the write says: in a container its root is the container's own group."""

    def inode(path: str) -> SimpleNamespace:
        kind = path.rpartition("/")[2]
        first = procfs.FIRST_NAMESPACES[kind]
        return SimpleNamespace(st_ino=first - (kind == other_namespace))

    real_open = os.open

    def open_one(*_: object) -> int:
        if is_refused:
            raise OSError(errno.EROFS, "read-only")
        return real_open(tmp_path / "procs", os.O_WRONLY | os.O_CREAT)

    machine(monkeypatch, {os.getpid(): groups})
    monkeypatch.setattr(os, "stat", inode)
    monkeypatch.setattr(os, "open", open_one)
    left = control_group.leave_control_group()
    monkeypatch.undo()
    assert left is is_apart
