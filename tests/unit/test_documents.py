"""Every command and every configuration in the documents is one that synplug understands."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from synplug.cli.config import _problems
from synplug.cli.config_files import ConfigFile
from synplug.cli.main import _VERBS
from synplug.cli.options import _BEGINNING, parser
from synplug.cli.settings import Configuration, given_by
from synplug.errors import UsageError
from tests.document_blocks import PAGES, ROOT, RUN_BY, blocks, blocks_in, is_run, where_is

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SHELLS = {"sh", "crontab"}
#: What may stand before a call: cron's user, the last option of systemd-run.
BEFORE = {"root", "--quiet"}


def calls(text: str) -> Iterator[list[str]]:
    """The calls of synplug in a shell's text, as words; a substitution is one word."""
    text = re.sub(r"\$\([^)]*\)", "1", text.replace("\\\n", " "))
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        split: list[list[str]] = [[]]
        for word in words:
            if word.rstrip(";") in ("", "&&", "||", "|") or word.startswith(">"):
                split.append([])
            else:
                split[-1].append(word.removesuffix(";"))
                if word.endswith(";"):
                    split.append([])
        for call in split:
            at = call.index("synplug") if "synplug" in call else -1
            if (at == 0 or (at > 0 and call[at - 1] in BEFORE)) and call[at + 1 :]:
                yield call[at + 1 :]


CALLS = [
    (page, call)
    for page in PAGES
    for language, text in blocks(page)
    if language in SHELLS
    for call in calls(text)
    if call[0] in _VERBS or not call[0].startswith("-")
]


def name_of(value: object) -> str:
    return value.stem if isinstance(value, Path) else " ".join(map(str, value))[:60]  # type: ignore[call-overload]


@pytest.mark.parametrize(("page", "call"), CALLS, ids=name_of)
def test_a_command_is_understood(page: Path, call: list[str]) -> None:
    words = call[: call.index("--")] if "--" in call else call
    if "-s" in words or words[0] == "restart":  # the configuration says what is missing
        given_by(words)
    else:
        parser().parse_args(words)


def test_there_are_many_and_a_wrong_one_would_be_seen() -> None:
    """The control."""
    assert len(CALLS) > 45
    assert {call[0] for _, call in CALLS} >= {
        "wrap",
        "hold",
        "release",
        "swap",
        "config",
        "systemd",
    }
    (wrong,) = calls("set -e; synplug wrap --max-hodl 1 -p 80 -- x  # a comment\n")
    with pytest.raises(UsageError):
        parser().parse_args(wrong[: wrong.index("--")])
    assert list(calls("synplug hold -s a; ./b; synplug release -s a\n")) == [
        ["hold", "-s", "a"],
        ["release", "-s", "a"],
    ]


def homeless(page: str, text: str) -> list[str]:
    """The blocks that no test runs, without a reason why."""
    return [
        block
        for language, block in blocks_in(text)
        if is_run(language, block) and not where_is(page, block)
    ]


def test_every_block_is_run_by_a_test_or_it_is_said_why_not() -> None:
    named = set()
    for page in PAGES:
        name = str(page.relative_to(ROOT))
        assert homeless(name, page.read_text()) == [], name
        named |= {(name, where_is(name, text)) for language, text in blocks(page)}
    for name, tests in RUN_BY.items():
        for part, where in tests.items():
            assert (name, where) in named, f"{name}: no block with {part!r} any more"
            reason = where.removeprefix("not here: ")
            if reason == where:
                module, _, test = where.partition("::")
                source = (ROOT / "tests" / module).read_text()
                assert f"\ndef {test}(" in source, f"{name}: {where}"


def test_a_new_block_that_nobody_runs_is_seen() -> None:
    """The control."""
    new = "```sh\nsynplug wrap -- ./new\n```\n"
    assert homeless("docs/nginx.md", new) == ["synplug wrap -- ./new\n"]
    assert homeless("docs/new.md", new) == ["synplug wrap -- ./new\n"]
    assert homeless("docs/new.md", "```\n$ synplug status\n```\n") == ["$ synplug status\n"]
    assert homeless("docs/new.md", "```\na drawing\n```\n") == []


