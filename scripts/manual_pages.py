"""Write the manual pages, man/synplug.1 and one a verb, from the parser.

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
    for group in verb._action_groups:  # noqa: SLF001 -- argparse has no public list of them
        actions = group._group_actions  # noqa: SLF001
        if actions:
            title = (group.title or "").partition(" (")[0]
            lines += [f".SS {_text(title[:1].upper() + title[1:])}", *map(_action, actions)]
    lines += [".SH SEE ALSO", ".BR synplug (1)"]
    return "\n".join(lines) + "\n"


def _action(action: argparse.Action) -> str:
    flags = action.option_strings
    if isinstance(action, Switch):
        flags = [flag for flag in flags if not flag.startswith("--no-")]
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    if action.choices and not metavar:
        metavar = "{" + ",".join(map(str, action.choices)) + "}"
    value = "" if action.nargs == 0 else f" \\fI{_text(metavar)}\\fR"
    heads = [f"\\fB{_text(flag)}\\fR{value}" for flag in flags] or [value.strip()]
    return f".TP\n{', '.join(heads)}\n{_text((action.help or '').replace('%%', '%'))}"


def _epilog(verb: Parser) -> list[str]:
    """Its paragraphs; those that are indented keep their lines."""
    found = []
    for paragraph in (verb.epilog or "").strip().split("\n\n"):
        head, _, rest = paragraph.partition("\n")
        if rest.startswith("  "):
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
