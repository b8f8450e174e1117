"""docs/benchmarks.md: what was measured, in words and tables."""

from __future__ import annotations

from operator import attrgetter

from bench.better import RULE, better, losses
from bench.contenders import BARE_HOLD, DROP_SETTLE_S
from bench.findings import Findings
from bench.observer import BLIND_MS, blind
from bench.page_releases import releases
from bench.restarts import AFTER_S, BEFORE_S, WINDOW_S, Result, phase_s
from bench.samples import number
from bench.table import table

#: A client that is so late itself says little about the service.
LATE_MS = 5.0
_PHASES = {
    "look-ahead": "look ahead, before the hold",
    "drain": "drain",
    "release": "release asked for → all let go",
}
_AROUND_THE_GAP = {
    "stop_ms": "the old queues empty → old listener gone, by the restart command",
    "released_ms": "new listener visible → all let go",
    "first_served_ms": "new listener visible → first held client connected",
    "last_served_ms": "new listener visible → last held client connected",
    "over_ms": "longest connect − time without a listener",
}


def page(findings: Findings) -> str:
    """Return the page."""
    return "\n".join(
        [
            *_head(findings),
            *_method(findings),
            *_contenders(findings),
            *_picture(),
            *_restarts(findings),
            *releases(findings),
            *_machinery(findings),
            "",
        ]
    )


def _head(findings: Findings) -> list[str]:
    lines = ["# Benchmarks", "", "Made by `make bench`; do not edit.", ""]
    if findings.quick:
        lines += [
            "**A short trial (`--quick`), of one round each, perhaps beside other work on the "
            "machine: it shows that all contenders run. Its figures mean little.**",
            "",
        ]
    late = [played for result in findings.results for played in result.rounds]
    behind = sum(played.late_p99_ms > LATE_MS for played in late)
    return [
        *lines,
        *table(("machine", ""), findings.machine.items()),
        "",
        f"In {behind} of {len(late)} restarts the load client itself was more than {LATE_MS:g} ms "
        "late (99th percentile): there the machine had more to do than it bears, and latencies "
        "are partly its own.",
        "",
    ]


def _method(findings: Findings) -> list[str]:
    cases = {result.case.key for result in findings.results}
    return [
        "## Method",
        "",
        "- A client and a server namespace, joined by a virtual cable; IPv4 and IPv6 in turn, from "
        "many addresses; one new connection a request, at a fixed rate, whatever became of the "
        "others. Clients, service, synplug and the oracles share the machine's processors.",
        "- Rounds are interleaved: in each, every contender restarts the same running service "
        "once, the first one another each time. Where one has more rounds than the others, they "
        "play every second one. Who needs the service set up in another manner, as `start_server` "
        "and Envoy's hot restart do, restarts one of its own; before a swap it is started anew.",
        f"- The load begins {BEFORE_S:g} s before the restart, and ends {WINDOW_S:g} s after its "
        f"begin plus the outage asked for, and not before {AFTER_S:g} s after the command's end. "
        "Failures, retransmissions and the longest connect are of all connections from the "
        f"restart's begin on; p50 and p99 of those that came within {WINDOW_S:g} s (plus outage) "
        "around the middle of the hold, or else of the time without a listener, or else of the "
        "command, of all rounds together. Who failed is in no percentile: *failures* tells of "
        "them.",
        "- *No listener for* is what an observer sees that asks the kernel every 0.5 ms; of two "
        "IP versions the longer. *Over outage* is the longest connect of a restart minus that. "
        "A cell with two figures shows the median of the restarts, and the worst; of failures the "
        "sum, too, where the median does not tell it. *Client late* is "
        "by how much the load client missed its own schedule (99th percentile): where that is "
        "much, the machine was saturated, and a row says more of it than of the contender.",
        "- The observer goes before all others, synplug included, where it may (SCHED_FIFO, at "
        "most a quarter of a processor), as it would else see a new listener late, which shortens "
        "what comes after: *over outage*, and all from *new listener visible* on. No release is "
        "asked for before the listener is there; so where a report says that one was, and the "
        "observer had not looked yet, *visible*, and the end of *no listener for*, is the moment "
        f"at which it was asked for. {_observed(findings)}",
        f"- {RULE}",
        "- *Outage its own* is what stop and start take by themselves; *+ so much*: a pause of so "
        "long lies between them. The column *no listener for* shows what came of it.",
        f"- Of the combinations of service, rate, backlog and outage {len(cases)} were chosen: "
        "HAProxy at 3,000/s, backlog 511 and its own outage is the origin; then the rate alone "
        "varies, up to 8,000/s, which is near saturation here; then the outage with the backlog, "
        "where it matters most; the other services are "
        "there for the reloads of their own.",
        f"- *In the guest* is Linux {findings.guest_kernel} as a program on this machine (User "
        "Mode Linux), since neither the plug qdisc nor netem is in every kernel: one slow "
        "processor; restarts there have few clients, on loopback. Its rows compare with each other "
        "only.",
        "- A plain TCP client is meant: SYNs that nobody answers are sent again after a second. "
        "Where the outage is longer, clients whose first SYN is held send again, too, and count "
        "as *retransmitted*; synplug drops these duplicates.",
        "",
    ]


