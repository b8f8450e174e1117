"""Logs, metrics, hooks: who is told of a run, and what."""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from synplug.cli import journal, prometheus
from synplug.cli.journal import _field, finished, open_log, sentence, started
from synplug.cli.main import main
from synplug.cli.prometheus import add_to_file, note_unchanged, parse, render
from synplug.cli.report_json import report_dict
from synplug.cli.telemetry import Telemetry
from synplug.errors import CommandNotFoundError, UsageError
from synplug.handover.changed import ChangeRecord
from synplug.holding.names import no_such_hold
from synplug.model import Endpoint, HoldSpec, Outcome, Report
from synplug.record import replace
from tests.document_blocks import block
from tests.unit.examples import example_report

_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
PROMTOOL = _CACHE / "netlab" / "promtool" / "promtool"


def failed_report() -> Report:
    return replace(
        example_report(), outcome=Outcome.COMMAND_FAILED, exit_code=3, started_at=1764000100.0
    )


def values_of(path: Path) -> dict[tuple[str, str], float]:
    """The samples, as Prometheus' own client reads them; it raises for what is no such text."""
    found = {}
    for family in text_string_to_metric_families(path.read_text()):
        assert family.documentation
        assert family.type in ("counter", "gauge")
        for sample in family.samples:
            label = sample.labels["service"] + "/" + sample.labels.get("outcome", "")
            found[sample.name, label] = sample.value
    return found


# --- metrics


def test_runs_add_up(tmp_path: Path) -> None:
    path = tmp_path / "synplug.prom"
    add_to_file(str(path), "web", example_report())
    add_to_file(str(path), "web", failed_report())
    add_to_file(str(path), "mail", replace(failed_report(), hold=None, gap_s=None))
    values = values_of(path)
    assert values["synplug_runs_total", "web/ready"] == 1
    assert values["synplug_runs_total", "web/command-failed"] == 1
    assert values["synplug_runs_total", "web/deadline"] == 0
    assert values["synplug_failures_total", "web/"] == 1
    assert values["synplug_held_connections_total", "web/"] == 2 * 891
    assert values["synplug_released_connections_total", "web/"] == 2 * 891
    assert values["synplug_hold_seconds_total", "web/"] == 0.0625
    assert values["synplug_last_hold_seconds", "web/"] == 0.03125
    assert values["synplug_last_gap_seconds", "web/"] == 0.013
    assert values["synplug_last_exit_code", "web/"] == 3
    assert values["synplug_last_run_timestamp_seconds", "web/"] == 1764000100.0
    assert values["synplug_last_success_timestamp_seconds", "web/"] == 1764000000.25
    assert values["synplug_hold_seconds_total", "mail/"] == 0
    assert ("synplug_last_success_timestamp_seconds", "mail/") not in values
    assert list(tmp_path.iterdir()) == [path], "nothing else is left"
    assert path.stat().st_mode & 0o777 == 0o644


