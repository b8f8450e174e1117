"""The ledger, the locks and the guard below /run/synplug."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Callable
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Any

import pytest

from synplug.errors import LockError, PrivilegeError, SynplugError
from synplug.holding import locks, runtime
from synplug.holding.ledger import Entry, Ledger, entries
from synplug.holding.locks import FlushGuard, RunLocks, remove_unused_locks
from synplug.holding.runtime import check_root
from synplug.kernel import procfs
from synplug.model import Endpoint

ENTRY = Entry(
    run_id="0123abcd",
    keeper=os.getpid(),
    keeper_start=procfs.start_time(os.getpid()),
    backend="nfqueue",
    state="holding",
    endpoints=("*:80", "[::1]:443"),
    deadline_s=12.5,
    traces={"nft table": "inet synplug-0123abcd"},
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Instead of /run/synplug."""
    path = tmp_path / "synplug"
    monkeypatch.setattr(runtime, "ROOT", str(path))
    return path


@pytest.fixture
def here(root: Path) -> Path:
    """The folder of this network namespace, as a run would make it."""
    folder = Path(runtime.here())
    folder.mkdir(parents=True)
    return folder


# --- the ledger


def test_an_entry_comes_back_as_it_was_written(root: Path) -> None:
    ledger = Ledger("0123abcd")
    ledger.write(ENTRY)
    assert list(entries()) == [ENTRY]
    assert not list(root.rglob("*.new"))
    ledger.remove()
    assert list(entries()) == []
    assert not root.exists()


def test_an_entry_is_replaced_as_a_whole(root: Path) -> None:
    ledger = Ledger("0123abcd")
    ledger.write(ENTRY)
    shorter = Entry(**(ENTRY.__dict__ | {"state": "armed", "traces": {}}))
    ledger.write(shorter)
    assert list(entries()) == [shorter]


def test_removing_what_is_not_there_is_no_error(root: Path) -> None:
    Ledger("0123abcd").remove()
    assert not root.exists()


def test_folders_are_ours_alone(root: Path) -> None:
    Ledger("0123abcd").write(ENTRY)
    for path in (root, *root.iterdir()):
        assert path.stat().st_mode & 0o777 == 0o700
    (file,) = root.rglob("*.json")
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("umask", [0o777, 0o277, 0o477])
def test_folders_are_ours_whatever_the_umask(root: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        Ledger("0123abcd").write(ENTRY)
    finally:
        os.umask(before)
    for path in (root, *root.iterdir()):
        assert path.stat().st_mode & 0o777 == 0o700
    (file,) = root.rglob("*.json")
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_folder_of_ours_that_has_lost_its_rights_is_mended(root: Path) -> None:
    root.mkdir(mode=0)
    Ledger("0123abcd").write(ENTRY)
    assert root.stat().st_mode & 0o777 == 0o700


def test_the_folder_of_another_run_stays(root: Path) -> None:
    Ledger("0123abcd").write(ENTRY)
    other = Entry(**(ENTRY.__dict__ | {"run_id": "ffffffff"}))
    Ledger("ffffffff").write(other)
    Ledger("0123abcd").remove()
    assert list(entries()) == [other]


def _document(**changes: Any) -> str:
    return json.dumps({"format": 1, **ENTRY.__dict__, "run_id": "00000000", **changes})


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("", id="empty"),
        pytest.param(_document()[:40], id="truncated"),
        pytest.param("\0\xff", id="no text"),
        pytest.param(_document(format=2), id="another format"),
        pytest.param(_document().replace('"format": 1, ', ""), id="no format"),
        pytest.param(_document(surprise=1), id="an unknown field"),
        pytest.param('{"format": 1}', id="missing fields"),
        pytest.param("[]", id="a list"),
        pytest.param('"text"', id="a text"),
        pytest.param("null", id="null"),
        pytest.param("17", id="a number"),
        pytest.param("[" * 100_000, id="nested without end"),
        pytest.param(_document(endpoints=5), id="endpoints of a wrong type"),
        pytest.param(_document(run_id=5), id="a run id of a wrong type"),
        pytest.param(_document(run_id="12121212"), id="another run's"),
        pytest.param(_document(keeper="x"), id="a keeper of a wrong type"),
        pytest.param(_document(keeper_start=None), id="a start of a wrong type"),
        pytest.param(_document(deadline_s="soon"), id="a deadline of a wrong type"),
        pytest.param(_document(traces=[1]), id="traces of a wrong type"),
        pytest.param(_document(backend=["nfqueue"]), id="a backend of a wrong type"),
        pytest.param(_document(endpoints="*:80"), id="a text for endpoints"),
        pytest.param(_document(endpoints=[80]), id="an endpoint of a wrong type"),
        pytest.param(_document(traces={"queues": 7}), id="a trace of a wrong type"),
        pytest.param(_document(keeper=True), id="true for a keeper"),
        pytest.param(_document(keeper=-1), id="a process group for a keeper"),
        pytest.param(_document(keeper=1 << 22), id="a keeper beyond all pids"),
        pytest.param(_document(deadline_s=float("nan")), id="a deadline that is no number"),
        pytest.param(_document(deadline_s=10**400), id="a deadline beyond the clock"),
        pytest.param(_document(deadline_s=-1), id="a deadline before the clock"),
    ],
)
def test_what_cannot_be_read_as_an_entry_is_passed_over(here: Path, content: str) -> None:
    (here / "00000000.json").write_text(content, encoding="latin-1")
    Ledger("0123abcd").write(ENTRY)
    assert list(entries()) == [ENTRY]


