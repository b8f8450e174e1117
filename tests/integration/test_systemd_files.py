"""The files for systemd: what its own tools say of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "integrations" / "systemd"
UNIT = FOLDER / "synplug-recover.service"


@pytest.mark.parametrize("name", [path.name for path in FOLDER.glob("*.service")])
def test_the_unit_is_verified(name: str, tmp_path: Path) -> None:
    said = _verify((FOLDER / name).read_text(), tmp_path)
    assert (said.returncode, said.stderr) == (0, "")


def test_a_slip_in_the_unit_would_be_seen(tmp_path: Path) -> None:
    """The control."""
    said = _verify(UNIT.read_text().replace("ProtectHome=", "ProtectHomes="), tmp_path)
    assert "ProtectHomes" in said.stderr


def test_the_unit_has_the_capabilities_of_recover_and_no_more() -> None:
    """Those with which test_privileges.py shows that legacy rules can be made and removed."""
    (line,) = [text for text in UNIT.read_text().splitlines() if "CapabilityBoundingSet" in text]
    assert line == "CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW"


def test_recover_may_restore_what_a_killed_swap_has_set() -> None:
    """ProtectKernelTunables= makes all of /proc/sys read-only, but for what is named."""
    lines = UNIT.read_text().splitlines()
    (writable,) = [line for line in lines if line.startswith("ReadWritePaths=")]
    assert "-/proc/sys/net" in writable or "ProtectKernelTunables=yes" not in lines


def test_no_boot_removes_the_ledger(tmp_path: Path) -> None:
    """A soft reboot leaves the kernel's state as it is: only ``recover`` may end its entry."""
    left = tmp_path / "run" / "synplug" / "4026531840" / "0123abcd.json"
    left.parent.mkdir(parents=True)
    left.touch()
    _boot(tmp_path)
    assert left.exists()


def test_a_boot_makes_the_folder_for_root_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    _boot(tmp_path)
    assert (tmp_path / "run" / "synplug").stat().st_mode & 0o777 == 0o700


def _boot(root: Path) -> None:
    """What systemd-tmpfiles does with our entry at a boot, a soft one too."""
    subprocess.run(
        ["systemd-tmpfiles", f"--root={root}", "--create", "--remove", "--boot", "-"],
        input=(FOLDER / "synplug.conf").read_text(),
        text=True,
        check=True,
    )


def _verify(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What systemd-analyze says of the unit, with the synplug of this very environment."""
    synplug = Path(sys.executable).with_name("synplug")
    unit = folder / UNIT.name
    unit.write_text(text.replace("/usr/local/bin/synplug", str(synplug)))
    argv = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)]
    return subprocess.run(argv, capture_output=True, text=True, check=False)