def promtool(*argv: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """Prometheus's own tool."""
    if not PROMTOOL.exists():
        pytest.fail("no promtool: netns-fixtures/setup-promtool.sh fetches it")
    return subprocess.run(
        [str(PROMTOOL), *argv], input=text, capture_output=True, text=True, check=False
    )


def test_promtool_has_nothing_to_say_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "synplug.prom"
    for service in ("web", 'a "quoted" one\\'):
        add_to_file(str(path), service, example_report())
    done = promtool("check", "metrics", text=path.read_text())
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    # The control: a counter that is not called one.
    done = promtool("check", "metrics", text=path.read_text().replace("_runs_total", "_runs"))
    assert done.returncode != 0
    assert "synplug_runs" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("exit_code", "checked_s", "alerts"),
    [
        (0, None, {"NoCheckForADay"}),
        (3, None, {"RestartFailed", "NoCheckForADay"}),
        (0, 3600.0, set()),
        (3, 3600.0, set()),
    ],
)
def test_the_page_s_alerts_are_of_our_series(
    exit_code: int, checked_s: float | None, alerts: set[str], tmp_path: Path
) -> None:
    """By Prometheus's own test of rules: they fire on what a run writes, and on its age."""
    rules = indent(block("docs/observability.md", "expr:"), "  ")
    (tmp_path / "rules.yml").write_text(f"groups:\n- name: synplug\n  rules:\n{rules}")
    path = tmp_path / "synplug.prom"
    add_to_file(str(path), "web", replace(example_report(), started_at=0.0))
    if exit_code:
        add_to_file(str(path), "web", replace(example_report(), exit_code=exit_code))
    if checked_s is not None:
        note_unchanged(str(path), "web", time_s=checked_s)
    lines = [line.rsplit(" ", 1) for line in path.read_text().splitlines() if line[0] != "#"]
    series = [{"series": name, "values": f"{float(value):g}x1500"} for name, value in lines]
    day = {
        name: [{"exp_labels": {"service": "web"}}] if name in alerts else []
        for name in ("RestartFailed", "NoCheckForADay")
    }
    hour = day | {"NoCheckForADay": []}
    test = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": series,
                "alert_rule_test": [
                    {"eval_time": when, "alertname": name, "exp_alerts": fired}
                    for when, expected in (("1h", hour), ("1441m", day))
                    for name, fired in expected.items()
                ],
            }
        ],
    }
    (tmp_path / "test.yml").write_text(json.dumps(test))  # which is YAML
    done = promtool("test", "rules", str(tmp_path / "test.yml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_file_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "synplug.prom"
    add_to_file(str(path), "web", example_report())
    before, inode = path.read_text(), path.stat().st_ino
    add_to_file(str(path), "web", example_report())
    assert path.stat().st_ino != inode

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = path.read_text()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        add_to_file(str(path), "web", example_report())
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path], "nothing else is left"


def test_runs_at_once_lose_no_count(tmp_path: Path) -> None:
    path = tmp_path / "synplug.prom"
    threads = [
        threading.Thread(target=add_to_file, args=(str(path), f"s{number % 3}", example_report()))
        for number in range(30)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [values_of(path)["synplug_runs_total", f"s{number}/ready"] for number in range(3)] == [
        10, 10, 10,
    ]  # fmt: skip


def test_what_others_wrote_there_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "synplug.prom"
    path.write_text('nonsense\nsynplug_runs_total{service="web",outcome="ready"} many\nother 1\n')
    add_to_file(str(path), "web", example_report())
    assert values_of(path)["synplug_runs_total", "web/ready"] == 1
    assert "nonsense" not in path.read_text()


LABELS = st.text(st.characters(codec="utf-8"), max_size=20)


@given(LABELS)
def test_any_service_can_be_a_label(service: str) -> None:
    series: dict[tuple[str, str], float] = {}
    prometheus._add(series, service, example_report())
    text = render(series)
    assert parse(text) == series
    labels = {
        sample.labels["service"]
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert labels == {service}


# --- logs


def tell(name: str, event: dict[str, Any]) -> None:
    with closing(open_log(name)) as log:
        log.write(event)


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A socket in the place of the journal's and of syslog's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "log"))
        made.settimeout(5)
        monkeypatch.setattr(journal, "_JOURNAL", str(tmp_path / "log"))
        monkeypatch.setattr(journal, "_SYSLOG", str(tmp_path / "log"))
        yield made


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text('{"an": "earlier line"}\n')
    tell(str(path), started("4afe7dc5", "web", ["*:80"], time_s=1.5))
    tell(str(path), finished(example_report(), "web", time_s=2.5))
    lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    assert [line["event"] for line in lines] == ["started", "finished"]
    assert [line["time"] for line in lines] == [1.5, 2.5]
    assert {line["run_id"] for line in lines} == {"4afe7dc5"}
    assert {line["service"] for line in lines} == {"web"}
    assert lines[1]["report"] == report_dict(example_report())


def test_a_line_of_syslog(daemon: socket.socket) -> None:
    tell("syslog", finished(failed_report(), "web", time_s=1.0))
    text = daemon.recv(65536).decode()
    assert text.startswith(f"<27>synplug[{os.getpid()}]: web: command-failed, exit 3")
    assert "891 connections waited, 31 ms" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("report", "level"),
    [
        (replace(example_report(), warnings=()), 6),
        (example_report(), 4),
        (failed_report(), 3),
    ],
)
def test_the_level_tells_how_it_went(report: Report, level: int, daemon: socket.socket) -> None:
    tell("syslog", finished(report, "web", time_s=1.0))
    assert daemon.recv(65536).startswith(f"<{24 + level}>".encode())