def test_only_plain_files_are_entries(here: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.json"
    elsewhere.write_text(_document())
    (here / "11111111.json").symlink_to(elsewhere)
    (here / "22222222.json").mkdir()
    (here / "33333333.txt").write_text(_document())
    (here / "44444444.json.new").write_text(_document())
    before = len(os.listdir("/proc/self/fd"))
    assert list(entries()) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_fifo_in_the_ledger_blocks_nobody(here: Path) -> None:
    os.mkfifo(here / "11111111.json")
    found: list[Entry] = []
    reader = threading.Thread(target=lambda: found.extend(entries()), daemon=True)
    reader.start()
    reader.join(timeout=5)
    assert not reader.is_alive()
    assert found == []


def test_a_draft_that_is_a_link_is_not_followed(here: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (here / "0123abcd.json.new").symlink_to(victim)
    with pytest.raises(SynplugError, match="symbolic links"):
        Ledger("0123abcd").write(ENTRY)
    assert victim.read_text() == "precious"


# --- who is alive


def test_who_owns_an_entry_is_alive_until_it_removes_it(root: Path) -> None:
    ledger = Ledger(ENTRY.run_id)
    ledger.own()
    ledger.own()
    ledger.write(ENTRY)
    assert ENTRY.is_live
    remove_unused_locks()
    assert ENTRY.is_live
    ledger.remove()
    assert not ENTRY.is_live
    assert not root.exists()


def test_who_has_written_an_entry_and_ended_is_dead(root: Path) -> None:
    """A zombie, too, and whoever has its pid and its start time in another PID namespace."""
    pid = os.fork()
    if pid == 0:
        ledger = Ledger(ENTRY.run_id)
        ledger.own()
        ledger.write(ENTRY)
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        (found,) = entries()
        assert not found.is_live
    finally:
        os.waitpid(pid, 0)
    remove_unused_locks()
    assert not list(root.rglob("*.lock"))


@pytest.mark.parametrize("run_id", ["", "../../x", "0123ABCD", "0123abcd\n"])
def test_an_impossible_run_id_leads_nowhere(here: Path, run_id: str) -> None:
    assert not Entry(**(ENTRY.__dict__ | {"run_id": run_id})).is_live


# --- folders


def test_a_root_that_is_a_link_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    root.symlink_to(tmp_path / "real")
    with pytest.raises(SynplugError, match="only its owner can write"):
        check_root()
    with pytest.raises(SynplugError, match="only its owner can write"):
        Ledger("0123abcd").write(ENTRY)
    assert list((tmp_path / "real").iterdir()) == []


def test_a_root_that_another_run_removes_meanwhile_is_made_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.mkdir(0o700)
    look = os.lstat

    def vanishes(path: str) -> os.stat_result:
        monkeypatch.setattr(os, "lstat", look)
        os.rmdir(path)
        return look(path)

    monkeypatch.setattr(os, "lstat", vanishes)
    check_root()
    assert not root.exists()


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702, 0o1777])
def test_a_root_that_others_can_write_to_is_refused(root: Path, mode: int) -> None:
    root.mkdir()
    root.chmod(mode)
    with pytest.raises(SynplugError, match="only its owner can write"):
        RunLocks(_any(80)).take(timeout_s=0)


