"""The drop-in: in the order in which systemd runs its lines."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
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
ExecStop=/srv/synplug-tools/say goodbye
ExecStartPost=-/srv/app/is-healthy
ExecReload=-/bin/kill -HUP $MAINPID

# /etc/systemd/system/app.service.d/more.conf
[Service]
ExecStartPost=+/srv/app/tell
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
        "ExecStop=/srv/synplug-tools/say goodbye",
        "ExecStartPost=",
        f"ExecStartPost=-+{tmp_path}/synplug release --name app --if-held -q",
        "ExecStartPost=-/srv/app/is-healthy",
        "ExecStartPost=+/srv/app/tell",
    ]


@pytest.mark.parametrize("words", [[], ["--reload"]])
def test_printed_anew_with_itself_in_place_it_is_the_same(
    words: list[str], systemctl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = printed(capsys, "app", "-p", "80", *words)
    systemctl.write_text(UNIT + "\n" + "\n".join([before[0], *before]))
    assert printed(capsys, "app", "-p", "80", *words) == before


def test_a_path_in_a_comment_of_a_unit_is_no_file(
    systemctl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = printed(capsys, "app", "-p", "80", "--reload")
    for comment in ("# /etc/systemd/zz.conf", "\n# /etc/zz.conf"):
        systemctl.write_text(UNIT.replace("ExecReload=", f"{comment}\nExecReload="))
        assert printed(capsys, "app", "-p", "80", "--reload") == before


def test_a_drop_in_behind_ours_would_undo_it(
    systemctl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    systemctl.write_text(UNIT.replace("more.conf", "zz.conf"))
    assert main(["systemd", "drop-in", "app", "-p", "80"]) == 125
    said = capsys.readouterr().err
    assert "app.service.d/zz.conf has ExecStartPost=, and is read after synplug.conf" in said


def test_a_reload_is_wrapped(
    systemctl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = printed(capsys, "app.service", "-p", "80", "--reload")
    assert lines[-2:] == [
        "ExecReload=",
        f"ExecReload=-{tmp_path}/synplug wrap -q -p *:80 -- /bin/kill -HUP $MAINPID",
    ]


@pytest.mark.parametrize(
    ("prefix", "setting"),
    [
        ("", "PrivateTmp=yes"),
        ("", "User=root"),
        ("-:", "ProtectSystem=full"),
        ("+", "User=www-data"),
        ("!", "User=www-data"),
        ("+", "CapabilityBoundingSet="),
        ("", "CapabilityBoundingSet=CAP_NET_ADMIN CAP_KILL"),
        ("", "CapabilityBoundingSet=CAP_NET_ADMIN\nCapabilityBoundingSet=CAP_KILL"),
        ("", "CapabilityBoundingSet=CAP_KILL\nCapabilityBoundingSet=~"),
        ("", "RestrictAddressFamilies=AF_INET AF_NETLINK"),
        ("", "RestrictAddressFamilies=AF_NETLINK\nRestrictAddressFamilies=AF_INET"),
        ("", "ProtectHome=read-only"),
        ("+", "ProtectHome=yes"),
        ("+", "ReadOnlyPaths=/run"),
        ("", "ReadOnlyPaths=/run/app /srv\nInaccessiblePaths=-/run/app"),
        ("", "ReadOnlyPaths=/\nReadWritePaths=-/run"),
        ("", "ReadOnlyPaths=/run\nReadOnlyPaths="),
        ("", "ProcSubset=all"),
    ],
)
def test_a_reload_keeps_the_rights_that_it_has(
    prefix: str, setting: str, systemctl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"ExecReload={prefix}/bin/kill"
    systemctl.write_text(UNIT.replace("ExecReload=-/bin/kill", f"{setting}\n{line}"))
    (wrapped,) = printed(capsys, "app", "-p", "80", "--reload")[-1:]
    assert wrapped.partition("/")[0] == f"ExecReload={prefix}"


@pytest.mark.parametrize(
    ("prefix", "setting", "says"),
    [
        ("", "User=www-data", "User=www-data"),
        ("-", "DynamicUser=yes", "DynamicUser=yes"),
        ("", "CapabilityBoundingSet=", "CapabilityBoundingSet="),
        ("!", "CapabilityBoundingSet=~CAP_NET_ADMIN", "CapabilityBoundingSet=~CAP_NET_ADMIN"),
        (
            "",
            "CapabilityBoundingSet=~CAP_NET_ADMIN\nCapabilityBoundingSet=~CAP_KILL",
            "with CapabilityBoundingSet=~CAP_NET_ADMIN CapabilityBoundingSet=~CAP_KILL synplug",
        ),
        ("", "RestrictAddressFamilies=none", "RestrictAddressFamilies=none"),
        ("", "ProtectSystem=strict", "ProtectSystem=strict"),
        ("", "ReadOnlyPaths=/run", "with ReadOnlyPaths=/run nobody may write to /run/synplug"),
        ("", "ReadOnlyPaths=/a -%t\nReadOnlyPaths=/b", "with ReadOnlyPaths=/a -%t nobody may"),
        ("!", "ReadOnlyPaths=/\nReadWritePaths=/run/app", "with ReadOnlyPaths=/ nobody may"),
        ("", "InaccessiblePaths=/run", "with InaccessiblePaths=/run there is no /run/synplug"),
        ("", "TemporaryFileSystem=/run:ro", "TemporaryFileSystem=/run:ro there is no /run/synplug"),
        ("", "ProcSubset=pid", "ProcSubset=pid"),
        ("", "NoExecPaths=/opt", "NoExecPaths=/opt"),
        ("@", "", "the prefix @ names argv[0]"),
        ("-|", "", "the prefix | has a shell run it"),
        ("", "ExecReload=/bin/a ; /bin/b\n#", "several commands"),
    ],
)
def test_a_reload_whose_rights_synplug_would_change_is_refused(
    prefix: str, setting: str, says: str, systemctl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"{setting}\nExecReload={prefix}/bin/kill"
    if says == "several commands":
        line = setting
    systemctl.write_text(UNIT.replace("ExecReload=-/bin/kill", line))
    assert main(["systemd", "drop-in", "app", "-p", "80", "--reload"]) == 125
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "name", "values"),
    [
        (
            "CapabilityBoundingSet",
            "CAP_NET_ADMIN",
            ["", "~", "CAP_NET_ADMIN CAP_KILL", "~CAP_NET_ADMIN", "CAP_KILL", "~CAP_KILL"],
        ),
        (
            "RestrictAddressFamilies",
            "AF_NETLINK",
            ["", "none", "AF_NETLINK AF_INET", "~AF_NETLINK", "AF_INET", "~AF_INET"],
        ),
    ],
)
def test_lines_that_add_up_are_read_as_systemd_reads_them(
    key: str,
    name: str,
    values: list[str],
    systemctl: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The second opinion is systemd's own: of one, two and three lines."""
    units = {}
    for count in (1, 2, 3):
        for number, lines in enumerate(itertools.product(values, repeat=count)):
            setting = "".join(f"{key}={value}\n" for value in lines)
            path = tmp_path / f"{count}-{number}.service"
            path.write_text(f"[Service]\nExecStart=/bin/true\n{setting}")
            units[path] = setting
    said = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--json=short", "--no-pager", *units],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    found = [
        one for line in said.splitlines() for one in json.loads(line)
        if one["name"] == f"{key}=~{name}"
    ]  # fmt: skip
    for setting, one in zip(units.values(), found, strict=True):
        systemctl.write_text(UNIT.replace("ExecReload=", f"{setting}ExecReload="))
        status = main(["systemd", "drop-in", "app", "-p", "80", "--reload"])
        assert status == (125 if one["set"] else 0), (setting, capsys.readouterr())


@pytest.mark.parametrize("home", ["yes", "tmpfs"])
@pytest.mark.parametrize("place", ["/root/.local/bin/synplug", "/usr/local/bin/synplug"])
def test_a_reload_that_would_not_see_synplug_is_refused(
    place: str,
    home: str,
    systemctl: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: place)
    monkeypatch.setattr(sys, "prefix", "/opt/pipx/venvs/synplug")
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    systemctl.write_text(UNIT.replace("ExecReload=", f"ProtectHome={home}\nExecReload="))
    words = ["systemd", "drop-in", "app", "-p", "80", "--reload"]
    if place.startswith("/usr"):
        assert main(words) == 0
        monkeypatch.setattr(sys, "prefix", "/root/.local/share/pipx/venvs/synplug")
        place = sys.prefix
    assert main(words) == 125
    (said, *_) = capsys.readouterr().err.splitlines()
    assert f"with ProtectHome={home} there is no {place}" in said


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
