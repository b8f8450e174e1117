"""Completion in real shells, and manual pages as man(1) reads them."""

from __future__ import annotations

import importlib.util
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from synplug.cli import completion
from synplug.cli.main import main

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def completed_by_bash(*words: str, config: str = "") -> set[str]:
    """What bash would offer for the last of these words."""
    script = (
        f"export PATH={BIN}:$PATH SYNPLUG_CONFIG={config}\nsource /dev/stdin <<'EOF'\n"
        f'{completion.bash()}EOF\nCOMP_WORDS=("$@") COMP_CWORD=$(($# - 1))\n_synplug\n'
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["bash", "-euc", script, "bash", "synplug", *words],
        capture_output=True, text=True, check=True, cwd="/",
    )  # fmt: skip
    return set(done.stdout.split())


def test_bash_completes_verbs_options_and_values(tmp_path: Path) -> None:
    assert completed_by_bash("re") == {"release", "restart", "reload", "recover"}
    assert completed_by_bash("wrap", "--max-h") == {
        "--max-hold", "--max-held", "--max-held-per-source",
    }  # fmt: skip
    assert completed_by_bash("wrap", "--on-full", "") == {"drop", "pass"}
    assert completed_by_bash("wrap", "--backend", "nfq") == {"nfqueue", "nfqueue-iptables"}
    assert completed_by_bash("config", "c") == {"check"}
    assert "--no-best-effort" not in completed_by_bash("wrap", "--")
    assert "/etc" in completed_by_bash("wrap", "--json", "/et")
    assert "systemctl" in completed_by_bash("wrap", "-p", "80", "--", "systemct")
    config = tmp_path / "synplug.toml"
    config.write_text("[service.web]\nport = 80\n[service.mail]\nport = 25\n")
    config.chmod(0o600)
    assert "web" in completed_by_bash("restart", "", config=str(config))
    assert completed_by_bash("wrap", "-s", "m", config=str(config)) == {"mail"}


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_take_theirs(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.fail(f"no {shell}: netns-fixtures/setup.sh installs it")
    script = tmp_path / "completion"
    script.write_text(getattr(completion, shell)())
    if shell == "fish":
        line = f"source {script}; complete -C 'synplug wrap --on-full '; complete -C 'synplug rel'"
        expected = ["drop", "pass", "release", "reload"]
    else:
        line = (
            f"ZDOTDIR={tmp_path} HOME={tmp_path}; source {script}; words=(synplug wrap --on-f); "
            "COMP_WORDS=(synplug wrap --on-f); "
            "print -l ${_comps[synplug]}; typeset -f _synplug | head -1"
        )
        expected = ["_bash_complete", "_synplug"]
    flag = ["-f"] if shell == "zsh" else ["-N"]
    environ = {"PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(tmp_path), "TERM": "dumb"}
    done = subprocess.run(
        [shell, *flag, "-c", line], capture_output=True, text=True, check=False, env=environ
    )
    assert done.returncode == 0, done.stderr
    for word in expected:
        assert word in done.stdout, done
    assert done.stderr == ""


class Zsh:
    """An interactive zsh on a terminal of its own, with no other configuration than is given.

    Its Control-O appends the line to a file, Control-U clears it.
    """

    def __init__(self, folder: Path, configuration: str, config: str) -> None:
        self._lines = folder / "lines"
        self._lines.touch()
        environ = {
            "PATH": f"{BIN}:/usr/bin:/bin",
            "HOME": str(folder),
            "TERM": "dumb",
            "SYNPLUG_CONFIG": config,
            "LC_ALL": "C.UTF-8",
        }
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            os.chdir("/")
            os.execvpe("zsh", ["zsh", "-f", "-i"], environ)
        # Before it reads keys itself, the terminal would swallow some of those that are typed.
        reads = folder / "reads"
        self._write(
            f"{configuration}\n"
            f"show() {{ print -r -- $BUFFER >>{self._lines} }}; zle -N show; bindkey '^O' show; "
            f"zle-line-init() {{ : >{reads} }}; zle -N zle-line-init\n"
        )
        self._read_until(reads.exists)

    def completed(self, line: str) -> str:
        """What the line is after a Tab."""
        before = self._lines.read_text()
        self._write(f"{line}\t\x0f\x15")
        self._read_until(lambda: self._lines.read_text() != before)
        return self._lines.read_text().removeprefix(before).strip()

    def close(self) -> None:
        """Hang up."""
        os.close(self._terminal)
        os.waitpid(self._pid, 0)

    def _write(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def _read_until(self, so_it_is: Callable[[], bool]) -> None:
        text, give_up_s = b"", time.monotonic() + 20
        while not so_it_is():
            assert time.monotonic() < give_up_s, text.decode(errors="replace")
            if select.select([self._terminal], [], [], 0.02)[0]:
                text += os.read(self._terminal, 4096)


@pytest.mark.parametrize("how", ["source", "fpath"])
def test_zsh_completes_at_the_first_tab(how: str, tmp_path: Path) -> None:
    """By a line in .zshrc, and as a file of $fpath."""
    config = tmp_path / "synplug.toml"
    config.write_text("[service.web]\nport = 80\n")
    config.chmod(0o600)
    (tmp_path / "site").mkdir()
    file = tmp_path / "site" / "_synplug"
    file.write_text(completion.zsh())
    configuration = {
        "source": f"source {file}",
        "fpath": f"fpath=({file.parent} $fpath); autoload -U compinit && compinit -u",
    }[how]
    zsh = Zsh(tmp_path, configuration, str(config))
    try:
        for typed, line in (
            ("synplug rest", "synplug restart"),
            ("synplug wrap --on-f", "synplug wrap --on-full"),
            ("synplug wrap --on-full p", "synplug wrap --on-full pass"),
            ("synplug wrap -p 80 -- systemct", "synplug wrap -p 80 -- systemctl"),
            ("synplug restart w", "synplug restart web"),
            ("synplug wrap --no-such", "synplug wrap --no-such"),
        ):
            assert zsh.completed(typed) == line
    finally:
        zsh.close()


def test_the_verb_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert main(["completion", shell]) == 0
        assert capsys.readouterr().out == getattr(completion, shell)()
    assert main(["completion", "tcsh"]) == 125


def script() -> Any:
    """What writes the manual pages."""
    spec = importlib.util.spec_from_file_location("manual_pages", ROOT / "scripts/manual_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_manual_pages_are_those_of_the_options() -> None:
    """``make man`` writes them."""
    there = {path.name: path.read_text() for path in (ROOT / "man").glob("*.1")}
    assert there == script().pages()


def test_the_reference_is_that_of_the_options() -> None:
    """``make man`` writes it, too."""
    page = (ROOT / "docs/command-line.md").read_text()
    assert page == script().reference()
    for verb in completion.verbs():
        section = page.partition(f"\n## {verb.name}\n")[2].partition("\n## ")[0]
        assert f"synplug {verb.name}" in section
        flags = {flag for option in verb.options for flag in option.flags}
        assert flags <= set(re.findall(r"`(-[-a-z]+)", section))


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "man").glob("*.1")))
def test_man_can_read_them(name: str) -> None:
    done = subprocess.run(
        ["groff", "-man", "-ww", "-Tutf8", "-P-cbou", str(ROOT / "man" / name)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    assert name.removesuffix(".1").replace("synplug-", "synplug ").split()[0] in done.stdout
    if name == "synplug.1":
        assert re.search(r"^ +synplug doctor  +does it work here\?$", done.stdout, re.MULTILINE)
    if name == "synplug-completion.1":
        assert re.search(r"^ +fish  /etc/fish/completions/", done.stdout, re.MULTILINE)
    if name == "synplug-wrap.1":
        assert "--max-hold TIME" in done.stdout
        assert "release at the latest after this long" in done.stdout
