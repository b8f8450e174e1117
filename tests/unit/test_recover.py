"""Cleaning up after dead runs touches what the ledger names, and nothing else."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path

import pytest

from synplug.cli.main import main
from synplug.errors import ReleaseError, SynplugError
from synplug.holding import recover as recover_module
from synplug.holding import runtime
from synplug.holding.ledger import DRAFT, Entry, Ledger, entries
from synplug.holding.locks import RunLocks
from synplug.holding.recover import recover, recover_by_id
from synplug.holding.supervisors import read_supervisor
from synplug.model import BackendName, Endpoint, HoldSpec
from synplug.record import replace

DEAD = Entry(
    run_id="0123abcd",
    keeper=4_194_303,
    keeper_start=1,
    backend="nfqueue",
    state="holding",
    endpoints=("*:80",),
)


class Remains:
    """What dead runs left; backends that clean it up."""

    def __init__(self) -> None:
        self.cleaned: list[str] = []
        self.removes: list[str] = []
        self.error: ReleaseError | None = None

    def backends_for(self, name: BackendName) -> tuple[object, ...]:
        return (self._make,)

    def _make(self, spec: HoldSpec) -> Remains:
        self._run_id = spec.run_id
        return self

    def clean_up_after_death(self, traces: object = None) -> list[str]:
        if self.error is not None:
            raise self.error
        self.cleaned.append(self._run_id)
        return list(self.removes)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "synplug"
    monkeypatch.setattr(runtime, "ROOT", str(path))
    return path


@pytest.fixture
def remains(root: Path, monkeypatch: pytest.MonkeyPatch) -> Remains:
    made = Remains()
    monkeypatch.setattr(recover_module, "backends_for", made.backends_for)
    return made


def test_a_dead_run_is_cleaned_up_once(root: Path, remains: Remains) -> None:
    Ledger(DEAD.run_id).write(DEAD)
    locks = RunLocks([Endpoint(port=80)])
    locks.take(timeout_s=0)
    for descriptor in locks.descriptors:
        os.close(descriptor)  # as the kernel does at a process's end
    (found,) = recover()
    assert (found.run_id, found.backend, found.endpoints, found.error) == (
        "0123abcd",
        "nfqueue",
        ("*:80",),
        "",
    )
    assert remains.cleaned == ["0123abcd"]
    assert not root.exists()
    assert recover() == []


@pytest.mark.parametrize(
    ("removes", "told"),
    [
        (
            ["6 tc filters", "the device synplug0123abcd"],
            "6 tc filters; the device synplug0123abcd",
        ),
        ([], "its files alone, the kernel had nothing left of it"),
    ],
)
def test_what_was_removed_is_told(
    root: Path,
    remains: Remains,
    capsys: pytest.CaptureFixture[str],
    removes: list[str],
    told: str,
) -> None:
    remains.removes = removes
    for options in ([], ["--json"]):
        Ledger(DEAD.run_id).write(DEAD)
        assert main(["recover", *options]) == 0
    people, machines = capsys.readouterr().out.splitlines()
    assert people == f"run 0123abcd  *:80  nfqueue  cleaned up: {told}"
    assert json.loads(machines)[0]["removed"] == removes


def test_who_cleans_up_and_does_not_end_is_waited_for_until_the_holds_deadline(
    root: Path, remains: Remains
) -> None:
    """He may be stopped; what a dead keeper's plug holds is let go all the same."""
    deadline_s = time.monotonic() + 1.5
    Ledger(DEAD.run_id).write(replace(DEAD, deadline_s=deadline_s))
    (path,) = root.rglob("*.json")
    with path.open() as entry:
        fcntl.flock(entry, fcntl.LOCK_EX)
        (found,) = recover()
        late_s = time.monotonic() - deadline_s
    assert (found.error, remains.cleaned) == ("", [DEAD.run_id])
    assert 0 <= late_s < 1, "he had his time, and nobody waited on"


def test_a_live_run_is_left_alone(root: Path, remains: Remains) -> None:
    """Its pid may say nothing here: it may be another PID namespace's."""
    ledger = Ledger(DEAD.run_id)
    ledger.own()
    ledger.write(DEAD)
    assert recover() == []
    assert remains.cleaned == []
    assert list(entries()) == [DEAD]
    ledger.remove()
    assert not root.exists()


