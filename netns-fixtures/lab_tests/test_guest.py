"""What the guests' harness says of guests that fail: never nothing, and never that all is well."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from guest.errors import BootError, FetchError
from guest.kernels import fetch_kernel
from guest.machine import Guest
from guest.suites import DEFAULT_SUITE, REPOSITORY, Kernel, fetch
from netlab.program import wait_until

SAMPLES = Path(__file__).with_name("guest_samples") / "samples.py"


def test_every_test_has_the_outcome_that_it_had_in_the_guest() -> None:
    options = ["-vv", "-rA", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(SAMPLES)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "KERNELS": DEFAULT_SUITE, "CI": ""},
    )
    for line in (
        "test_passes[bookworm] PASSED",
        "test_fails[bookworm] FAILED",
        "test_is_skipped[bookworm] SKIPPED",
        "test_kills_its_kernel[bookworm] FAILED",
        "test_is_owed_by_the_dead[bookworm] FAILED",
        "said in the guest",
        "something else",
        "Kernel panic",
        "3 failed, 1 passed, 1 skipped",
    ):
        assert line in done.stdout, done.stdout
    assert done.returncode == 1


def test_a_guest_that_does_not_end_is_killed_with_all_its_processes() -> None:
    with Guest(fetch(DEFAULT_SUITE), limit_s=4) as guest:
        guest.start(["sleep", "600"])
        with pytest.raises(BootError, match="did not end within 4 s"):
            _wait(guest)
        folder = str(guest.shared)
    # SIGKILL has been sent by then; the kernel takes a moment to tear down what is traced.
    wait_until(
        lambda: not [pid for pid in _pids() if folder in _command_line(pid)], 2, "all have ended"
    )
    assert not Path(folder).exists()


def test_an_unprivileged_user_gets_a_guest(as_nobody: list[str], tmp_path: Path) -> None:
    """With a plug; and root's files of the host are somebody else's there."""
    fixtures, kernel = tmp_path / "netns-fixtures", tmp_path / ".guest" / DEFAULT_SUITE
    for package in ("guest", "netlab"):
        shutil.copytree(REPOSITORY / "netns-fixtures" / package, fixtures / package)
    kernel.mkdir(parents=True)
    bind = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'  # where nobody may look for it
    words = "tc qdisc add dev lo root plug && tc qdisc show dev lo && stat -c 'owner %u' /usr"
    done = subprocess.run(
        [
            *("unshare", "--mount", "sh", "-c", bind, "sh", str(fetch(DEFAULT_SUITE).root)),
            *(str(kernel), *as_nobody, "/usr/bin/python3", "-m", "guest", "--", "sh", "-c", words),
        ],
        cwd=fixtures,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "qdisc plug" in done.stdout
    assert "owner 65534" in done.stdout


def test_a_guest_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    with Guest(Kernel(suite="none", root=tmp_path, release="0"), limit_s=30) as guest:
        guest.start(["true"])
        with pytest.raises(BootError, match="No such file"):
            _wait(guest)


def test_an_unknown_suite_is_an_error() -> None:
    with pytest.raises(FetchError, match="no suite 'woody': there are bullseye"):
        fetch("woody")


def test_an_unknown_kernel_is_an_error() -> None:
    with pytest.raises(FetchError, match=r"no kernel 'woody': there are bullseye.*stock-trixie"):
        fetch_kernel("woody")


def _wait(guest: Guest) -> int:
    while guest.runs():
        time.sleep(0.01)
    return guest.status()


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
