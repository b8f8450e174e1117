"""``synplug systemd drop-in``: what makes systemd's own restarts of a unit lose nothing."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Iterator

from synplug.cli.render import milliseconds, plain
from synplug.errors import UsageError
from synplug.handover.clues import output_of
from synplug.handover.request import find_here
from synplug.handover.target import TargetRequest
from synplug.holding.names import check_name
from synplug.holding.runtime import ROOT

#: A unit's name, as systemd.unit(5) has it, or what is short for it.
_UNIT = re.compile(r"[A-Za-z0-9:_.@\\-]+")
#: Prefixes of a command line; systemd.service(5), COMMAND LINES.
_PREFIXES = "@-:+!|"
#: Those that change what the words of the line are.
_UNCARRIED = {"@": "names argv[0]", "|": "has a shell run it"}
_FILE = "synplug.conf"
#: The drop-in's second line, by which it is known again.
_OURS = "# synplug: new connections to "
_COMMANDS = ("ExecStop", "ExecStartPost", "ExecReload")
_NO = r"|no|false|off|0|n|f"
#: Settings with which a command of the unit is not root; the prefixes + and ! lift them. Each with
#: the values that do no harm.
_USERS = {"User": "|root|0", "Group": "|root|0", "DynamicUser": _NO}
#: Those that may keep it from the network or from /run; + lifts them. systemd.exec(5).
_CONFINING = {
    "NetworkNamespacePath": "",
    "NoExecPaths": "",
    "PrivateNetwork": _NO,
    "PrivateUsers": _NO,
    "ProcSubset": "|all",
    "ProtectSystem": rf"{_NO}|yes|true|on|1|y|t|full",
    "RootDirectory": "|/",
    "RootImage": "",
    "SystemCallFilter": "",
}
#: Those whose lines add up to a set, or with ~ take from it, and what has to be left in it; + lifts
#: them, too.
_CAPABILITIES, _FAMILIES = "CapabilityBoundingSet", "RestrictAddressFamilies"
_SETS = {_CAPABILITIES: "CAP_NET_ADMIN", _FAMILIES: "AF_NETLINK"}
#: The second one's words for all there are, and for none, in the first one's.
_OF_FAMILIES = {"": "~", "none": ""}
_READ = (*_USERS, *_CONFINING, *_SETS, "ProtectHome")
#: Those that hide what is below the paths that they name, and those that say who may write there.
#: Their lines add up; + lifts them, too.
_HIDING = ("InaccessiblePaths", "TemporaryFileSystem")
_READ_ONLY = {"ReadOnlyPaths": True, "ReadWritePaths": False}
_PATHS = (*_HIDING, *_READ_ONLY)
#: What ProtectHome= hides, but for these of its values.
_HOMES = ("/home", "/root", "/run/user")
_SHOWN_HOMES = rf"{_NO}|read-only"
#: What a unit's files say, by directive.
Directives = dict[str, list[str]]


def run(options: argparse.Namespace, _command: tuple[str, ...]) -> int:
    """Run the verb; returns the exit status."""
    unit = _spelled(options.unit)
    lines = _directives(unit)
    endpoints = options.endpoints or list(find_here(TargetRequest(units=(unit,))).endpoints)
    ports = ",".join(map(str, endpoints))
    own = shutil.which("synplug") or os.path.abspath(sys.argv[0])
    name = check_name(options.name or re.sub(r"[^A-Za-z0-9_.-]", "-", unit.rpartition(".")[0]))
    if options.reload:
        body = _reload(unit, lines, own, f"{own} wrap -q -p {ports}")
    else:
        limit = f"{options.max_hold * 1000:.0f}ms"
        body = _restart(lines, own, f"--name {name} -p {ports} --max-hold {limit}", name)
    place = f"/etc/systemd/system/{unit}.d/{_FILE}"
    head = [
        f"# {place}",
        f"{_OURS}{ports} wait while {unit} is " + ("reloaded" if options.reload else "restarted"),
        "# As root: synplug systemd drop-in … >FILE && systemctl daemon-reload",
    ]
    if not options.reload:
        head.append(
            f"# After a stop without a start they wait for {milliseconds(options.max_hold)}, too; "
            "then they are refused."
        )
    print(plain("\n".join([*head, "[Service]", *body])))
    return 0


def _spelled(unit: str) -> str:
    """The unit's full name.

    :raises UsageError: it is none, or no service.
    """
    name = unit if "." in unit else f"{unit}.service"
    if not _UNIT.fullmatch(name) or not name.endswith(".service"):
        raise UsageError(f"{unit!r} is not a service unit")
    return name


def _directives(unit: str) -> Directives:
    """The unit's lines, its drop-ins included; without one of ours, which is to be replaced.

    :raises UsageError: systemd does not know it, or something would come behind our drop-in.
    """
    text = output_of(["systemctl", "cat", "--no-pager", "--", unit])
    if "[Service]" not in text:
        raise UsageError(
            f"systemd does not know {unit}", remedy=f"see 'systemctl cat {unit}': {text[:200]}"
        )
    found: Directives = {}
    for path, lines in _files(re.sub(r"[ \t]*\\\n\s*", " ", text)):
        if any(line.startswith(_OURS) for line in lines):
            continue
        for line in lines:
            key, equals, value = (word.strip() for word in line.partition("="))
            if not equals or key not in (*_COMMANDS, *_PATHS, *_READ):
                continue
            if key in _COMMANDS and path.endswith(".conf") and os.path.basename(path) > _FILE:
                raise UsageError(
                    f"{path} has {key}=, and is read after {_FILE}",
                    remedy=f"give it a name that comes before {_FILE}",
                )
            adds_up = key in (*_COMMANDS, *_PATHS)
            if (adds_up and value) or key in _SETS:
                found.setdefault(key, []).append(value)
            else:  # of a setting the last one counts; an empty command forgets those before it
                found[key] = [] if adds_up else [value]
    return found


def _files(text: str) -> Iterator[tuple[str, list[str]]]:
    """The files in what ``systemctl cat`` prints, each below a comment with its path.

    Such a comment is the first line, or comes behind an empty one; a unit has comments of its own.
    """
    path, lines = "", list[str]()
    before = ""
    for line in text.splitlines():
        is_head = line.endswith((".conf", ".service")) and "/systemd/" in line and not before
        before = line
        if is_head and line.startswith("# /"):
            if lines:
                yield path, lines
                lines = []
            path = line[2:]
        else:
            lines.append(line)
    yield path, lines


def _restart(lines: Directives, own: str, hold: str, name: str) -> list[str]:
    """Hold before whatever stops the unit; release when the new one listens.

    The hold begins in a scope of its own: the unit's stop kills its control group. The
    prefix - goes on where nothing can be held; + has the privileges whatever User= says.
    What the unit itself does after its start comes behind the release: it may connect to it.
    """
    scope = shutil.which("systemd-run") or "/usr/bin/systemd-run"
    return [
        "ExecStop=",
        f"ExecStop=-+{scope} --scope --quiet {own} hold {_escaped(hold)} -q",
        *(f"ExecStop={line}" for line in lines.get("ExecStop", ())),
        "ExecStartPost=",
        f"ExecStartPost=-+{own} release --name {name} --if-held -q",
        *(f"ExecStartPost={line}" for line in lines.get("ExecStartPost", ())),
    ]


def _reload(unit: str, lines: Directives, own: str, wrap: str) -> list[str]:
    """The unit's own reload command under a hold, with the rights that it has.

    :raises UsageError: it is not one command, or synplug cannot run it as systemd does.
    """
    commands = lines.get("ExecReload", [])
    if len(commands) != 1 or ";" in commands[0].split():
        raise UsageError(
            f"{unit} has {len(commands)} lines ExecReload=, not one"
            if len(commands) != 1
            else f"{unit} has several commands in its line ExecReload=",
            remedy="write one command that reloads it, and wrap that",
        )
    prefixes = commands[0][: len(commands[0]) - len(commands[0].lstrip(_PREFIXES))]
    reason = _obstacle(lines, prefixes, own)
    if reason:
        raise UsageError(
            f"{unit}: ExecReload={commands[0]} cannot be wrapped with the rights that it has: "
            f"{reason}",
            remedy=f"leave the unit alone, and call 'synplug wrap -- systemctl reload {unit}'",
        )
    return [
        "ExecReload=",
        f"ExecReload={prefixes}{_escaped(wrap)} -- {commands[0][len(prefixes) :].lstrip()}",
    ]


def _obstacle(lines: Directives, prefixes: str, own: str) -> str:
    """Why synplug cannot stand between systemd and a command; empty: it can."""
    for prefix, does in _UNCARRIED.items():
        if prefix in prefixes:
            return f"the prefix {prefix} {does}"
    in_force = {} if "+" in prefixes else _CONFINING if "!" in prefixes else _USERS | _CONFINING
    for key, harmless in in_force.items():
        for value in lines.get(key, ()):
            if not re.fullmatch(harmless, value):
                return f"with {key}={value} synplug may not hold anything"
    if "+" in prefixes:
        return ""
    for key, name in _SETS.items():
        values = lines.get(key, [])
        if not _is_left(name, values, is_capability=key == _CAPABILITIES):
            setting = " ".join(f"{key}={value}" for value in values)
            return f"with {setting} synplug may not hold anything"
    return _out_of_reach(lines, own)


def _is_left(name: str, lines: list[str], *, is_capability: bool) -> bool:
    """Whether a name is in the set that these lines make; systemd.exec(5).

    A line begins a set where there is none so far. No capability at all is a set, too; all of them
    are none, however that came about: load-fragment.c, config_parse_capability_set().
    """
    names, are_left_out, begins = set[str](), True, True
    for line in lines if is_capability else (_OF_FAMILIES.get(line, line) for line in lines):
        takes = line.startswith("~")
        given = {word.strip("\"'") for word in line.removeprefix("~").split()}
        if begins or not given:
            names, are_left_out = given, takes
        else:
            names = names | given if takes == are_left_out else names - given
        is_all = are_left_out and not names
        begins = is_all if is_capability else not given
    return (name in names) != are_left_out


def _out_of_reach(lines: Directives, own: str) -> str:
    """Why the unit's commands do not see synplug, or what it writes to; empty: they do."""
    places = (own, sys.prefix, sys.base_prefix)
    needed = [os.path.abspath(own), *map(os.path.realpath, places), ROOT]
    hidden = [(key, value) for key in _HIDING for value in lines.get(key, ())]
    found = [(f"{key}={value}", path) for key, value in hidden for path in _paths_in(value)]
    for home in lines.get("ProtectHome", ()):
        if not re.fullmatch(_SHOWN_HOMES, home):
            found += [(f"ProtectHome={home}", path) for path in _HOMES]
    for setting, path in found:
        for place in needed:
            if os.path.commonpath([path, place]) == path:
                return f"with {setting} there is no {place}"
    said = [
        (path, read_only, f"{key}={value}")
        for key, read_only in _READ_ONLY.items()
        for value in lines.get(key, ())
        for path in _paths_in(value)
        if os.path.commonpath([path, ROOT]) == path
    ]
    _, read_only, setting = max(said, default=("", False, ""))  # the innermost one counts
    return f"with {setting} nobody may write to {ROOT}" if read_only else ""


def _paths_in(value: str) -> list[str]:
    """The paths in a setting: with prefixes, and with options behind a colon."""
    words = (word.strip("\"'").lstrip("-+").partition(":")[0] for word in value.split())
    paths = [re.sub("^%t", "/run", word) for word in words]
    return [os.path.realpath(path) for path in paths if path.startswith("/")]


def _escaped(text: str) -> str:
    """What systemd would take for a specifier is none."""
    return text.replace("%", "%%")
