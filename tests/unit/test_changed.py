"""What has not changed since the last success is not restarted."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from synplug.cli.main import main
from synplug.errors import LockError, UsageError
from synplug.handover.changed import ChangeRecord, digest_of, would_be_unchanged


@pytest.fixture
def record(tmp_path: Path) -> Callable[..., ChangeRecord]:
    """A record of a file, as a run would open it."""
    (tmp_path / "conf").write_text("a")

    def opened(*paths: str, identity: tuple[str, ...] = ("web",)) -> ChangeRecord:
        return ChangeRecord(
            identity, paths or (str(tmp_path / "conf"),), directory=str(tmp_path / "state")
        )

    return opened


def succeed(record: ChangeRecord) -> None:
    record.take(timeout_s=0)
    record.is_unchanged()
    record.keep()
    record.close()


def unchanged(record: ChangeRecord) -> bool:
    record.take(timeout_s=0)
    try:
        return record.is_unchanged()
    finally:
        record.close()


def test_it_is_unchanged_after_a_success_until_it_changes(
    record: Callable[..., ChangeRecord], tmp_path: Path
) -> None:
    assert not unchanged(record()), "the first time"
    assert not unchanged(record()), "there was no success"
    succeed(record())
    assert unchanged(record())
    os.utime(tmp_path / "conf", (1, 1))
    assert unchanged(record()), "what counts is what stands in it"
    (tmp_path / "conf").write_text("b")
    assert not unchanged(record())
    (tmp_path / "conf").write_text("a")
    assert unchanged(record())


def test_a_forecast_says_what_the_run_would_and_makes_nothing(
    record: Callable[..., ChangeRecord], tmp_path: Path
) -> None:
    state, files = tmp_path / "state", (str(tmp_path / "conf"),)

    def forecast(*identity: str) -> bool:
        return would_be_unchanged(identity, files, directory=str(state))

    assert not forecast("web")
    assert not state.exists()
    running = record()
    running.take(timeout_s=0)
    assert not forecast("web"), "there was no success; and it waits for nobody"
    running.close()
    succeed(record())
    before = sorted(state.iterdir())
    assert forecast("web")
    assert not forecast("other")
    (tmp_path / "conf").write_text("b")
    assert not forecast("web")
    assert sorted(state.iterdir()) == before
    (tmp_path / "conf").unlink()
    with pytest.raises(UsageError, match="No such file"):
        forecast("web")


def test_a_dry_run_says_that_nothing_would_be_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "conf"
    file.write_text("a")
    directory = str(tmp_path / "state")
    monkeypatch.setattr(
        "synplug.handover.changed.would_be_unchanged",
        partial(would_be_unchanged, directory=directory),
    )
    monkeypatch.setattr("synplug.cli.wrap.plan_wrap", lambda _request: ())
    monkeypatch.setattr("synplug.cli.wrap._dry_run", lambda: "the plan")
    asked = [
        "wrap",
        "-n",
        "--config=/dev/null",
        "-p80",
        f"--only-if-changed={file}",
        "--",
        "r",
        "x",
    ]
    assert main(asked) == 0
    assert capsys.readouterr().out == "the plan\n"
    succeed(ChangeRecord(("", "", "r", "x"), (str(file),), directory=directory))
    assert main(asked) == 0
    assert capsys.readouterr().out == (
        "nothing has changed since the last successful run: would do nothing\n"
    )
    file.write_text("b")
    assert main(asked) == 0
    assert capsys.readouterr().out == "the plan\n"


def test_what_counts_is_what_was_there_before_the_run(
    record: Callable[..., ChangeRecord], tmp_path: Path
) -> None:
    """What is written while the service restarts may have come too late for it."""
    run = record()
    run.take(timeout_s=0)
    assert not run.is_unchanged()
    (tmp_path / "conf").write_text("b")
    run.keep()
    run.close()
    assert not unchanged(record())


def test_a_restart_that_has_failed_leaves_no_record(
    record: Callable[..., ChangeRecord], tmp_path: Path
) -> None:
    succeed(record())
    for ran in (False, True):
        (tmp_path / "conf").write_text("b")
        run = record()
        run.take(timeout_s=0)
        assert not run.is_unchanged()
        run.void()
        if not ran:
            run.put_back()
        run.close()
        assert not unchanged(record()), "the next run tries again"
        (tmp_path / "conf").write_text("a")
        assert unchanged(record()) != ran, "who was restarted with another file is not as before"


def test_another_restart_has_another_record(record: Callable[..., ChangeRecord]) -> None:
    succeed(record())
    assert not unchanged(record(identity=("mail",)))


def test_one_run_at_a_time(record: Callable[..., ChangeRecord]) -> None:
    first, second = record(), record()
    first.take(timeout_s=0)
    now = [0.0]

    def pause(wait_s: float) -> None:
        now[0] += wait_s

    with pytest.raises(LockError, match="under way"):
        second.take(timeout_s=3.0, clock=lambda: now[0], pause=pause)
    assert 3.0 <= now[0] < 3.2
    first.close()
    second.take(timeout_s=0)
    second.close()


def test_directories_count_with_all_that_is_in_them(tmp_path: Path) -> None:
    folder = tmp_path / "conf.d"
    (folder / "sub").mkdir(parents=True)
    seen = [digest_of([str(folder)])]
    (folder / "sub" / "a").write_text("1")
    seen.append(digest_of([str(folder)]))
    (folder / "sub" / "a").rename(folder / "sub" / "b")
    seen.append(digest_of([str(folder)]))
    (folder / "c").write_text("")
    seen.append(digest_of([str(folder)]))
    assert len(set(seen)) == len(seen)
    assert digest_of([str(folder)]) == seen[-1]


def test_contents_are_not_mistaken_for_each_other(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("xy")
    (tmp_path / "b").write_text("")
    paths = [str(tmp_path / "a"), str(tmp_path / "b")]
    before = digest_of(paths)
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").write_text("y")
    assert digest_of(paths) != before


def test_what_cannot_be_read_is_an_error_and_no_change(
    record: Callable[..., ChangeRecord], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, words in ((tmp_path / "none", "No such file"), (tmp_path / "fifo", "neither a file")):
        run = record(str(path))
        with pytest.raises(UsageError, match=words):
            run.is_unchanged()
        run.close()
    with pytest.raises(UsageError, match="cannot be kept"):
        ChangeRecord(("x",), ("y",), directory=str(tmp_path / "conf" / "below-a-file"))
    for look in (ChangeRecord, would_be_unchanged):
        with pytest.raises(UsageError, match="needs the path"):
            look(("x",), ("",), directory=str(tmp_path / "state"))


def test_a_link_that_is_switched_is_a_change_and_one_that_dangles_is_none(tmp_path: Path) -> None:
    folder, releases = tmp_path / "app", tmp_path / "releases"
    folder.mkdir()
    for number in ("1", "2"):
        (releases / number).mkdir(parents=True)
        (releases / number / "conf").write_text("the same")
    current = folder / "current"

    def after(target: str) -> str:
        current.unlink(missing_ok=True)
        current.symlink_to(target)
        assert digest_of([str(folder)]) == digest_of([str(folder)])
        return digest_of([str(folder)])

    states = [after("../releases/1"), after("../releases/2"), after("nowhere"), after(".")]
    assert len(set(states)) == len(states)
    assert digest_of([str(current)]) != after("../releases/1")
    assert after("../releases/1") == states[0]
    (releases / "1" / "conf").write_text("another")
    assert digest_of([str(folder)]) != states[0], "what the link names counts, too"
