"""``synplug doctor``."""

from __future__ import annotations

import argparse
import json
import os

from synplug.cli.render import plain
from synplug.handover.doctor import examine
from synplug.record import as_dict

EXIT_UNFIT = 1


def run(options: argparse.Namespace, _command: tuple[str, ...]) -> int:
    """Run the verb; 0 only if a hold with the default backend works."""
    health = examine()
    status = 0 if health.is_fit else EXIT_UNFIT
    backend = health.backend.value if health.backend is not None else None
    if options.json:
        found = {"fit": health.is_fit, "backend": backend, "kernel": os.uname().release}
        print(json.dumps(found | {"findings": list(map(as_dict, health.findings))}))
        return status
    for finding in health.findings:
        mark = "ok  " if finding.ok else ("FAIL" if finding.needed else "no  ")
        print(plain(f"{mark}  {finding.name:<28} {finding.detail}"))
        if finding.remedy:
            print(plain(f"      {'':<28} remedy: {finding.remedy}"))
    if health.is_fit:
        print(f"\nthe default backend works here: auto takes {backend}")
    else:
        print("\nthe default backend does not work here")
    return status