@pytest.mark.parametrize("how", ["link", "writable", "foreign"])
def test_nothing_is_read_or_removed_below_somebody_elses_folder(
    root: Path, remains: Remains, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    Ledger(DEAD.run_id).write(DEAD)
    (Path(runtime.here()) / "supervisor-web.state").touch()
    (Path(runtime.here()) / "port-80.lock").touch()
    before = sorted(path.name for path in root.rglob("*"))
    where = root
    if how == "link":
        where = root.rename(tmp_path / "elsewhere")
        root.symlink_to(where)
    elif how == "writable":
        root.chmod(0o777)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        lstat = os.lstat
        foreign = list(lstat(root))
        foreign[4] = os.getuid() + 2
        monkeypatch.setattr(os, "lstat", lambda path: os.stat_result(foreign))
    for ask in (recover, lambda: list(entries()), lambda: read_supervisor("web")):
        with pytest.raises(SynplugError, match="only its owner can write to") as error:
            ask()
        assert error.value.exit_code == 125
    monkeypatch.undo()
    assert remains.cleaned == []
    assert sorted(path.name for path in where.rglob("*")) == before


@pytest.mark.parametrize(
    "changes",
    [{"run_id": "../../etc"}, {"run_id": "0123ABCD"}, {"backend": "magic", "run_id": "00000000"}],
)
def test_an_entry_that_makes_no_sense_is_told_and_touches_nothing(
    root: Path, remains: Remains, changes: dict[str, str]
) -> None:
    Ledger("00000000").write(Entry(**(DEAD.__dict__ | changes)))
    (found,) = recover()
    assert next(iter(changes.values())) in found.error
    assert remains.cleaned == []
    assert len(list(root.rglob("*.json"))) == 1


def test_a_failed_clean_up_is_told_and_tried_again(root: Path, remains: Remains) -> None:
    Ledger(DEAD.run_id).write(DEAD)
    remains.error = ReleaseError("the chain is still there", remedy="delete it")
    (found,) = recover()
    assert found.error == "the chain is still there (delete it)"
    remains.error = None
    (found,) = recover()
    assert found.error == ""
    assert not root.exists()


def test_one_failure_does_not_keep_another_run_from_its_clean_up(
    root: Path, remains: Remains
) -> None:
    Ledger("00000000").write(replace(DEAD, run_id="not hex!"))
    Ledger("ffffffff").write(replace(DEAD, run_id="ffffffff"))
    found = {dead.run_id: bool(dead.error) for dead in recover()}
    assert found == {"00000000": True, "ffffffff": False}
    assert remains.cleaned == ["ffffffff"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 2}', '{"format": 1, "run_id": "0123abcd"}']
)
def test_what_is_no_entry_is_named_and_stays(
    root: Path, remains: Remains, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half written, of another version, or of whoever: something of a hold may be there."""
    Ledger("ffffffff").write(replace(DEAD, run_id="ffffffff"))
    path = Path(runtime.here()) / "0123abcd.json"
    path.write_text(text)
    found = {dead.run_id: dead.error for dead in recover()}
    assert found["ffffffff"] == "", "others are cleaned up after"
    assert str(path) in found["0123abcd"]
    assert "'synplug recover --run 0123abcd'" in found["0123abcd"]
    assert path.exists()
    assert main(["recover"]) == 125
    assert str(path) in capsys.readouterr().out
    remains.cleaned.clear()
    assert main(["recover", "--run", "0123abcd"]) == 0
    assert remains.cleaned == ["0123abcd"]
    assert not root.exists()
    assert main(["recover"]) == 0


def test_a_file_that_has_no_runs_name_is_named_and_stays(root: Path, remains: Remains) -> None:
    Ledger("ffffffff").write(replace(DEAD, run_id="ffffffff"))
    path = Path(runtime.here()) / "whatever.json"
    path.write_text("{")
    assert [dead.error for dead in recover() if "remove the file" in dead.error]
    assert path.exists()


def test_what_cannot_be_cleaned_up_by_its_id_keeps_its_file(
    root: Path, remains: Remains, capsys: pytest.CaptureFixture[str]
) -> None:
    Ledger("0123abcd").write(DEAD)
    path = Path(runtime.here()) / "0123abcd.json"
    path.write_text("{")
    remains.error = ReleaseError("the device is still there")
    assert main(["recover", "--run", "0123abcd"]) == 125
    assert "FAILED: the device is still there" in capsys.readouterr().out
    assert path.exists()


def test_a_run_with_an_entry_is_cleaned_up_by_that(root: Path, remains: Remains) -> None:
    Ledger(DEAD.run_id).write(DEAD)
    found = recover_by_id(DEAD.run_id)
    assert (found.backend, found.endpoints) == ("nfqueue", ("*:80",))
    assert not root.exists()


@pytest.mark.parametrize("run_id", ["", "0123abc", "0123abcde", "../../etc", "0123ABCD", "synplug"])
def test_what_is_no_runs_id_is_refused(
    root: Path, remains: Remains, run_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recover", "--run", run_id]) == 125
    assert "is no run's id" in capsys.readouterr().err
    assert remains.cleaned == []
    assert not root.exists()


def test_an_id_of_which_nothing_is_here_is_told(
    root: Path, remains: Remains, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may be mistyped, while connections wait for another one."""
    assert main(["recover", "--run", "0123abcd"]) == 125
    assert "nothing of a run 0123abcd is here" in capsys.readouterr().err
    remains.removes = ["the device synplug0123abcd"]
    assert main(["recover", "--run", "0123abcd"]) == 0
    assert "cleaned up: the device synplug0123abcd" in capsys.readouterr().out


def test_a_live_run_is_not_cleaned_up_by_its_id(
    root: Path, remains: Remains, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger(DEAD.run_id)
    ledger.own()
    assert main(["recover", "--run", DEAD.run_id]) == 125
    assert "run 0123abcd lives" in capsys.readouterr().err
    assert remains.cleaned == []
    ledger.remove()


class Devices:
    """What if_nameindex(3) says, look by look; the last one again and again."""

    def __init__(self, *looks: str) -> None:
        self._looks = list(looks)

    def __call__(self) -> list[tuple[int, str]]:
        names = self._looks.pop(0) if len(self._looks) > 1 else self._looks[0]
        return list(enumerate(["lo", "synplugins", "synplug0", *names.split()], start=1))


@pytest.mark.parametrize("life", ["dead", "has an entry", "has one that nobody can read", "ended"])
def test_a_device_that_no_file_tells_of_is_told_and_stays(
    root: Path, remains: Remains, monkeypatch: pytest.MonkeyPatch, life: str
) -> None:
    """Whoever has another /run/synplug may be alive: nobody can know but who looks after it."""
    name = "synplug0123abcd"
    looks = [name, ""] if life == "ended" else [name]
    monkeypatch.setattr(socket, "if_nameindex", Devices(*looks))
    ledger = Ledger("0123abcd")
    if life.startswith("has"):
        ledger.own()
        ledger.write(DEAD)
    if life.endswith("read"):
        (Path(runtime.here()) / "0123abcd.json").write_text("{")
    found = recover()
    ledger.remove()
    assert [dead.run_id for dead in found] == (["0123abcd"] if life == "dead" else [])
    assert all(
        f"recover --run {DEAD.run_id}" in dead.error and name in dead.error for dead in found
    )
    assert remains.cleaned == []


def test_a_live_run_of_another_version_is_left_alone(root: Path, remains: Remains) -> None:
    ledger = Ledger(DEAD.run_id)
    ledger.own()
    (Path(runtime.here()) / "0123abcd.json").write_text('{"format": 2}')
    assert recover() == []
    ledger.remove()


def test_drafts_of_who_died_are_removed(root: Path, remains: Remains) -> None:
    """Of an entry, and of what a swap writes down; one that is new may be in the making."""
    folder = Path(runtime.here())
    folder.mkdir(parents=True, mode=0o700)
    old = [folder / "0123abcd.json.new", folder / f"tcp_migrate_req.0123abcd{DRAFT}"]
    new = folder / f"tcp_migrate_req.ffffffff{DRAFT}"
    for path in (*old, new):
        path.touch()
    for path in old:
        os.utime(path, (1, 1))
    recover()
    assert [path.exists() for path in (*old, new)] == [False, False, True]
