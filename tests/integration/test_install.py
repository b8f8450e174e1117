"""synplug as an operator installs it: by pipx, as the README says; and by other Pythons.

Without a network: pip and pipx find what they ask for in .venv-pipx.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from netlab.load import Load
from netlab.topology import ClientServer
from tests.document_blocks import ROOT, block
from tests.integration import shell
from tests.integration.conftest import SimpleService

PIPX = ROOT / ".venv-pipx"
#: Where it is then.
PLACE = Path("/usr/local/bin/synplug")
_SOURCES = ("synplug", "man", "pyproject.toml", "README.md", "LICENSE")
_VERSION = re.compile(r"Python 3\.(\d+)\.")


def interpreters() -> Iterator[Path]:
    """The Pythons that are here, one of each version that synplug is for; this one at the least."""
    yield Path(sys.executable)
    for minor in {10, 11, 12, 13, 14} - {sys.version_info.minor}:
        name = f"python3.{minor}"
        versions = Path.home() / ".pyenv" / "versions"
        found_there = sorted(map(str, versions.glob(f"3.{minor}.*/bin/{name}")))
        for path in filter(None, [shutil.which(name), *found_there]):
            said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
            found = _VERSION.match(said.stdout)
            if found and int(found.group(1)) == minor:
                yield Path(path)
                break


@pytest.fixture
def offline(tmp_path: Path) -> dict[str, str]:
    """An environment in which pip asks nobody, in a home of its own."""
    home = tmp_path / "home"
    home.mkdir()
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("PIP", "VIRT"))}
    return kept | {
        "HOME": str(home),
        "PATH": f"/usr/local/bin:{PIPX}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(PIPX / "wheels"),
    }


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of it: a build writes beside the sources."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in _SOURCES:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / name)
    return folder


def restarts(lab: ClientServer, simple: SimpleService, synplug: Path) -> None:
    """It does what it is for."""
    pid = simple.pid
    argv = [str(synplug), "wrap", "-p", "8080", "--", *simple.restart_argv("--delay", "0.2")]
    with Load(lab.client, simple.targets(lab), rate_per_s=200) as load:
        done = shell.run_plainly(lab.server, argv)
        result = load.stop()
    assert done.status == 0, done
    assert simple.pid != pid
    assert result.failures == 0, result.summary()


@pytest.fixture
def fresh(etc: Path) -> Iterator[None]:
    """/usr/local, /opt and /etc of a machine that has just been set up; they are pytest's alone."""
    shutil.rmtree(etc / "bash_completion.d", ignore_errors=True)
    folders = ("/usr/local", "/opt")
    for folder in folders:
        subprocess.run(["mount", "-t", "tmpfs", "fresh", folder], check=True)
    try:
        for path in (PLACE.parent, Path("/usr/local/share/man")):
            path.mkdir(parents=True)
        yield
    finally:
        for folder in folders:
            subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.usefixtures("fresh")
def test_pipx_installs_what_the_readme_says(
    lab: ClientServer, simple: SimpleService, etc: Path, offline: dict[str, str], checkout: Path
) -> None:
    """Its lines, but for apt; man(1) is asked for the path of the page."""
    text = block("README.md", "pipx install .")
    for there, here in (("apt install pipx", "true"), ("man -M", "man -w -M")):
        assert there in text
        text = text.replace(there, here)
    done = lab.server.run(
        ["sh", "-e", "-c", text], timeout_s=90, env=offline, cwd=checkout, check=False
    )
    assert done.returncode == 0, done
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert f"synplug {version.group(1)}" in done.stdout
    assert done.stdout.rstrip().endswith("/man1/synplug-wrap.1")
    assert "complete -o filenames" in (etc / "bash_completion.d" / "synplug").read_text()
    assert Path("/usr/local/share/man/man1/synplug-wrap.1").is_file()
    said = shell.run_plainly(lab.server, [str(PLACE), "doctor"])
    assert said.status == 0, said
    restarts(lab, simple, PLACE)
    _is_where_the_other_pages_look(lab, Path(offline["HOME"]))


def _is_where_the_other_pages_look(lab: ClientServer, home: Path) -> None:
    """cron, the units, and the drop-in that it prints; without the home of who installed it."""
    shutil.rmtree(home)
    (path,) = re.findall("^PATH=.*", block("docs/recipes.md", "* * * * * root"), re.MULTILINE)
    lab.server.run(["env", "-i", path, "sh", "-c", "synplug --version"])
    units = [*(ROOT / "integrations" / "systemd").glob("*.service"), ROOT / "docs" / "envoy.md"]
    for page in (*units, ROOT / "integrations" / "systemd" / "README.md"):
        named = re.findall(r"^Exec\w+=(\S+/synplug) ", page.read_text(), re.MULTILINE)
        assert set(named) == {str(PLACE)}, page
    systemctl = PLACE.with_name("systemctl")
    systemctl.write_text("#!/bin/sh\necho [Service]\n")
    systemctl.chmod(0o755)
    argv = ["env", "-i", path, "synplug", "systemd", "drop-in", "app", "-p", "8080"]
    lines = lab.server.run(argv).stdout.splitlines()
    assert f"ExecStartPost=-+{PLACE} release --name app --if-held -q" in lines


@pytest.mark.parametrize("python", list(interpreters()), ids=lambda path: path.name)
def test_another_python(
    lab: ClientServer,
    simple: SimpleService,
    offline: dict[str, str],
    checkout: Path,
    tmp_path: Path,
    python: Path,
) -> None:
    """Those that are here; Debian trixie's 3.13 runs it in guest/test_systemd.py."""
    venv = tmp_path / "venv"
    for argv in (
        [str(python), "-m", "venv", str(venv)],
        [f"{venv}/bin/python", "-m", "pip", "install", "--quiet", str(checkout)],
    ):
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, env=offline, timeout=90
        )
        assert done.returncode == 0, done.stderr
    restarts(lab, simple, venv / "bin" / "synplug")
