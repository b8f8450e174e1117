"""The guest itself: another kernel, harmless to the host, with all that the lab needs."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from guest.bridge import MACHINE
from guest.stock import STOCK
from netlab.load import Load
from netlab.servers import Nginx
from netlab.topology import ClientServer

RELEASES = {"bullseye": "5.10.", "bookworm": "6.1.", "trixie": "6.12."}


def test_it_is_the_kernel_that_was_asked_for(kernel: str) -> None:
    release = os.uname().release
    suite = STOCK.get(kernel, kernel)
    if suite in RELEASES:
        assert release.startswith(RELEASES[suite])
    elif kernel != MACHINE:
        major, minor = release.split(".")[:2]
        assert (int(major), int(minor)) > (6, 12), "sid has a later kernel than trixie"


def test_the_hosts_files_cannot_be_written_even_by_force(kernel: str) -> None:
    if kernel == MACHINE:
        return  # it is the host
    folders = [Path("/etc"), Path("/usr/lib"), Path.cwd(), Path(__file__).parent]
    assert [folder for folder in folders if is_writable(folder)] == []
    subprocess.run(["mount", "-o", "remount,rw", "/"], check=True)
    try:
        assert [folder for folder in folders if is_writable(folder)] == []
    finally:
        subprocess.run(["mount", "-o", "remount,ro", "/"], check=True)


def test_a_second_mount_of_the_hosts_files_cannot_be_written(kernel: str, tmp_path: Path) -> None:
    """Hostfs mounts whatever the kernel, a program of the host, sees: from its own root on.

    What an emulator exports is mounted once at most.
    """
    if kernel == MACHINE:
        return  # it is the host
    if kernel in STOCK:
        again = ["mount", "-t", "9p", "-o", "trans=virtio", "host", str(tmp_path)]
        assert subprocess.run(again, check=False).returncode
        return
    subprocess.run(["mount", "-t", "hostfs", "-o", "/", "none", tmp_path], check=True)
    try:
        assert (tmp_path / "host" / "etc").is_dir(), "the control: that is what it shows"
        folders = [tmp_path / name for name in ("", "dev", "etc", "host", "host/tmp", "usr")]
        assert [folder for folder in folders if is_writable(folder)] == []
        domain = tmp_path / "proc/sys/kernel/domainname"
        with pytest.raises(OSError, match="Read-only"):
            domain.write_text(domain.read_text(), encoding="utf-8")
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def is_writable(folder: Path) -> bool:
    path = folder / "guest-was-here"
    try:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    except OSError as error:
        return error.errno != errno.EROFS  # any other reason might go away
    path.unlink()
    return True


@pytest.mark.parametrize("folder", ["/tmp", "/run", "/var/log", "/dev/shm"])
def test_what_it_writes_is_its_own(kernel: str, folder: str) -> None:
    path = Path(folder, f"guest-was-here-{os.getpid()}")
    path.write_text("yes")
    path.unlink()


def test_the_lab_works(kernel: str) -> None:
    with ClientServer() as lab, Nginx(lab.server, workers=1) as nginx:
        targets = nginx.targets(lab.server_addresses)
        with Load(lab.client, targets, rate_per_s=100, duration_s=1.0) as load:
            result = load.wait()
        assert result.failures == 0, result.summary()
        assert len(result.samples) >= 100