def test_the_help_s_first_steps_are_understood() -> None:
    steps = [call for call in calls(_BEGINNING.replace("?", "")) if call]
    assert [call[0] for call in steps] == ["doctor", "wrap", "wrap", "wrap"]
    assert parser().format_help().index("to begin with:") > 0
    for call in steps[1:]:
        parser().parse_args(call[: call.index("--")])


CONFIGURATIONS = [
    (page, text) for page in PAGES for language, text in blocks(page) if language == "toml"
]


@pytest.mark.parametrize(("page", "text"), CONFIGURATIONS, ids=name_of)
def test_a_configuration_is_right(page: Path, text: str) -> None:
    file = ConfigFile(name=page.name, text=text, tables=tomllib.loads(text))
    configuration = Configuration([file], {})
    assert _problems(configuration, configuration.services()) == []


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if not link.startswith(("http://", "https://")):
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_row_of_the_failure_modes_names_a_test_that_is_there() -> None:
    rows = [
        line.strip("|").split(" | ")
        for line in (ROOT / "docs/failure-modes.md").read_text().splitlines()
        if line.startswith("| ") and not line.startswith("| what ")
    ]
    assert len(rows) > 45
    for row in rows:
        named = re.findall(r"`((?:unit|guest)/)?(test_\w+\.py)::(test_\w+)`", row[-1])
        assert len(row) == 4, row
        assert named, row[0]
        for folder, module, test in named:
            source = (ROOT / "tests" / (folder or "integration/") / module).read_text()
            assert f"\ndef {test}(" in source, f"{row[0]}: {module}::{test}"


def test_every_alternative_has_a_source_that_can_be_read() -> None:
    page = (ROOT / "docs/comparison.md").read_text()
    table, sources = page.partition("## Among the alternatives")[2].split("\nSources:\n")
    rows = [line for line in table.splitlines() if re.match(r"\| (?!synplug )", line)]
    names = [row.split(" | ")[0] for row in rows]
    assert [name for name in names if "[" not in name] == ["|", "| nothing: stop and start"]
    cited = {number for name in names for number in re.findall(r"\[(\d+)\]", name)}
    listed = dict(re.findall(r"^(\d+)\. ((?:.+\n)(?:   .*\n)*)", sources, re.MULTILINE))
    assert cited == listed.keys()
    assert [number for number, text in listed.items() if "<https://" not in text] == []


def site_of(configuration: Path, to: Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file"]
    return subprocess.run(
        [*argv, str(configuration), "--site-dir", str(to)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_dead_link_makes_no_site(tmp_path: Path) -> None:
    """The control."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    words = f"INHERIT: {ROOT}/mkdocs.yml\nhooks: [{ROOT}/scripts/site_pages.py]\n"
    (tmp_path / "mkdocs.yml").write_text(words)
    assert site_of(tmp_path / "mkdocs.yml", tmp_path / "site").returncode == 0
    with (tmp_path / "docs/faq.md").open("a") as page:
        page.write("\n[nowhere](../integrations/nowhere/README.md)\n")
    refused = site_of(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert refused.returncode != 0
    assert "nowhere" in refused.stderr


def test_the_documents_make_a_site(tmp_path: Path) -> None:
    """``make site``: every page is in its navigation, or below the decisions."""
    assert "mkdocs build --strict\n" in (ROOT / "Makefile").read_text()
    done = site_of(ROOT / "mkdocs.yml", tmp_path)
    assert done.returncode == 0, done.stderr
    listed = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f": {page.name}\n" in listed, f"{page.name} is not in mkdocs.yml"
        assert (tmp_path / page.with_suffix(".html").name).exists()
    links = [
        (page, link)
        for page in tmp_path.rglob("*.html")
        for link in re.findall(r'(?:href|src)="([^"#?:]+)[#?"]', page.read_text())
        if page.name != "404.html"  # it names everything from the top
    ]
    assert [f"{page}: {link}" for page, link in links if not (page.parent / link).exists()] == []
    led = {(page.name, link) for page, link in links}
    assert led >= {
        ("recipes.html", "ansible.html"),
        ("envoy.html", "files/envoy.service"),
        ("systemd.html", "envoy.html"),
        ("index.html", "command-line.html"),
    }