def _observed(findings: Findings) -> str:
    """How often the observer was blind for longer than it should be."""
    said = []
    for where, in_guest in (("", False), (", in the guest ", True)):
        intervals_ms = [
            played.watch_interval_ms
            for result in findings.results
            for played in result.rounds
            if result.case.in_guest is in_guest
        ]
        if intervals_ms:
            said.append(f"{where}{blind(intervals_ms)}")
    return (
        f"Two of its looks were more than {BLIND_MS:g} ms apart at some time of a restart "
        f"{''.join(said)}: there a time without a listener may be wrong by as much."
    )


def _contenders(findings: Findings) -> list[str]:
    contenders = {result.contender.name: result.contender for result in findings.results}
    return [
        *table(
            ("contender", "how"),
            ((name, contender.how) for name, contender in contenders.items()),
        ),
        "",
        f"The {1000 * DROP_SETTLE_S:.0f} ms of *SYN dropped* are a guess, as in "
        "any recipe of that kind: nothing tells when the queue is empty.",
        "",
    ]


def _picture() -> list[str]:
    return [
        "## Around a restart",
        "",
        "The median round of each contender: by failures, and by the longest connect among those "
        "with as many.",
        "",
        "![Connect latency around a restart, one panel a contender](benchmarks.svg)",
        "",
    ]


def _restarts(findings: Findings) -> list[str]:
    lines = ["## Restarts", ""]
    keys = dict.fromkeys(result.case.key for result in findings.results)
    for key in keys:
        results = [result for result in findings.results if result.case.key == key]
        lines += [f"### {results[0].case.title}", ""]
        lines += table(
            (
                "contender",
                "n",
                "failures a restart",
                "p50 ms",
                "p99 ms",
                "max ms",
                "retransmitted",
                "no listener for ms",
                "over outage ms",
                "client late ms",
            ),
            (_row(result) for result in results),
        )
        lines += ["", *better(results)]
    return lines


def _row(result: Result) -> tuple[str, ...]:
    return (
        result.contender.name,
        str(len(result.rounds)),
        losses(result),
        number(result.p50_ms),
        number(result.p99_ms),
        result.samples(lambda played: played.connect_max_ms).short(),
        result.samples(lambda played: played.retransmitted).short(),
        result.samples(lambda played: played.gap_ms).short(),
        result.samples(lambda played: played.over_ms).short(),
        result.samples(lambda played: played.late_p99_ms).short(),
    )


