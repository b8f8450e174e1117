"""Finding commands, and what their ends are called."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from synplug.errors import CommandError, CommandNotFoundError
from synplug.handover.process import Signals, reached_the_command_too, resolve, shell_status


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH, with a program and a text in it."""
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (tmp_path / "text").write_text("")
    (tmp_path / "text").chmod(0o644)
    (tmp_path / "folder").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_a_program_is_found(folder: Path) -> None:
    assert resolve("program") == str(folder / "program")
    assert resolve(str(folder / "program")) == str(folder / "program")


def test_the_first_that_can_be_executed_counts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = folder / "folder"
    (before / "program").write_text("")
    monkeypatch.setenv("PATH", f"{before}:{folder}")
    assert resolve("program") == str(folder / "program")


def test_an_empty_part_of_path_is_the_working_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", ":/nonexistent")
    assert resolve("program") == "./program"


@pytest.mark.parametrize("name", ["none", "folder", "./none", "/nonexistent/program", ""])
def test_what_is_not_there(folder: Path, name: str) -> None:
    with pytest.raises(CommandNotFoundError, match="command not found") as error:
        resolve(name)
    assert error.value.exit_code == 127
    assert not error.value.remedy


def test_a_file_of_this_folder_is_named_as_such(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path_factory.mktemp("here")
    (here / "restart-app").write_text("")
    monkeypatch.chdir(here)
    with pytest.raises(CommandNotFoundError) as error:
        resolve("restart-app")
    assert error.value.remedy == "it is ./restart-app here"


def test_a_whole_command_in_one_word_is_no_program(folder: Path) -> None:
    (folder / "my program").write_text("")
    with pytest.raises(CommandNotFoundError, match="leave out the quotes"):
        resolve("program --option")
    with pytest.raises(CommandError, match="cannot be executed"):
        resolve(f"{folder}/my program")


def test_a_script_that_nobody_may_execute_is_told_what_it_lacks(folder: Path) -> None:
    script = folder / "restart app"
    script.write_text("#!/bin/sh\n")
    with pytest.raises(CommandError) as error:
        resolve(str(script))
    assert error.value.remedy == f"chmod +x '{script}', if it is meant to be"
    script.chmod(0o755)
    assert resolve(str(script)) == str(script)


@pytest.mark.parametrize("name", ["text", "{}/text", "{}/folder"])
def test_what_cannot_be_executed(folder: Path, name: str) -> None:
    with pytest.raises(CommandError, match="cannot be executed") as error:
        resolve(name.format(folder))
    assert error.value.exit_code == 126


@pytest.mark.parametrize(
    ("status", "expected"),
    [(0, 0), (3 << 8, 3), (255 << 8, 255), (9, 137), (15, 143), (15 | 128, 143)],
)
def test_ends_as_a_shell_calls_them(status: int, expected: int) -> None:
    assert shell_status(status) == expected


@pytest.mark.parametrize("ignored", [True, False], ids=["caller ignores", "caller does not"])
def test_sigpipe_is_at_its_default_unless_the_command_sees_to_it(ignored: bool) -> None:
    """Whatever the caller had: docs/failure-modes.md says so, and what to do about it."""
    look = "grep SigIgn /proc/self/status"
    program = (
        "from synplug.handover.process import SpawnedCommand as start\n"
        "import sys\n"
        f'for line in ("exec {look}", "trap \'\' PIPE; exec {look}"):\n'
        "    command = start(['sh', '-c', line], captured=True)\n"
        "    command.wait(10)\n"
        "    print(int(command.output().split()[1], 16) >> 12 & 1)\n"
    )
    trap = "trap '' PIPE; " if ignored else ""
    argv = ["sh", "-c", f'{trap}exec "$@"', "sh", sys.executable, "-c", program]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "1"]


def test_signals_are_taken_once_and_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    outside = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup(1) ignores it
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGHUP)
            signals.pause(60.0)
            assert sorted(signals.take()) == [signal.SIGHUP, signal.SIGTERM]
            assert signals.take() == []
    finally:
        signal.signal(signal.SIGHUP, outside)
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signals.take() == []
    finally:
        signal.signal(signal.SIGHUP, before)


def test_only_a_terminals_interrupt_reaches_the_whole_group() -> None:
    assert not reached_the_command_too(signal.SIGTERM, os.getpid())
    assert not reached_the_command_too(signal.SIGHUP, os.getpid())