def test_a_root_of_somebody_else_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root.mkdir(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(SynplugError, match="only its owner can write") as error:
        check_root()
    monkeypatch.undo()
    assert f"{root} belongs to user {os.getuid()}; it is used as a folder of user" in str(
        error.value
    )
    assert "ask as that user" in error.value.remedy
    assert f"remove it: rm -r {root}" in error.value.remedy


def test_a_root_that_is_a_file_is_refused(root: Path) -> None:
    root.write_text("")
    with pytest.raises(SynplugError, match="only its owner can write"):
        check_root()


def test_a_root_that_cannot_be_made(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mkdir(path: str, mode: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(PrivilegeError, match="cannot make") as error:
        check_root()
    assert "tmpfiles.d" in error.value.remedy


def test_checking_the_root_leaves_nothing(root: Path) -> None:
    check_root()
    assert not root.exists()


def test_a_folder_that_is_removed_by_another_run_is_made_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between making the folder and opening the file, its last user removes it."""
    make, races = runtime._folder, [3]

    def race(path: str) -> None:
        make(path)
        if path != str(root) and races[0]:
            races[0] -= 1
            os.rmdir(path)

    monkeypatch.setattr(runtime, "_folder", race)
    Ledger("0123abcd").write(ENTRY)
    assert races == [0]
    assert list(entries()) == [ENTRY]


def test_a_folder_that_keeps_vanishing_is_an_error(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "_folder", lambda path: None)
    with pytest.raises(SynplugError, match="keeps vanishing"):
        Ledger("0123abcd").write(ENTRY)


# --- locks

ANY_OF_80 = ["port-80-ipv4.lock", "port-80-ipv6.lock"]
ONE = Endpoint(port=80, address=IPv4Address("127.0.0.1"))


def _any(*ports: int) -> list[Endpoint]:
    return [Endpoint(port=port) for port in ports]


def _at(host: str) -> Endpoint:
    return Endpoint(port=80, address=None if host == "*" else ip_address(host))


_HOSTS = ("127.0.0.1", "127.0.0.2", "0.0.0.0", "::1", "::2", "::", "*")
_OVERLAP = {frozenset((host,)) for host in _HOSTS} | {
    frozenset(pair)
    for pair in (
        *(("0.0.0.0", host) for host in ("127.0.0.1", "127.0.0.2")),
        *(("::", host) for host in ("::1", "::2")),
        *(("*", host) for host in _HOSTS),
    )
}


@pytest.mark.parametrize("second", _HOSTS)
@pytest.mark.parametrize("first", _HOSTS)
def test_only_endpoints_that_overlap_exclude_each_other(
    root: Path, first: str, second: str
) -> None:
    mine, others = RunLocks([_at(first)]), RunLocks([_at(second)])
    mine.take(timeout_s=0)
    if {first, second} in _OVERLAP:
        with pytest.raises(LockError, match="another synplug run has port 80 at"):
            others.take(timeout_s=0)
        mine.drop()
        others.take(timeout_s=0)
    else:
        others.take(timeout_s=0)
        mine.drop()
        remove_unused_locks()
        with pytest.raises(LockError):
            RunLocks([_at(second)]).take(timeout_s=0)
        with pytest.raises(LockError):
            RunLocks([_at("*")]).take(timeout_s=0)
    others.drop()
    assert not root.exists()


def test_one_run_may_have_endpoints_that_overlap(root: Path) -> None:
    locks = RunLocks([ONE, _at("0.0.0.0"), _at("*")])
    locks.take(timeout_s=0)
    locks.drop()
    assert not root.exists()


def test_a_lock_is_a_file_while_it_is_held(root: Path) -> None:
    locks = RunLocks(_any(443, 80, 80))
    locks.take(timeout_s=0)
    names = sorted(path.name for path in root.rglob("*.lock"))
    assert names == [
        "port-443-ipv4.lock",
        "port-443-ipv6.lock",
        "port-80-ipv4.lock",
        "port-80-ipv6.lock",
    ]
    assert len(locks.descriptors) == 4
    locks.drop()
    assert not root.exists()
    assert not locks.descriptors
    locks.drop()


def test_two_runs_cannot_have_the_same_port(root: Path) -> None:
    first, second, other = RunLocks(_any(80)), RunLocks(_any(80, 81)), RunLocks(_any(82))
    first.take(timeout_s=0)
    with pytest.raises(LockError, match="another synplug run has port 80") as error:
        second.take(timeout_s=0)
    assert "--lock-timeout" in error.value.remedy
    other.take(timeout_s=0)
    first.drop()
    second.take(timeout_s=0)
    other.drop()
    second.drop()
    assert not root.exists()


def test_a_run_that_gets_one_of_two_gives_it_back(root: Path) -> None:
    first, second, third = RunLocks(_any(81)), RunLocks(_any(80, 81)), RunLocks(_any(80))
    first.take(timeout_s=0)
    with pytest.raises(LockError):
        second.take(timeout_s=0)
    third.take(timeout_s=0)


def test_waiting_for_a_lock_ends_with_its_time(root: Path) -> None:
    first = RunLocks(_any(80))
    first.take(timeout_s=0)
    with pytest.raises(LockError):
        RunLocks(_any(80)).take(timeout_s=0.02)


def test_waiting_for_a_lock_ends_when_it_is_given_back(root: Path) -> None:
    first, second = RunLocks(_any(80)), RunLocks(_any(80))
    first.take(timeout_s=0)

    def give_back() -> bool:
        first.drop()
        return False

    second.take(timeout_s=60, interrupted=give_back)
    assert sorted(path.name for path in root.rglob("*.lock")) == ANY_OF_80
    second.drop()
    assert not root.exists()


def test_whoever_waits_for_a_lock_may_have_other_duties(root: Path) -> None:
    first, second = RunLocks(_any(80)), RunLocks(_any(80))
    first.take(timeout_s=0)
    waits: list[float] = []

    def pause(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            first.drop()

    second.take(timeout_s=60, pause=pause)
    assert len(waits) == 3
    second.drop()


def test_waiting_for_a_lock_ends_when_it_is_interrupted(root: Path) -> None:
    first = RunLocks(_any(80))
    first.take(timeout_s=0)
    with pytest.raises(LockError):
        RunLocks(_any(80)).take(timeout_s=600, interrupted=lambda: True)


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_anew(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last holder removes the file between our open and our lock."""
    flock, races = fcntl.flock, [2]

    def race(descriptor: int, kind: int) -> None:
        if races[0]:
            races[0] -= 1
            os.unlink(os.readlink(f"/proc/self/fd/{descriptor}"))
        flock(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", race)
    locks = RunLocks(_any(80))
    locks.take(timeout_s=0)
    assert races == [0]
    with pytest.raises(LockError):
        RunLocks(_any(80)).take(timeout_s=0)


def test_dropping_does_not_remove_the_file_of_another_run(root: Path) -> None:
    first = RunLocks([ONE])
    first.take(timeout_s=0)
    (file,) = root.rglob("*-127.0.0.1.lock")
    file.unlink()
    second = RunLocks([ONE])
    second.take(timeout_s=0)
    first.drop()
    assert file.exists()
    second.drop()
    assert not root.exists()


def test_a_lock_file_that_is_a_link_is_not_followed(here: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (here / "port-80-ipv4.lock").symlink_to(victim)
    with pytest.raises(SynplugError, match="symbolic links"):
        RunLocks(_any(80)).take(timeout_s=0)


def test_locks_of_dead_runs_are_removed_and_those_of_live_ones_stay(here: Path) -> None:
    (here / "port-81-ipv4.lock").touch()
    live = RunLocks(_any(80))
    live.take(timeout_s=0)
    remove_unused_locks()
    assert sorted(path.name for path in here.iterdir()) == ANY_OF_80
    live.drop()


def test_without_a_folder_there_are_no_unused_locks(root: Path) -> None:
    remove_unused_locks()
    assert not root.exists()


# --- the guard


def test_several_holds_share_the_guard_and_keep_a_removal_away(root: Path) -> None:
    first, second, remover = FlushGuard(), FlushGuard(), FlushGuard()
    first.share()
    second.share()
    assert not remover.try_alone()
    first.leave()
    assert not remover.try_alone()
    second.leave()
    assert remover.try_alone()
    remover.leave()
    assert not root.exists()


def test_the_last_hold_may_remove_and_one_of_two_may_not(root: Path) -> None:
    first, second = FlushGuard(), FlushGuard()
    first.share()
    assert first.try_alone()
    first.leave()
    first.share()
    second.share()
    assert not first.try_alone()
    second.leave()
    assert first.try_alone()


def test_only_one_removes_at_a_time(root: Path) -> None:
    first, second = FlushGuard(), FlushGuard()
    assert first.try_alone()
    assert not second.try_alone()
    first.leave()
    assert second.try_alone()


def test_a_hold_waits_for_a_removal(root: Path) -> None:
    remover, hold = FlushGuard(), FlushGuard()
    assert remover.try_alone()
    holding = threading.Event()

    def share() -> None:
        hold.share()
        holding.set()

    waiting = threading.Thread(target=share, daemon=True)
    waiting.start()
    assert not holding.wait(0.05)
    remover.leave()
    assert holding.wait(10)
    waiting.join()
    assert not remover.try_alone()
    hold.leave()
    assert not root.exists()


def test_a_hold_says_whose_removal_does_not_end(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_REMOVAL_S", 0.05)
    remover = FlushGuard()
    assert remover.try_alone()
    for wait in (FlushGuard.share, FlushGuard.check):
        with pytest.raises(LockError, match=f"pid {os.getpid()}") as told:
            wait(FlushGuard())
        assert f"kill -9 {os.getpid()}" in told.value.remedy
    monkeypatch.setattr(procfs, "flock_holder", lambda _: 0)
    with pytest.raises(LockError, match="of another PID namespace"):
        FlushGuard().share()
    remover.leave()
    FlushGuard().check()
    assert not root.exists()


def test_leaving_twice_is_no_error(root: Path) -> None:
    guard = FlushGuard()
    guard.leave()
    guard.share()
    guard.leave()
    guard.leave()
    assert not root.exists()


@pytest.mark.parametrize("end", [RunLocks.drop, lambda locks: None])
def test_a_forked_process_keeps_the_lock(root: Path, end: Callable[[RunLocks], None]) -> None:
    """The keeper has it, too: the lock is on the open description."""
    locks = RunLocks(_any(80))
    locks.take(timeout_s=0)
    kept = [os.dup(descriptor) for descriptor in locks.descriptors]
    for descriptor in locks.descriptors:
        os.close(descriptor)
    locks._taken.clear()
    end(locks)
    with pytest.raises(LockError):
        RunLocks(_any(80)).take(timeout_s=0)
    for descriptor in kept:
        os.close(descriptor)
    RunLocks(_any(80)).take(timeout_s=0)


def test_many_runs_at_once_make_and_remove_the_same_folders(root: Path) -> None:
    """The one's last step is the other's first: a folder may go between two calls."""
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            _come_and_go(number)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(children)
    assert not root.exists()


def _come_and_go(number: int) -> None:
    """A forked child's whole life: lock, write, remove, and again; never returns."""
    status = 1
    try:
        for turn in range(400):
            locks = RunLocks(_any(80 + number))
            locks.take(timeout_s=0)
            ledger = Ledger(f"{number:04x}{turn:04x}")
            ledger.write(ENTRY)
            guard = FlushGuard()
            guard.share()
            guard.leave()
            ledger.remove()
            locks.drop()
        status = 0
    finally:
        os._exit(status)