def _machinery(findings: Findings) -> list[str]:
    return [
        "## The machinery",
        "",
        "Medians, quartiles and the worst; n restarts or runs. The starts of Python and of synplug "
        "are those of an ordinary install, by pip into a virtual environment of its own: that of "
        "the other figures is editable, and has each start of Python read an import finder.",
        "",
        *table(("what", "figure"), [*_start_up(findings), *_served(findings), *_costs(findings)]),
    ]


def _start_up(findings: Findings) -> list[tuple[str, str]]:
    times = findings.start_up
    return [
        ("`python3 -c pass`", str(times.bare)),
        ("`python3 -c 'import argparse'`", str(times.arguments)),
        (
            "exec of `synplug wrap -p` → held",
            f"{times.held}; {times.held.ratio(times.bare)} of bare Python",
        ),
        (
            "exec of `synplug wrap -p` → command started",
            f"{times.command}; {times.command.ratio(times.bare)}",
        ),
    ]


def _served(findings: Findings) -> list[tuple[str, str]]:
    rows = []
    for result in findings.results:
        if not any(played.report for played in result.rounds) or not result.case.often:
            continue
        name = f"{result.case.service}, {result.case.rate_per_s:,}/s, {result.contender.name}"
        figures = [("hold", str(result.of_reports(lambda report: report["hold"]["duration_s"])))]
        figures += [
            (what, str(result.of_reports(phase_s(phase))))
            for phase, what in _PHASES.items()
            if result.has_phase(phase)
        ]
        if any(played.gap for played in result.rounds):
            peer = _peer(findings, result)
            for field, what in _AROUND_THE_GAP.items():
                samples = result.samples(attrgetter(field))
                beside = ""
                if peer is not None and field == "released_ms":
                    beside = (
                        f"; {samples.ratio(peer.samples(attrgetter(field)))} of the bare hold's"
                    )
                figures.append((what, f"{samples}{beside}"))
        rows += [(f"{name}: {what}", figure) for what, figure in figures]
    return rows


def _peer(findings: Findings, result: Result) -> Result | None:
    """The least that holds, in the same case."""
    if result.contender is BARE_HOLD:
        return None
    theirs = (other for other in findings.results if other.contender is BARE_HOLD)
    return next((other for other in theirs if other.case is result.case), None)


def _costs(findings: Findings) -> list[tuple[str, str]]:
    rows = []
    for cost in findings.capacities:
        sent, per_10k = f"{cost.sent:,}", 10_000 / cost.sent
        rows += [
            (
                f"{sent} SYNs sent → held and counted",
                f"{cost.hold_s:.2f} s ({cost.sent / cost.hold_s:,.0f}/s, the sender included); "
                f"keeper {cost.hold_cpu_s:.2f} s of a processor, "
                f"{1000 * cost.hold_cpu_s * per_10k:.0f} ms for 10,000",
            ),
            (
                f"the same {sent} again → dropped as duplicates",
                f"{cost.again_s:.2f} s; keeper {cost.again_cpu_s:.2f} s of a processor",
            ),
            (
                f"{cost.held:,} held → all let go at once, onto nobody who listens",
                f"{cost.release_s * 1000:.0f} ms",
            ),
            (
                "held, duplicates, released",
                f"{cost.held:,}, {cost.duplicates:,}, {cost.released:,}",
            ),
            (
                f"keeper's private memory, nothing held → {cost.held:,} held",
                f"{cost.empty_mib:.1f} MiB → {cost.full_mib:.1f} MiB",
            ),
        ]
    rate = findings.at_a_rate
    return [
        *rows,
        (
            f"keeper, while {rate.rate_per_s:,} new connections come a second",
            f"{100 * rate.share:.0f} % of a processor, {rate.held:,} held",
        ),
        ("one look at the listeners, while the new one is waited for", f"{rate.look_us:.0f} µs"),
        ("at rest: rules, queues, files, keepers", ", ".join(map(str, findings.at_rest))),
        (
            "of pyroute2, iptc, tenacity, asyncio imported by a run of wrap, its keeper aside",
            findings.imported,
        ),
    ]
