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


def test_tmpfiles_removes_what_an_earlier_boot_left(tmp_path: Path) -> None:
    left = tmp_path / "run" / "synplug" / "4026531840" / "port-80.lock"
    left.parent.mkdir(parents=True)
    left.touch()
    (tmp_path / "run" / "other").mkdir()
    for boot, is_there in (((), True), (("--boot",), False)):
        subprocess.run(
            ["systemd-tmpfiles", f"--root={tmp_path}", "--create", "--remove", *boot, "-"],
            input=(FOLDER / "synplug.conf").read_text(),
            text=True,
            check=True,
        )
        assert left.exists() == is_there
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["other"]


def _verify(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What systemd-analyze says of the unit, with the synplug of this very environment."""
    synplug = Path(sys.executable).with_name("synplug")
    unit = folder / UNIT.name
    unit.write_text(text.replace("/usr/bin/synplug", str(synplug)))
    argv = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)]
    return subprocess.run(argv, capture_output=True, text=True, check=False)
