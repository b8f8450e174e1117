"""``synplug systemd drop-in``: what makes systemd's own restarts of a unit lose nothing."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys

from synplug.cli.render import milliseconds, plain
from synplug.errors import UsageError
from synplug.handover.clues import output_of
from synplug.handover.request import find_here
from synplug.handover.target import TargetRequest
from synplug.holding.names import check_name

#: A unit's name, as systemd.unit(5) has it, or what is short for it.
_UNIT = re.compile(r"[A-Za-z0-9:_.@\\-]+")
#: Prefixes of a command line; systemd.service(5), COMMAND LINES.
_PREFIXES = "@-:+!|"


def run(options: argparse.Namespace, _command: tuple[str, ...]) -> int:
    """Run the verb; returns the exit status."""
    unit = _spelled(options.unit)
    lines = _directives(unit)
    endpoints = options.endpoints or list(find_here(TargetRequest(units=(unit,))).endpoints)
    ports = ",".join(map(str, endpoints))
    own = shutil.which("synplug") or os.path.abspath(sys.argv[0])
    name = check_name(options.name or re.sub(r"[^A-Za-z0-9_.-]", "-", unit.rpartition(".")[0]))
    if options.reload:
        body = _reload(unit, lines, f"{own} wrap -q -p {ports}")
    else:
        limit = f"{options.max_hold * 1000:.0f}ms"
        body = _restart(lines, own, f"--name {name} -p {ports} --max-hold {limit}", name)
    place = f"/etc/systemd/system/{unit}.d/synplug.conf"
    head = [
        f"# {place}",
        f"# synplug: new connections to {ports} wait while {unit} is "
        + ("reloaded" if options.reload else "restarted"),
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


def _directives(unit: str) -> dict[str, list[str]]:
    """The unit's lines for ExecStop= and ExecReload=, its drop-ins included.

    :raises UsageError: systemd does not know it.
    """
    text = output_of(["systemctl", "cat", "--no-pager", "--", unit])
    if "[Service]" not in text:
        raise UsageError(
            f"systemd does not know {unit}", remedy=f"see 'systemctl cat {unit}': {text[:200]}"
        )
    found: dict[str, list[str]] = {"ExecStop": [], "ExecReload": []}
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        key, equals, value = line.partition("=")
        if not equals or key.strip() not in found:
            continue
        if not value.strip():  # an empty one forgets those before it
            found[key.strip()] = []
        elif "synplug" not in value:  # a drop-in of ours, which is to be replaced
            found[key.strip()].append(value.strip())
    return found


def _restart(lines: dict[str, list[str]], own: str, hold: str, name: str) -> list[str]:
    """Hold before whatever stops the unit; release when the new one listens.

    The hold begins in a scope of its own: the unit's stop kills the unit's control group. The
    prefix - goes on where nothing can be held; + has the privileges whatever User= says.
    """
    scope = shutil.which("systemd-run") or "/usr/bin/systemd-run"
    return [
        "ExecStop=",
        f"ExecStop=-+{scope} --scope --quiet {own} hold {_escaped(hold)} -q",
        *(f"ExecStop={line}" for line in lines["ExecStop"]),
        f"ExecStartPost=-+{own} release --name {name} -q",
    ]


def _reload(unit: str, lines: dict[str, list[str]], wrap: str) -> list[str]:
    """The unit's own reload command, under a hold.

    :raises UsageError: there is none, or there are several.
    """
    if len(lines["ExecReload"]) != 1:
        count = len(lines["ExecReload"])
        raise UsageError(
            f"{unit} has {count} lines ExecReload=, not one",
            remedy="write one command that reloads it, and wrap that",
        )
    command = lines["ExecReload"][0].lstrip(_PREFIXES)
    return ["ExecReload=", f"ExecReload=+{_escaped(wrap)} -- {command}"]


def _escaped(text: str) -> str:
    """What systemd would take for a specifier is none."""
    return text.replace("%", "%%")
