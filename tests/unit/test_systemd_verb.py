"""The drop-in: in the order in which systemd runs its lines."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from synplug.cli.main import main

UNIT = """\
# /lib/systemd/system/app.service
[Unit]
Description=An application
[Service]
ExecStart=/bin/sleep 60
ExecStop=/bin/forgotten
ExecStop=
ExecStop=-/bin/kill --verbose \\
    $MAINPID
ExecStop=/bin/true
ExecReload=-/bin/kill -HUP $MAINPID

# /etc/systemd/system/app.service.d/synplug.conf
[Service]
ExecStop=
ExecStop=-+/usr/bin/systemd-run --scope --quiet /usr/bin/synplug hold --name app
ExecStop=-/bin/kill --verbose $MAINPID
ExecStop=/bin/true
"""


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A systemctl that knows one unit."""
    text = tmp_path / "unit"
    text.write_text(UNIT)
    tool = tmp_path / "systemctl"
    tool.write_text(
        f'#!/bin/sh\n[ "$1 $4" = "cat app.service" ] && exec cat {text}\n'
        'echo "No files found for $4." >&2; exit 1\n'
    )
    for name in ("systemctl", "synplug", "systemd-run"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return text


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert main(["systemd", "drop-in", *words]) == 0
    return capsys.readouterr().out.splitlines()


def test_the_hold_comes_before_whatever_stops_the_unit(
    systemctl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = printed(capsys, "app", "-p", "80,[::1]:443", "--max-hold", "2.5s")
    assert lines[0] == "# /etc/systemd/system/app.service.d/synplug.conf"
    assert lines[lines.index("[Service]") :] == [
        "[Service]",
        "ExecStop=",
        f"ExecStop=-+{tmp_path}/systemd-run --scope --quiet {tmp_path}/synplug hold "
        "--name app -p *:80,[::1]:443 --max-hold 2500ms -q",
        "ExecStop=-/bin/kill --verbose $MAINPID",
        "ExecStop=/bin/true",
        f"ExecStartPost=-+{tmp_path}/synplug release --name app -q",
    ]


def test_a_reload_is_wrapped(
    systemctl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = printed(capsys, "app.service", "-p", "80", "--reload")
    assert lines[-2:] == [
        "ExecReload=",
        f"ExecReload=+{tmp_path}/synplug wrap -q -p *:80 -- /bin/kill -HUP $MAINPID",
    ]


def test_what_is_printed_passes_systemd_s_own_check(
    systemctl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """systemd-analyze reads the unit with its drop-in; a slip in it would be seen."""
    units = tmp_path / "units"
    folder = units / "app.service.d"
    folder.mkdir(parents=True)
    (units / "app.service").write_text(UNIT.partition("# /etc/")[0])
    for words in (["app", "-p", "80"], ["app", "-p", "80", "--reload"]):
        text = "\n".join(printed(capsys, *words)) + "\n"
        for slip in ("", "ExecStopp=/bin/true\n", "TimeoutStopSec=soon\n"):
            (folder / "synplug.conf").write_text(text + slip)
            done = subprocess.run(
                ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no",
                 str(units / "app.service")],
                capture_output=True, text=True, check=False,
                env={"PATH": "/usr/bin:/bin", "SYSTEMD_UNIT_PATH": f"{units}:"},
            )  # fmt: skip
            said = [line for line in done.stderr.splitlines() if "synplug.conf" in line]
            assert bool(said) == bool(slip), done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["other", "-p", "80"], "systemd does not know other.service"),
        (["app.socket", "-p", "80"], "is not a service unit"),
        (["a b", "-p", "80"], "is not a service unit"),
        (["--reload", "-p", "80", "app"], "2 lines ExecReload="),
        (["app"], "app.service"),
    ],
)
def test_what_cannot_be_printed(
    words: list[str], says: str, systemctl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reload = "ExecReload=-/bin/kill -HUP $MAINPID"
    systemctl.write_text(UNIT.replace(reload, f"{reload}\n{reload}"))
    assert main(["systemd", "drop-in", *words]) == 125
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err
