"""An operator at the server's shell: runs the real command line in the server's namespace."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netlab.topology import Namespace

SYNPLUG = [sys.executable, "-m", "synplug"]
#: A guest may be slow, and whatever hangs is seen then, too.
_LIMIT_S = 180.0


def limited(capabilities: Sequence[str], *argv: str) -> list[str]:
    """A command that runs ``synplug`` as root with these capabilities alone."""
    kept = "".join(f",+{name}" for name in capabilities)
    limits = [f"--bounding-set=-all{kept}", "--inh-caps=-all", "--no-new-privs"]
    return ["setpriv", *limits, "--", *SYNPLUG, *argv]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the operator sees."""

    status: int
    stdout: str
    stderr: str

    @property
    def report(self) -> dict[str, Any]:
        """The JSON report, where it went to standard output."""
        report: dict[str, Any] = json.loads(self.stdout)
        return report


def run(namespace: Namespace, *argv: str, timeout_s: float = _LIMIT_S) -> Outcome:
    """Run ``synplug`` with these arguments."""
    return run_plainly(namespace, [*SYNPLUG, *argv], timeout_s=timeout_s)


def run_plainly(
    namespace: Namespace, argv: Sequence[str], *, timeout_s: float = _LIMIT_S
) -> Outcome:
    """Run any command."""
    done = subprocess.run(
        namespace.command(argv),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return Outcome(status=done.returncode, stdout=done.stdout, stderr=done.stderr)


def wrap(namespace: Namespace, options: Sequence[str], command: Sequence[str]) -> Outcome:
    """Run ``synplug wrap --json - OPTIONS -- COMMAND``."""
    return run(namespace, "wrap", "--json", "-", *options, "--", *command)


def start(namespace: Namespace, *argv: str) -> subprocess.Popen[str]:
    """Start ``synplug`` and do not wait."""
    return subprocess.Popen(
        namespace.command([*SYNPLUG, *argv]),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )


def run_detached(
    namespace: Namespace, *argv: str, output: Path, timeout_s: float = _LIMIT_S
) -> int:
    """Run ``synplug`` whose command outlives it: what both say goes to a file."""
    with output.open("a", encoding="utf-8") as file:
        return subprocess.run(
            namespace.command([*SYNPLUG, *argv]),
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
            timeout=timeout_s,
            check=False,
        ).returncode
