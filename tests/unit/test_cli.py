"""The command line: values, mistakes, help."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from synplug.cli import values
from synplug.cli.main import _VERBS, main
from synplug.cli.options import WITH_COMMAND, parser
from synplug.cli.schema import verb_parser
from synplug.errors import (
    CommandNotFoundError,
    KernelError,
    LockError,
    PrivilegeError,
    SynplugError,
    UsageError,
)
from synplug.model import Endpoint
from synplug.record import replace

# --- values


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2", 2.0),
        ("2s", 2.0),
        ("500ms", 0.5),
        ("1.5", 1.5),
        (".5s", 0.5),
        ("1m", 60.0),
        ("24h", 86_400.0),
        ("0", 0.0),
        ("0ms", 0.0),
        (" 3 s ", 3.0),
        ("86400", 86_400.0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert values.duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s",
        "-1",
        "+1",
        "1d",
        "1e3",
        "1,5",
        "1.",
        "5 minutes",
        "ms",
        "0x10",
        "inf",
        "nan",
        "1s2",
        "１s",
    ],
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError, match="is not a duration") as error:
        values.duration(text)
    assert "500ms" in error.value.remedy


@pytest.mark.parametrize("text", ["25h", "86401", "1441m", "9" * 400])
def test_durations_end_with_a_day(text: str) -> None:
    with pytest.raises(UsageError, match="longer than a day"):
        values.duration(text)


@pytest.mark.parametrize("text", ["0", "0ms", "0.0"])
def test_some_durations_must_be_more_than_nothing(text: str) -> None:
    with pytest.raises(UsageError, match="more than 0"):
        values.positive_duration(text)
    assert values.positive_duration("1ms") == 0.001


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("80", ["*:80"]),
        ("80,443", ["*:80", "*:443"]),
        ("80, 443", ["*:80", "*:443"]),
        ("*:80", ["*:80"]),
        ("0.0.0.0:80", ["0.0.0.0:80"]),
        ("127.0.0.1:1", ["127.0.0.1:1"]),
        ("[::]:80", ["[::]:80"]),
        ("[::1]:65535", ["[::1]:65535"]),
        ("[FD00::1]:80,10.0.0.1:81", ["[fd00::1]:80", "10.0.0.1:81"]),
    ],
)
def test_endpoints(text: str, expected: list[str]) -> None:
    assert [str(found) for found in values.endpoints(text)] == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "80,",
        "0",
        "65536",
        "-80",
        "+80",
        "http",
        ":80",
        "::1:80",
        "::1",
        "[::1]",
        "[::1]80",
        "[127.0.0.1]:80",
        "[]:80",
        "127.0.0.1",
        "127.1:80",
        "256.0.0.1:80",
        "[fe80::1%eth0]:80",
        "localhost:80",
        "10.0.0.1:80:90",
        "80/tcp",
        "８０",
        "80-90",
    ],
)
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(UsageError, match="is not an endpoint") as error:
        values.endpoints(text)
    assert "PORT" in error.value.remedy


@given(
    port=st.integers(1, 65_535),
    address=st.none() | st.ip_addresses().filter(lambda found: "%" not in str(found)),
)
def test_an_endpoint_is_read_as_it_is_written(port: int, address: Any) -> None:
    endpoint = Endpoint(port=port, address=address)
    assert values.endpoints(str(endpoint)) == (endpoint,)


@pytest.mark.parametrize(("text", "number"), [("1", 1), ("65_536", 65_536), ("0010", 10)])
def test_counts(text: str, number: int) -> None:
    assert values.count(text) == number


@pytest.mark.parametrize(
    "text", ["", "0", "00", "-1", "1.5", "1e3", "many", "9" * 13, "_", "_1", "1_", "1__2", "１"]
)
def test_what_is_no_count(text: str) -> None:
    with pytest.raises(UsageError, match="is not a whole number"):
        values.count(text)


@pytest.mark.parametrize("text", ["", "0", "-1", "12345678", "abc", "1.0"])
def test_what_is_no_pid(text: str) -> None:
    assert values.pid("4711") == 4711
    with pytest.raises(UsageError, match="is not a process id"):
        values.pid(text)


def test_commands_are_split_as_a_shell_would() -> None:
    assert values.argv("a 'b c' \"d\" e\\ f") == ("a", "b c", "d", "e f")
    for text in ("", "  ", "'open"):
        with pytest.raises(UsageError, match="command"):
            values.argv(text)


# --- mistakes


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever gets as far as to look at the machine has gone too far."""

    def touched(*_: object, **__: object) -> None:
        raise AssertionError("the machine was looked at")

    import synplug.cli.wrap as verb

    for name in ("plan_wrap", "enter_network", "real_tools", "wrap"):
        monkeypatch.setattr(verb, name, touched)
    monkeypatch.setattr("synplug.kernel.procfs.require_net_admin", lambda: None)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["wrap", "-p", "eighty", "--", "x"], ["-p/--port", "'eighty' is not an endpoint"]),
        (["wrap", "--max-hold", "soon", "--", "x"], ["--max-hold", "'soon'", "500ms"]),
        (["wrap", "--max-hold", "-1", "--", "x"], ["--max-hold", "'-1'"]),
        (["wrap", "--max-hold", "0", "--", "x"], ["--max-hold", "more than 0"]),
        (["wrap", "--max-hold"], ["--max-hold", "expected one argument"]),
        (["wrap", "--max-held", "0", "--", "x"], ["--max-held", "whole number"]),
        (["wrap", "--on-full", "explode", "--", "x"], ["--on-full", "explode", "drop", "pass"]),
        (["wrap", "--backend", "magic", "--", "x"], ["--backend", "magic", "nfqueue"]),
        (["wrap", "--pid", "0", "--", "x"], ["--pid", "'0' is not a process id"]),
        (["wrap", "--check", "'", "--", "x"], ["--check", "is not a command"]),
        (["wrap", "--ready-http", "not a url", "-p", "1", "--", "x"], ["--ready-http", "http://"]),
        (["wrap", "-q", "-v", "--", "x"], ["-v/--verbose", "not allowed with", "-q/--quiet"]),
        (["wrap", "--max-hodl", "1", "--", "x"], ["--max-hodl", "did you mean --max-hold?"]),
        (["wrap", "--drain-timout=1", "--", "x"], ["did you mean --drain-timeout?"]),
        (["wrap", "", "--", "x"], ["unrecognized arguments"]),
        (["wrap", "--max-h", "1", "--", "x"], ["unrecognized arguments: --max-h"]),
        (["wrap", "systemctl", "restart", "x"], ["unrecognized arguments: systemctl"]),
        (["wrap", "-p", "1", "./restart"], ["put -- before the command", "synplug wrap --help"]),
        (["swap", "--old-pid", "1", "./new"], ["put -- before", "synplug swap --help"]),
        (["reload", "x", "y"], ["unrecognized arguments: y (see 'synplug reload --help')"]),
        (["wrap", "--restart", "3", "--", "x"], ["--restart 3", "synplug wrap --help"]),
        (["rwap", "--", "x"], ["'rwap'", "wrap", "doctor"]),
        (["wrp", "--", "x"], ["did you mean wrap?"]),
        (["relaod", "x"], ["did you mean reload?"]),
        (["config", "sho"], ["'sho'", "did you mean show?"]),
        (["config"], ["{check,show}", "synplug config --help"]),
        (["systemd", "dropin", "x"], ["did you mean drop-in?"]),
        (["completion"], ["{bash,zsh,fish}", "synplug completion --help"]),
        (["wrap", "--on-full", "drpo", "--", "x"], ["--on-full", "did you mean drop?"]),
        ([], ["VERB"]),
        (["doctor", "--", "x"], ["doctor takes no command"]),
        (["restart", "--", "x"], ["restart takes no command", "say 'synplug wrap -- CMD'"]),
        (
            ["wrap", "-p", "80", "443", "--", "x"],
            ["arguments: 443; a value of several", "repeated"],
        ),
        (["wrap", "--check", "nginx", "-t", "--", "x"], ["arguments: -t; a value of several"]),
        (["wrap", "-p", "80", "./x"], ["arguments: ./x; put -- before the command"]),
        (["release", "app"], ["required: --name", "'synplug status' shows the holds"]),
        (["status", "-p", "80"], ["unrecognized arguments: -p"]),
    ],
)
def test_mistakes_end_with_125_and_one_clear_line(
    arguments: list[str], says: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 125
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("synplug: ")
    for words in says:
        assert words in line
    assert "Traceback" not in line
    assert line.count(line[9:40]) == 1, "said twice"
    assert not re.search(r"\bdeed\b|\bshell\b", line), "a name of the code"


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    "arguments",
    [
        ["wrap", "./restart-redis"],  # near demo's --restarts
        ["hold", "--name=x", "--max-hold=1", "./restart"],
        ["wrap", "--restarts", "3", "--", "x"],
        ["status", "--max-hodl", "3"],
    ],
)
def test_no_option_of_another_verb_is_suggested(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 125
    (verb, *_), said = arguments, capsys.readouterr().err
    suggested = re.findall(r"did you mean (\S+)\?", said)
    assert set(suggested) <= verb_parser(parser(), verb)._option_string_actions.keys()
    assert "put --" in said or verb != "wrap" or suggested
    assert "put --" not in said or verb == "wrap", "it takes no command"


def test_without_a_command_there_is_nothing_to_wrap(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("synplug.kernel.procfs.require_net_admin", lambda: None)
    assert main(["wrap", "-p", "80"]) == 125
    assert "write it behind --" in capsys.readouterr().err


class Failing:
    """A verb that fails."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def run(self, options: object, command: object) -> int:
        raise self._error


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UsageError("no port"), 125, "synplug: no port"),
        (LockError("busy", remedy="wait"), 125, "synplug: busy (wait)"),
        (CommandNotFoundError("x: command not found"), 127, "synplug: x: command not found"),
        (KernelError("add", 1), 125, "synplug: add: EPERM, Operation not permitted"),
        (
            PrivilegeError("add", capability="CAP_NET_ADMIN"),
            125,
            "synplug: add (run it as root or with CAP_NET_ADMIN)",
        ),
        (SynplugError("\x1b[31mred\x07"), 125, "synplug: \\x1b[31mred\\x07"),
    ],
)
def test_errors_are_one_line_with_their_status(
    error: SynplugError,
    status: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("synplug.cli.main.importlib.import_module", lambda name: Failing(error))
    assert main(["status"]) == status
    assert capsys.readouterr().err == line + "\n"


def test_a_reader_that_goes_away_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = Failing(BrokenPipeError())
    monkeypatch.setattr("synplug.cli.main.importlib.import_module", lambda name: failing)
    assert main(["status"]) == 0


# --- help


@pytest.mark.parametrize("arguments", [["--help"], ["wrap", "--help"], ["wrap", "-h"]])
def test_help_says_what_synplug_does_not_do(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Those that are established belong to the process" in said
    assert "it cannot move them" in said
    for status in ("124", "125", "126", "127", "128+N"):
        assert status in said


@pytest.mark.parametrize("verb", ["wrap", "hold", "release", "doctor", "status", "recover"])
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert f"synplug {verb}" in capsys.readouterr().out


@pytest.mark.parametrize("verb", sorted(_VERBS))
def test_help_leaves_no_word_open(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What a time is like; CMD only where there is one; a status of its own."""
    assert main([verb, "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert ("TIME is 500ms, 2s, 1m" in said) == (" TIME " in said.partition("TIME is")[0])
    assert ("CMD included" in said or "before CMD" in said) <= (verb in (*WITH_COMMAND, "restart"))
    assert ("; 3 no " in said) == (verb in ("release", "reload"))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    import synplug

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"synplug {synplug.__version__}\n"


# --- the command


class Recording:
    """A verb that takes down what it is given."""

    def __init__(self) -> None:
        self.command: tuple[str, ...] | None = None
        self.options: Any = None

    def run(self, options: object, command: tuple[str, ...]) -> int:
        self.options, self.command = options, command
        return 42


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> Recording:
    verb = Recording()
    monkeypatch.setattr("synplug.cli.main.importlib.import_module", lambda name: verb)
    return verb


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["wrap", "--", "x"], ("x",)),
        (["wrap", "-p", "80", "--", "x", "-p", "81", "--help"], ("x", "-p", "81", "--help")),
        (["wrap", "--", "kill", "--", "5"], ("kill", "--", "5")),
        (["wrap", "--", "--", "x"], ("--", "x")),
        (["wrap", "--"], ()),
        (["wrap"], ()),
        (["wrap", "--", ""], ("",)),
    ],
)
def test_the_command_is_all_behind_the_first_dashes(
    arguments: list[str], command: tuple[str, ...], recording: Recording
) -> None:
    assert main(arguments) == 42
    assert recording.command == command


def test_arguments_come_from_the_process_where_none_are_given(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["synplug", "wrap", "--", "x", "y"])
    assert main() == 42
    assert recording.command == ("x", "y")


def test_ports_add_up(recording: Recording) -> None:
    main(["wrap", "-p", "80,81", "--port", "10.0.0.1:82", "--port=[::1]:83", "--", "x"])
    assert recording.options.endpoints == [
        Endpoint(port=80),
        Endpoint(port=81),
        Endpoint(port=82, address=ip_address("10.0.0.1")),
        Endpoint(port=83, address=ip_address("::1")),
    ]


def test_one_call_does_not_remember_another(recording: Recording) -> None:
    main(["wrap", "-p", "80", "--unit", "a", "--", "x"])
    main(["wrap", "--", "x"])
    assert recording.options.endpoints == []
    assert recording.options.units == []


def test_the_options_and_the_python_interface_have_the_same_defaults() -> None:
    import inspect

    import synplug

    options = vars(parser().parse_args(["wrap"]))
    parameters = inspect.signature(synplug.wrap).parameters
    shared = options.keys() & parameters.keys()
    assert len(shared) > 12
    for name in shared:
        default = parameters[name].default
        assert options[name] == getattr(default, "value", default), name


@pytest.mark.parametrize("verb", _VERBS)
def test_the_parser_of_one_verb_is_that_of_all(verb: str) -> None:
    one, whole = parser(verb), parser()
    assert verb_parser(one, verb).format_help() == verb_parser(whole, verb).format_help()
    with pytest.raises(KeyError):
        verb_parser(one, next(other for other in _VERBS if other != verb))


@pytest.mark.parametrize("word", ["", "--help", "unwrap"])
def test_where_no_verb_is_asked_for_all_are_known(word: str) -> None:
    assert parser(word).format_help() == parser().format_help()
    for verb in _VERBS:
        assert verb_parser(parser(word), verb)


def test_options_become_the_request() -> None:
    import synplug.cli.wrap as verb

    line = (
        "wrap -p 80 --unit u --pid 5 --pidfile f --max-hold 3s --max-held 9 --on-full pass "
        "--backend nfqueue --release burst --drain-timeout 2s --on-drain-timeout abort "
        "--quiesce 0 --ready-http http://x/ --ready-cmd 'a b' --ready-timeout 4s --settle 50ms "
        "--require-new --check 'c d' --best-effort --lock-timeout 6s"
    )
    import shlex

    request = verb.request_of(parser().parse_args(shlex.split(line)), ("x", "y"))
    assert request.target.endpoints == (Endpoint(port=80),)
    assert request.target.units == ("u",)
    assert request.target.pids == (5,)
    assert request.target.pidfiles == ("f",)
    assert request.target.argv == ("x", "y")
    hold = request.hold
    assert (hold.max_hold_s, hold.max_held, hold.lock_timeout_s) == (3.0, 9, 6.0)
    assert [hold.on_full.value, hold.backend.value, hold.release.value] == [
        "pass",
        "nfqueue",
        "burst",
    ]
    drain = request.drain
    assert (drain.timeout_s, drain.on_timeout.value, drain.quiesce_s) == (2.0, "abort", 0.0)
    ready = request.ready
    assert (ready.http, ready.command, ready.timeout_s) == ("http://x/", ("a", "b"), 4.0)
    assert (ready.settle_s, ready.require_new) == (0.05, True)
    assert request.check == ("c", "d")
    assert request.best_effort


# --- where the report goes


@pytest.fixture
def json_output() -> Callable[[str | None], Any]:
    from synplug.cli.json_output import JsonOutput

    return JsonOutput


def test_the_report_replaces_what_a_file_had(
    tmp_path: Path, json_output: Callable[[str | None], Any]
) -> None:
    from synplug.cli.report_json import report_json
    from tests.unit.examples import example_report

    path = tmp_path / "report.json"
    path.write_text("x" * 100_000)
    output = json_output(str(path))
    assert output.diverted is None
    assert path.read_text() == "x" * 100_000, "not before there is a report"
    output.write(example_report())
    assert path.read_text() == report_json(example_report())


def test_each_report_replaces_the_one_before_it(tmp_path: Path) -> None:
    """Those of a supervisor, one a swap."""
    from synplug.cli.json_output import JsonOutput
    from synplug.cli.report_json import report_json
    from tests.unit.examples import example_report

    path = tmp_path / "report.json"
    output = JsonOutput(str(path), again=True)
    shorter = replace(example_report(), warnings=())
    for report in (example_report(), shorter, example_report()):
        assert output.write(report) == ""
        assert path.read_text() == report_json(report)


def test_who_writes_again_and_again_waits_for_no_reader(tmp_path: Path) -> None:
    from synplug.cli.json_output import JsonOutput
    from tests.unit.examples import example_report

    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    output = JsonOutput(str(path), again=True)
    said = next(said for _ in range(1000) if (said := output.write(example_report())))
    os.close(reader)
    assert "without blocking" in said


def test_a_report_that_cannot_be_written_is_said_before_anything_is_held(
    tmp_path: Path, json_output: Callable[[str | None], Any]
) -> None:
    with pytest.raises(UsageError, match=r"--json .*: No such file"):
        json_output(str(tmp_path / "none" / "report.json"))


def test_with_a_dash_the_command_does_not_get_standard_output(
    json_output: Callable[[str | None], Any], capfd: pytest.CaptureFixture[str]
) -> None:
    from tests.unit.examples import example_report

    output = json_output("-")
    assert output.diverted == 2
    output.write(example_report())
    assert capfd.readouterr().out.startswith('{"schema": "synplug.report/1"')


def test_no_report_where_none_was_asked_for(
    json_output: Callable[[str | None], Any], capfd: pytest.CaptureFixture[str]
) -> None:
    from tests.unit.examples import example_report

    output = json_output(None)
    assert output.diverted is None
    output.write(example_report())
    assert capfd.readouterr().out == ""


def test_what_fails_before_there_is_a_plan_is_in_the_json_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No old report stays, which might say that all went well."""
    file = tmp_path / "report.json"
    file.write_text('{"outcome": "ready"}')
    status = main(["wrap", "--json", str(file), "--netns", "/no/such", "-p", "80", "--", "true"])
    report = json.loads(file.read_text())
    assert report["outcome"] == "error"
    assert report["exit_code"] == status == 125
    assert report["error"]
    assert report["error"] in capsys.readouterr().err
    assert report["command"] == {"argv": ["true"], "ran": False, "pid": None, "status": None}
    schema = json.loads((Path(__file__).parents[2] / "docs/report-v1.schema.json").read_text())
    assert list(Draft202012Validator(schema).iter_errors(report)) == []
