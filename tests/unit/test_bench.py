"""The benchmark's own arithmetic, its page and its picture, from made-up rounds."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from bench.back_to_back import overtaken
from bench.better import better, losses
from bench.cases import CASES
from bench.comparison import PAGE, WAYS
from bench.contenders import BARE_HOLD, NOTHING, SYNPLUG_NFQUEUE
from bench.errors import BenchError
from bench.findings import Findings, as_json
from bench.held import CROWDS, Released
from bench.machinery import AtARate, Capacity, StartUp
from bench.observer import asked_s, seen_before
from bench.page import page
from bench.picture import Panel, picture
from bench.restarts import Result, Round
from bench.samples import Samples, number, percentile
from netlab.listenwatch import Gap
from synplug.model import BackendName

_SVG = "{http://www.w3.org/2000/svg}"


def _round(*, failures: int, connect_max_ms: float) -> Round:
    return Round(
        attempted=100,
        failures=failures,
        retransmitted=0,
        connect_max_ms=connect_max_ms,
        gap_ms=50.0,
        late_p99_ms=0.1,
        command_ms=80.0,
        middle_ms=40.0,
        stop_ms=5.0,
        released_ms=3.0,
        watch_interval_ms=0.6,
        report=None,
        first_served_ms=1.0,
        last_served_ms=2.0,
        gap=(10.0, 60.0),
        points=(array("d", [-5.0, 20.0]), array("d", [0.1, connect_max_ms]), bytearray([0, 1])),
    )


@pytest.fixture
def findings() -> Findings:
    """Two contenders of the first case: one loses, the other one lets wait."""
    case = CASES[0]
    results = []
    for contender, failures, longest in ((NOTHING, 55, 3.0), (SYNPLUG_NFQUEUE, 0, 77.0)):
        rounds = [_round(failures=failures, connect_max_ms=longest + n) for n in range(3)]
        results.append(Result(case=case, contender=contender, rounds=rounds))
        results[-1].settle()
    far = next(crowd for crowd in CROWDS if crowd.in_guest)
    released = [Released(crowd=crowd, mode="paced", backend="any") for crowd in (CROWDS[0], far)]
    for each in released:
        for samples in (each.failures, each.worst, each.to_last, each.ratio, each.watch_interval):
            samples.add(1.125)
    times = StartUp(
        bare=Samples.of([10]), arguments=Samples.of([20]), held=Samples.of([30]), command=Samples()
    )
    cost = Capacity(
        sent=10,
        held=10,
        duplicates=10,
        released=10,
        hold_s=1.0,
        hold_cpu_s=0.1,
        again_s=1.0,
        again_cpu_s=0.1,
        release_s=0.1,
        empty_mib=1.0,
        full_mib=2.0,
    )
    return Findings(
        quick=False,
        machine={"kernel": "Linux"},
        guest_kernel="6.1",
        results=results,
        accept_rates={5000: 4900.0},
        guest_accept_rates={700: 650.0},
        released=released,
        start_up=times,
        capacities=[cost],
        at_a_rate=AtARate(rate_per_s=10_000, held=9000, share=0.18, look_us=90.0),
        at_rest=[0, 0, 0, 0],
        imported="[]",
    )


def test_the_page_gives_the_figures(findings: Findings) -> None:
    text = page(findings)
    assert "| nothing | 3 | 55 (55) |" in text
    assert "3.00x of bare Python" in text


def test_who_loses_more_is_not_better(findings: Findings) -> None:
    assert "Nobody is better than synplug here." in page(findings)


def test_the_page_says_who_is_better_in_what_and_why(findings: Findings) -> None:
    nobody_lost = [replace(played, failures=0) for played in findings.results[0].rounds]
    findings.results[0].rounds[:] = nobody_lost
    better = f"**nothing**, longest connect 4 against 78 ms. Why: {NOTHING.better}."
    assert f"- Better than synplug: {better}" in page(findings)


def _judged(
    theirs: Sequence[int], ours: Sequence[int], *, their_ms: float, our_ms: float
) -> tuple[str, list[str]]:
    """What is said of who restarted as often as there are figures, and the cells of failures."""
    case, results = CASES[0], []
    for contender, lost, connect_ms in (
        (NOTHING, theirs, their_ms),
        (SYNPLUG_NFQUEUE, ours, our_ms),
    ):
        rounds = [_round(failures=failures, connect_max_ms=connect_ms) for failures in lost]
        results.append(Result(case=case, contender=contender, rounds=rounds))
    return better(results)[0], [losses(result) for result in results]


def test_one_connection_lost_in_each_restart_is_worse_than_none() -> None:
    said, cells = _judged([0] * 20, [1] * 20, their_ms=60, our_ms=60)
    assert "**nothing**, failures 0 in 20 restarts against 20 in 20 restarts. Why" in said
    assert cells == ["0 (0)", "1 (1)"]


def test_connections_lost_in_less_than_half_of_the_restarts_are_lost() -> None:
    seldom = [0] * 11 + [400] * 9
    said, cells = _judged([0] * 20, seldom, their_ms=60, our_ms=60)
    assert "**nothing**, failures 0 in 20 restarts against 3,600 in 20 restarts. Why" in said
    assert cells == ["0 (0)", "0 (400), 3,600 in all"]


def test_who_loses_more_now_and_then_is_not_better_for_a_shorter_connect() -> None:
    said, cells = _judged([0] * 11 + [400] * 9, [0] * 20, their_ms=40, our_ms=60)
    assert said == "Nobody is better than synplug here."
    assert cells == ["0 (400), 3,600 in all", "0 (0)"]


@pytest.mark.parametrize(
    ("theirs", "ours", "said"),
    [
        ([1] * 10, [1] * 20, "longest connect 40 against 60 ms. Why"),
        ([1] * 5 + [0] * 5, [0] * 11 + [1] * 9, "Nobody"),
        ([0] * 10, [1] + [0] * 19, "failures 0 in 10 restarts against 1 in 20 restarts, longest"),
    ],
)
def test_losses_are_compared_by_restart_where_one_plays_more_often(
    theirs: Sequence[int], ours: Sequence[int], said: str
) -> None:
    assert said in _judged(theirs, ours, their_ms=40, our_ms=60)[0]


def test_the_method_says_what_counts(findings: Findings) -> None:
    text = page(findings)
    assert "Who failed is in no percentile" in text
    assert "of failures the sum, too, where the median does not tell it" in text
    assert "by more than 1 ms and 10 %. What counts is the sum of all restarts" in text
    assert "by pip into a virtual environment of its own" in text


def test_a_gap_ends_where_the_release_was_asked_for_at_the_latest() -> None:
    late, early, another = (
        Gap(port=80, family=4, start_ns=start, end_ns=end)
        for start, end in ((1, 9), (2, 6), (8, 9))
    )
    assert seen_before([late, early, another], 7) == [replace(late, end_ns=7), early, another]


def test_a_release_was_asked_for_when_its_phase_began_or_else_before_the_end_of_the_hold() -> None:
    hold = {"name": "hold", "start_s": 0.25, "duration_s": 0.5}
    release = {"name": "release", "start_s": 0.625, "duration_s": 0.125}
    assert asked_s({"started_at": 1000.0, "phases": [hold, release]}) == 1000.625
    assert asked_s({"started_at": 1000.0, "phases": [hold]}) == 1000.75


def test_the_page_counts_restarts_in_which_the_observer_did_not_look_for_long(
    findings: Findings,
) -> None:
    assert "apart at some time of a restart in 0 of 6 (the longest 0.60 ms)" in page(findings)
    first, *others = findings.results[0].rounds
    findings.results[0].rounds[:] = [replace(first, watch_interval_ms=7.5), *others]
    text = page(findings)
    assert "apart at some time of a restart in 1 of 6 (the longest 7.5 ms)" in text
    assert "apart at some time of a round in 2 of 2 (the longest 1.1 ms)" in text


def test_the_page_of_a_trial_says_that_it_is_one(findings: Findings) -> None:
    assert "short trial" not in page(findings)
    assert "short trial" in page(replace(findings, quick=True))


def test_every_round_is_in_the_json(findings: Findings) -> None:
    found = json.loads(json.dumps(as_json(findings)))
    assert found["restarts"][0]["failures"]["values"] == [55, 55, 55]
    assert found["restarts"][1]["connect_max_ms"]["median"] == 78


def test_whom_the_guest_let_go_stands_beside_the_others_and_is_marked(findings: Findings) -> None:
    near, far = (result.crowd.title for result in findings.released)
    text = page(findings)
    assert f"| {near} | paced | 1 | 1.1 (1.1) |" in text
    assert f"| {far} | paced | 1 | 1.1 (1.1) |" in text
    assert (near in far, far.endswith(", 100 ms away, in the guest")) == (True, True)
    assert "4,900/s where it is told 5,000/s; in the guest 650/s where it is told 700/s." in text
    found = json.loads(json.dumps(as_json(findings)))
    assert [result["in_guest"] for result in found["releases"]] == [False, True]
    assert [result["round_trip_ms"] for result in found["releases"]] == [0, 100]
    assert found["guest_accept_rates_per_s"] == {"700": 650.0}


def test_the_backlogs_that_meet_far_clients_are_those_that_meet_near_ones() -> None:
    crowds = [crowd for crowd in CROWDS if crowd.clients == 5000]
    for far in (False, True):
        assert {crowd.backlog for crowd in crowds if crowd.in_guest is far} == {128, 511, 4096}


@pytest.mark.parametrize(
    ("round_trip_ms", "accepts_per_s", "bound_ms"),
    [
        (0, 1000, 500 + 5000),
        (100, 1000, 500 + 50 + 5000),  # 1,280 handshakes a second are more than it accepts
        (100, 5000, 500 + 50 + 3906.25),
        (200, 1000, 500 + 100 + 7812.5),
    ],
)
def test_a_far_client_takes_a_place_of_the_backlog_for_a_round_trip(
    round_trip_ms: int, accepts_per_s: float, bound_ms: float
) -> None:
    crowd = replace(CROWDS[0], clients=5000, backlog=128, round_trip_ms=round_trip_ms)
    assert crowd.bound_ms(500, accepts_per_s) == bound_ms


def test_a_release_stands_beside_the_least_that_holds(findings: Findings) -> None:
    report = {"hold": {"duration_s": 0.06}, "phases": [{"name": "release", "duration_s": 0.004}]}
    ours = findings.results[1]
    ours.rounds[:] = [replace(played, report=report) for played in ours.rounds]
    least = [replace(played, released_ms=2.0) for played in ours.rounds]
    peer = Result(case=ours.case, contender=BARE_HOLD, rounds=least)
    text = page(replace(findings, results=[*findings.results, peer]))
    row = "| HAProxy, 3,000/s, {}: new listener visible → all let go | {}, n=3{} |"
    ratio = "; 1.50x of the bare hold's"
    assert row.format("synplug", "3 ms (quartiles 3–3, worst 3)", ratio) in text
    assert row.format("bare hold", "2 ms (quartiles 2–2, worst 2)", "") in text
    assert "release asked for" in text
    assert "drain |" not in text, "what no report tells of has no figure"


def test_only_the_typical_round_keeps_its_points(findings: Findings) -> None:
    result = findings.results[1]
    assert result.typical is result.rounds[1]
    assert [len(played.points[0]) for played in result.rounds] == [0, 2, 0]
    assert result.p99_ms == 79


def test_a_picture_is_small_and_shows_losses_apart() -> None:
    points = [(n / 10, 0.05 + n % 50, n % 100 == 0) for n in range(20_000)]
    panel = Panel(title="a < b", points=points, gap=(100.0, 200.0), left_ms=-200.0, right_ms=2000.0)
    text = picture([panel] * 10)
    root = ET.fromstring(text)
    assert len(text) < 250_000
    strokes = Counter(path.get("class") for path in root.iter(f"{_SVG}path"))
    assert strokes["c"] == strokes["f"] == 10
    assert "a < b" in [element.text for element in root.iter(f"{_SVG}text")]


def test_who_plays_seldom_plays_every_second_round_and_nobody_is_always_first() -> None:
    seldom = [case for case in CASES if case.often]
    assert len(seldom) > 1
    for case in seldom:
        players = [[contender.name for contender in case.players(number)] for number in range(20)]
        assert all(case.often[0] in names for names in players)
        assert [len(names) for names in players] == [len(case.contenders), len(case.often)] * 10
        assert len({names[0] for names in players[::2]}) == len(case.contenders)
        assert len({names[0] for names in players[1::2]}) == len(case.often)


def test_the_keys_of_the_cases_differ() -> None:
    assert len({case.key for case in CASES}) == len(CASES)


def test_a_contender_without_its_program_is_an_error() -> None:
    with pytest.raises(BenchError, match="'nothing' cannot run: no no-such-program"):
        replace(NOTHING, programs=("no-such-program",)).require()


def test_samples_say_median_spread_and_how_many() -> None:
    assert str(Samples.of([4, 1, 3, 2, 100])) == "3 ms (quartiles 2–4, worst 100), n=5"
    assert Samples().short() == "– (–)"
    assert percentile([1.0, 2.0, 3.0], 50) == 2
    assert [number(value) for value in (0.123, 1.25, 1234.5)] == ["0.12", "1.2", "1,234"]


@pytest.mark.parametrize(
    ("came", "behind"), [([], 0), ([0, 1, 2], 0), ([0, 2, 1, 3], 1), ([3, 0, 1, 2], 3), ([0, 2], 0)]
)
def test_who_came_behind_a_later_one_was_overtaken(came: list[int], behind: int) -> None:
    assert overtaken(came) == behind


def test_the_comparison_has_every_backend_and_a_control_that_costs_nothing() -> None:
    table = re.split("<!-- comparison: (?:begin|end) -->", PAGE.read_text())[1]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    titles, _, *rows = [line.strip("| ").split(" | ") for line in lines]
    names = [row[0] for row in rows]
    assert names == [way.name for way in WAYS]
    backends = {backend.value for backend in BackendName} - {"auto"}
    assert backends <= {word for name in names for word in name.split(", ")}
    columns = [number for number, title in enumerate(titles) if "takes longer by" in title]
    assert (names[0], len(columns)) == ("nothing", 2)
    for longer in (rows[0][column] for column in columns):
        first, third = re.findall(r"[-+][\d.]+", longer)[1:]
        assert float(first) <= 0 <= float(third), longer
