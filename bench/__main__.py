"""Measure everything, and write docs/benchmarks.md, .json and .svg.

Runs in namespaces of its own. Ends with 1, and writes nothing, where a contender cannot run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench import guest_case, held, machinery, restarts
from bench.cases import CASES, Case
from bench.findings import Findings, as_json
from bench.machine import describe
from bench.ordinary import ordinary_install
from bench.page import page
from bench.picture import Panel, picture
from guest.errors import GuestError
from guest.suites import DEFAULT_SUITE, Kernel, fetch
from netlab.errors import LabError
from netlab.isolation import enter_private_namespaces
from netlab.topology import ClientServer

DOCS = Path(__file__).resolve().parent.parent / "docs"
ROUNDS, QUICK_ROUNDS = 20, 3
RELEASE_ROUNDS = 3
FAR_ROUNDS = 1  # all is slow in a guest
CAPACITIES = (10_000, 131_072)


def main(argv: Sequence[str] | None = None) -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of each: a trial")
    parser.add_argument("--only", action="append", metavar="CASE", default=[], help="these cases")
    parser.add_argument("--output", type=Path, default=DOCS, help="folder (default: docs)")
    options = parser.parse_args(argv)
    began_s = time.monotonic()
    cases = [case for case in CASES if not options.only or case.key in options.only]
    if not cases:
        parser.error(f"cases: {', '.join(case.key for case in CASES)}")
    try:
        # Before the machine's network is left behind.
        kernel = fetch(DEFAULT_SUITE)
        with ordinary_install() as programs:
            enter_private_namespaces()
            findings = measure(cases, kernel, programs, quick=options.quick)
    except (LabError, GuestError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    write(findings, options.output)
    print(f"bench: {time.monotonic() - began_s:.0f} s, written to {options.output}/benchmarks.*")
    return 0


def measure(cases: Sequence[Case], kernel: Kernel, programs: Path, *, quick: bool) -> Findings:
    """Measure all: the machinery, the releases, the restarts.

    :param programs: those of an ordinary install.
    """
    machine = describe()
    for contender in {id(c): c for case in cases for c in case.contenders}.values():
        contender.require()
    with ClientServer() as lab:
        start_up = machinery.start_up(lab.server, QUICK_ROUNDS if quick else ROUNDS, programs)
        at_rest = machinery.at_rest(lab.server)  # where it has just run so often
        imported = machinery.imported(lab.server)
    at_a_rate = machinery.at_a_rate()
    capacities = [machinery.capacity(count) for count in CAPACITIES]
    near = held.measure(
        [crowd for crowd in held.CROWDS if not crowd.in_guest], 1 if quick else RELEASE_ROUNDS
    )
    far = guest_case.release(FAR_ROUNDS, kernel)
    results = []
    for case in cases:
        results += _played(case, 1 if quick else case.rounds, kernel)
    return Findings(
        quick=quick,
        machine=machine,
        guest_kernel=kernel.release,
        results=results,
        accept_rates=near.accept_rates,
        guest_accept_rates=far.accept_rates,
        released=near.released + far.released,
        start_up=start_up,
        capacities=capacities,
        at_a_rate=at_a_rate,
        at_rest=at_rest,
        imported=imported,
    )


def _played(case: Case, rounds: int, kernel: Kernel) -> list[restarts.Result]:
    if case.in_guest:
        return guest_case.play(case, rounds, kernel)
    return restarts.results(case, restarts.play_rounds(case, rounds))


def write(findings: Findings, folder: Path) -> None:
    """Write the three files, each at once."""
    text = json.dumps(as_json(findings), indent=1, ensure_ascii=False)
    for name, content in (
        ("benchmarks.md", page(findings)),
        ("benchmarks.json", text + "\n"),
        ("benchmarks.svg", picture(_panels(findings.results))),
    ):
        draft = folder / f".{name}.new"
        draft.write_text(content, encoding="utf-8")
        draft.replace(folder / name)


def _panels(results: Sequence[restarts.Result]) -> list[Panel]:
    panels = []
    for result in results:
        typical = result.typical
        if typical is None or result.contender.name not in result.case.pictured:
            continue
        due, connect, failed = typical.points
        name, case = result.contender.name, result.case
        service = "" if case.service in name else f"{case.service}: "
        guest = ", in the guest" if case.in_guest else ""
        panels.append(
            Panel(
                title=f"{service}{name}, {case.rate_per_s:,}/s{guest}",
                points=list(zip(due, connect, map(bool, failed), strict=True)),
                gap=typical.gap,
                left_ms=-1000 * restarts.BEFORE_S,
                right_ms=max(due),
            )
        )
    return panels


if __name__ == "__main__":
    raise SystemExit(main())
