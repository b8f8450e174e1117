"""Write the manual pages, man/synplug.1 and one a verb, and docs/command-line.md, from the parser.

A test compares them with the parser: ``make man`` writes them anew.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from synplug.cli.completion import verbs
from synplug.cli.options import parser
from synplug.cli.parser import Parser, Switch
from synplug.cli.schema import verb_parser

FOLDER = Path(__file__).parents[1] / "man"
REFERENCE = Path(__file__).parents[1] / "docs" / "command-line.md"
_FILES = """\
.SH FILES
.TP
.I /etc/synplug.toml, /etc/synplug.d/*.toml
services and defaults; see \\(dqsynplug config show\\(dq
.TP
.I /run/synplug
holds in force; gone at rest
.TP
.I /var/lib/synplug
what was there at the last success, for --only-if-changed
"""
_STATUS = """\
.SH EXIT STATUS
.TP
.I the command's own
it ran, and this is its status
.TP
.B 124
the hold's deadline passed before the service was ready
.TP
.B 125
synplug itself failed; the report says whether the command ran
.TP
.BR 126 ", " 127
the command cannot be executed, cannot be found
.TP
.BI 128+ N
ended by signal
.I N
"""


def pages() -> dict[str, str]:
    """The pages' texts, by file name."""
    top = parser()
    found = {"synplug.1": _top(top)}
    for verb in verbs():
        found[f"synplug-{verb.name}.1"] = _page(verb.name, verb.help, verb_parser(top, verb.name))
    return found


def _top(top: Parser) -> str:
    names = [f".TP\n.BR synplug-{verb.name} (1)\n{_text(verb.help)}" for verb in verbs()]
    lines = [
        '.TH SYNPLUG 1 "" "synplug" "System Administration"',
        ".SH NAME",
        "synplug \\- restart anything that listens on TCP without losing a connection",
        ".SH SYNOPSIS",
        ".B synplug",
        ".I VERB",
        "[options] [-- CMD [ARG...]]",
        ".SH DESCRIPTION",
        "While the listener of a service is swapped, its new TCP connections wait in the kernel",
        "instead of being refused, reset or dropped. Nothing that synplug does outlives the swap.",
        ".PP",
        *_epilog(top),
        ".SH VERBS",
        *names,
    ]
    return "\n".join(lines) + "\n" + _FILES + _STATUS


def _page(name: str, words: str, verb: Parser) -> str:
    usage = (verb.usage or "").splitlines()
    lines = [
        f'.TH SYNPLUG-{name.upper()} 1 "" "synplug" "System Administration"',
        ".SH NAME",
        f"synplug-{name} \\- {_text(words)}",
        ".SH SYNOPSIS",
        *(line for use in usage for line in (_text(use.strip()), ".br")),
        ".SH DESCRIPTION",
        _text(words[0].upper() + words[1:] + "."),
        *([".PP", *_epilog(verb)] if verb.epilog else []),
        ".SH OPTIONS",
    ]
    for title, actions in _groups(verb):
        lines += [f".SS {_text(title)}", *map(_action, actions)]
    lines += [".SH SEE ALSO", ".BR synplug (1)"]
    return "\n".join(lines) + "\n"


def _groups(verb: Parser) -> list[tuple[str, list[argparse.Action]]]:
    """Its options, by the titles of their groups."""
    return [
        (title[:1].upper() + title[1:], group._group_actions)  # noqa: SLF001 -- no public list
        for group in verb._action_groups  # noqa: SLF001
        if group._group_actions  # noqa: SLF001
        for title in [(group.title or "").partition(" (")[0]]
    ]


def _parts(action: argparse.Action) -> tuple[list[str], str, str]:
    """Its flags, what its value is called (empty: it takes none), and its help."""
    flags = list(action.option_strings)
    if isinstance(action, Switch):
        flags = [flag for flag in flags if not flag.startswith("--no-")]
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    if action.choices and not metavar:
        metavar = "{" + ",".join(map(str, action.choices)) + "}"
    return flags, "" if action.nargs == 0 else metavar, (action.help or "").replace("%%", "%")


def _action(action: argparse.Action) -> str:
    flags, metavar, words = _parts(action)
    value = f" \\fI{_text(metavar)}\\fR" if metavar else ""
    heads = [f"\\fB{_text(flag)}\\fR{value}" for flag in flags] or [value.strip()]
    return f".TP\n{', '.join(heads)}\n{_text(words)}"


def reference() -> str:
    """The page of all verbs and options, in Markdown."""
    top = parser()
    lines = [
        "# The command line",
        "",
        "Written from the options by `make man`, as the manual pages.",
    ]
    lines += ["", "| verb | |", "|---|---|"]
    lines += [f"| [{verb.name}](#{verb.name}) | {_markdown(verb.help)} |" for verb in verbs()]
    for verb in verbs():
        found = verb_parser(top, verb.name)
        usage = [line.strip() for line in (found.usage or "").splitlines()]
        words = verb.help[0].upper() + verb.help[1:] + "."
        lines += ["", f"## {verb.name}", "", "```", *usage, "```", "", _markdown(words)]
        for title, actions in _groups(found):
            lines += ["", f"**{_markdown(title)}**", "", *map(_item, actions)]
        if found.epilog:
            lines += ["", "```", *found.epilog.strip().splitlines(), "```"]
    return "\n".join(lines) + "\n"


def _item(action: argparse.Action) -> str:
    flags, metavar, words = _parts(action)
    heads = [f"{flag} {metavar}".strip() for flag in flags] or [metavar]
    return f"- {', '.join(f'`{head}`' for head in heads)}: {_markdown(words)}"


def _markdown(text: str) -> str:
    """Plain text as Markdown has it."""
    return re.sub(r"([\\`*_<>\[\]|])", r"\\\1", text)


def _epilog(verb: Parser) -> list[str]:
    """Its paragraphs; those that are tables or commands keep their lines."""
    found = []
    for paragraph in (verb.epilog or "").strip().split("\n\n"):
        head, _, rest = paragraph.partition("\n")
        if re.match(r"  (synplug |\S+  )", rest):
            found += [".PP", _text(head), ".nf", *map(_text, rest.splitlines()), ".fi"]
        elif rest.startswith("  "):
            found += [".PP", _text(head), ".br", _text(" ".join(rest.split()))]
        else:
            found += [".PP", _text(" ".join(paragraph.split()))]
    return found[1:]


def _text(text: str) -> str:
    """Plain text as roff(7) has it."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...")
    return re.sub(r"^([.'])", r"\\&\1", escaped).replace("–", "\\(en")


def main() -> int:
    """Write them."""
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.1"):
        old.unlink()
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    REFERENCE.write_text(reference(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