def test_fields_of_the_journal(daemon: socket.socket) -> None:
    report = replace(example_report(), error="two\nlines")
    tell("journal", finished(report, "a\nb", time_s=1.0))
    fields = journal_fields(daemon.recv(1 << 20))
    assert fields["SYNPLUG_SERVICE"] == "a\nb"
    assert fields["SYNPLUG_OUTCOME"] == "ready"
    assert fields["SYNPLUG_HELD"] == "891"
    assert fields["PRIORITY"] == "4"
    assert json.loads(fields["SYNPLUG_REPORT"]) == report_dict(report)
    assert "\n" not in fields["MESSAGE"]


def journal_fields(entry: bytes) -> dict[str, str]:
    """The second opinion: a reader of the protocol."""
    found = {}
    while entry:
        line, _, entry = entry.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(entry[:8], "little")
            value, entry = entry[8 : 8 + size], entry[8 + size + 1 :]
        found[name.decode()] = value.decode()
    return found


@pytest.mark.parametrize("name", ["journal", "syslog"])
def test_a_log_that_is_not_there_is_said_before_anything_is_held(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_JOURNAL", str(tmp_path / "none"))
    monkeypatch.setattr(journal, "_SYSLOG", str(tmp_path / "none"))
    with pytest.raises(UsageError, match=f"--log {name}: No such file"):
        open_log(name)
    with pytest.raises(UsageError, match=r"--log .*: No such file"):
        open_log(str(tmp_path / "none" / "log"))


def test_a_sentence_without_a_name_or_a_hold() -> None:
    event = finished(replace(example_report(), hold=None, warnings=()), "", time_s=1.0)
    assert sentence(event) == "*:8080: ready, exit 0 (run 4afe7dc5); nothing was held"
    assert sentence(started("4afe7dc5", "", ["*:80"], time_s=1.0)) == "*:80: run 4afe7dc5 begins"


# --- hooks, and all together


def telemetry(**words: Any) -> Telemetry:
    given: dict[str, Any] = {"service": None, "log": [], "metrics": None, "on_event": ()}
    return Telemetry(argparse.Namespace(**(given | words)))


HOOK = (
    "import json, os, sys; json.dump([os.environ['SYNPLUG_EVENT'], os.environ['SYNPLUG_EXIT_CODE'],"
    " json.load(sys.stdin)], open(sys.argv[1], 'w'))"
)


def test_the_hook_has_the_report_on_its_standard_input(tmp_path: Path) -> None:
    argv = (sys.executable, "-c", HOOK, str(tmp_path / "said"))
    assert telemetry(on_event=argv).finished(failed_report()) == []
    event, status, report = json.loads((tmp_path / "said").read_text())
    assert (event, status) == ("command-failed", "3")
    assert report == report_dict(failed_report())


def test_a_hook_that_fails_or_hangs_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert telemetry(on_event=("false",)).finished(example_report()) == [
        "--on-event: ended with status 1"
    ]
    monkeypatch.setattr("synplug.cli.telemetry._HOOK_S", 0.1)
    (said,) = telemetry(on_event=("sleep", "60")).finished(example_report())
    assert "not done within" in said


def test_what_cannot_be_is_said_before_anything_is_held(tmp_path: Path) -> None:
    with pytest.raises(CommandNotFoundError):
        telemetry(on_event=("no-such-program-here",))
    with pytest.raises(UsageError, match="cannot be written to"):
        telemetry(metrics=str(tmp_path / "none" / "synplug.prom"))


def test_one_that_fails_keeps_nobody_else_from_being_told(tmp_path: Path) -> None:
    folder = tmp_path / "metrics"
    folder.mkdir()
    told = telemetry(
        service="web",
        log=[str(tmp_path / "log")],
        metrics=str(folder / "x.prom"),
        on_event=("touch", str(tmp_path / "hooked")),
    )
    assert told.started(HoldSpec(endpoints=(Endpoint(port=80),), run_id="4afe7dc5")) == []
    folder.rmdir()
    (said,) = told.finished(example_report())
    assert "--metrics" in said
    assert (tmp_path / "hooked").exists()
    assert len((tmp_path / "log").read_text().splitlines()) == 2
    told.close()


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--netns", "/no/such"], 125),
        (["--only-if-changed", "/no/such"], 125),
        (["--log", "/no/such/log"], 125),
        (["--on-event", "no-such-program-here"], 127),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else None,
)
def test_what_fails_before_there_is_a_plan_is_told_to_all_who_are_there(
    words: list[str], status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An alert on the last exit code must see it; and an older report must not stay."""
    monkeypatch.setattr(
        "synplug.handover.changed.ChangeRecord", partial(ChangeRecord, directory=str(tmp_path))
    )
    metrics, log, report, hooked, ran = (
        tmp_path / name for name in ("x.prom", "log", "report", "hooked", "ran")
    )
    add_to_file(str(metrics), "*:80", example_report())
    report.write_text('{"outcome": "ready"}')
    outlets = ["--metrics", str(metrics), "--log", str(log), "--json", str(report)]
    outlets += ["--on-event", f"touch {hooked}"] if "--on-event" not in words else []
    given = ["wrap", "--config=/dev/null", "--best-effort", "-p80", *outlets, *words]
    assert main([*given, "--", "touch", str(ran)]) == status
    assert not ran.exists()
    assert values_of(metrics)["synplug_last_exit_code", "*:80/"] == status
    assert values_of(metrics)["synplug_runs_total", "*:80/error"] == 1
    told = json.loads(report.read_text())
    assert (told["outcome"], told["exit_code"]) == ("error", status)
    assert json.loads(log.read_text())["report"] == told
    assert hooked.exists() == ("--on-event" not in words)
    assert sentence(json.loads(log.read_text())).startswith(f"touch {ran}: error, exit {status}")


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ([], 3),
        (["--netns", "/no/such"], 125),
        (["--ready-cmd", "no-such-program-here"], 127),
    ],
    ids=["expired", "--netns", "--ready-cmd"],
)
def test_what_fails_before_a_release_has_its_hold_is_told_to_all_who_are_there(
    words: list[str], status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synplug.cli.release.attach", _is_not_there)
    metrics, log, report, hooked = (tmp_path / name for name in ("x.prom", "log", "report", "hook"))
    outlets = ["--metrics", str(metrics), "--log", str(log), "--json", str(report)]
    given = ["release", "--config=/dev/null", "--name", "web", *outlets, *words]
    assert main([*given, "--on-event", f"touch {hooked}"]) == status
    assert values_of(metrics)["synplug_last_exit_code", "web/"] == status
    told = json.loads(report.read_text())
    assert (told["outcome"], told["exit_code"]) == ("error", status)
    assert json.loads(log.read_text())["report"] == told
    assert hooked.exists()
    assert sentence(json.loads(log.read_text())).startswith(f"error, exit {status} (run ")


def test_a_release_that_needs_no_hold_tells_nobody_of_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A unit's first start: an alert on the last exit code would mean nothing."""
    monkeypatch.setattr("synplug.cli.release.attach", _is_not_there)
    outlets = [f"--{name}={tmp_path / name}" for name in ("metrics", "log", "json")]
    outlets += ["--on-event", f"touch {tmp_path / 'hooked'}"]
    words = ["release", "--config=/dev/null", "--name", "web", "--if-held", "-q", *outlets]
    assert main(words) == 0
    assert capsys.readouterr().err.startswith("synplug: no hold named 'web' is in force")
    assert list(tmp_path.iterdir()) == []


def _is_not_there(name: str) -> None:
    raise no_such_hold(name)


def test_a_logs_sentence_has_nothing_that_a_terminal_obeys() -> None:
    """A check's output, and bytes of a command line that are no text."""
    report = {
        "outcome": "error",
        "exit_code": 125,
        "run_id": "0123abcd",
        "hold": None,
        "command": {"argv": ["x"]},
        "error": "the check said: \x1b[31mred\x07 \udcff\n\u202eback",
        "warnings": [],
    }
    said = sentence({"event": "finished", "service": "w\x1b]", "report": report})
    assert said.isprintable()
    assert "\\x1b[31mred" in said
    said.encode()
    assert sentence({"event": "started", "service": "\udcff", "run_id": "0"}).isprintable()
    assert _field("SYNPLUG_SERVICE", "\udcff") == b"SYNPLUG_SERVICE=\\udcff\n"
