"""``synplug doctor``."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict

from synplug.cli.render import plain
from synplug.handover.doctor import examine

EXIT_UNFIT = 1


def run(options: argparse.Namespace, _command: tuple[str, ...]) -> int:
    """Run the verb; 0 only if the default backend works."""
    findings = examine()
    fit = all(finding.ok for finding in findings if finding.needed)
    if options.json:
        release = os.uname().release
        print(json.dumps({"fit": fit, "kernel": release, "findings": list(map(asdict, findings))}))
        return 0 if fit else EXIT_UNFIT
    for finding in findings:
        mark = "ok  " if finding.ok else ("FAIL" if finding.needed else "no  ")
        print(plain(f"{mark}  {finding.name:<28} {finding.detail}"))
        if finding.remedy:
            print(plain(f"      {'':<28} remedy: {finding.remedy}"))
    print(f"\nthe default backend {'works' if fit else 'does not work'} here")
    return 0 if fit else EXIT_UNFIT
