"""The configuration: files, variables, and the options that they stand for."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synplug.cli import config_files, config_options, schema, values
from synplug.cli.config_files import ConfigFile, read
from synplug.cli.main import main
from synplug.cli.options import parser
from synplug.cli.settings import variable_of, with_settings
from synplug.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DOC = Path(__file__).parents[2] / "docs" / "configuration.md"
#: Verbs that are about no service, or only about a supervisor that runs already.
WITHOUT = {
    "reload",
    "doctor",
    "status",
    "recover",
    "config",
    "systemd",
    "completion",
    "demo",
}

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a configuration, and names it."""

    def written(text: str, name: str = "synplug.toml", mode: int = 0o644) -> str:
        path = tmp_path / name
        path.write_text(text)
        path.chmod(mode)
        return str(path)

    return written


@pytest.fixture(autouse=True)
def _nowhere_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No configuration but the test's."""
    for module in (config_files, config_options):
        monkeypatch.setattr(module, "MAIN_FILE", str(tmp_path / "none.toml"))
        monkeypatch.setattr(module, "DIRECTORY", str(tmp_path / "none.d"))
    for name in [name for name in os.environ if name.startswith("SYNPLUG_")]:
        monkeypatch.delenv(name)


def options_of(
    words: list[str], command: list[str] | None = None, environ: dict[str, str] | None = None
) -> Any:
    """What the verb would be given, with its command."""
    merged, found = with_settings(words, command or [], environ or {})
    options = parser().parse_args(merged)
    options.command = found
    return options


# --- keys and options


def all_options() -> list[tuple[str, argparse.Action]]:
    (verbs,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    return [
        (verb, action)
        for verb, found in verbs.choices.items()
        for action in found._actions
        if action.option_strings
    ]


def test_every_option_has_a_key_and_every_key_an_option() -> None:
    verbs = {verb for verb, _ in all_options()}
    assert verbs == {*schema.VERBS, *WITHOUT}, "a new verb: is it configured?"
    keys = schema.keys()
    for verb, action in all_options():
        if verb in WITHOUT:
            continue
        (name, *_) = [flag[2:] for flag in action.option_strings if flag.startswith("--")]
        assert (name in schema.NO_KEYS) != (name in keys), name
        assert name in schema.NO_KEYS or verb in keys[name].verbs
    flags = {flag for _, action in all_options() for flag in action.option_strings}
    assert {key.flag for key in keys.values() if key.flag} <= flags
    assert {name for name, key in keys.items() if not key.flag} == {"restart", "start"}


def example(key: schema.Key) -> tuple[object, str]:
    """A value for a key, and the same as its option's text."""
    if key.is_switch:
        return True, ""
    if key.action is not None and key.action.choices:
        choice = list(key.action.choices)[-1]
        return choice, choice
    by_parser: dict[Any, tuple[object, str]] = {
        values.duration: (1.5, "1.5"),
        values.positive_duration: ("2s", "2s"),
        values.count: (7, "7"),
        values.pid: (4711, "4711"),
        values.endpoints: (["10.0.0.1:80"], "10.0.0.1:80"),
        values.argv: (["a", "b c"], "a 'b c'"),
        values.signal_number: ("QUIT", "QUIT"),
        values.hold_name: ("web@1", "web@1"),
    }
    return by_parser.get(key.parse, ("unix:/s:/p", "unix:/s:/p"))


@pytest.mark.parametrize("name", sorted(schema.keys()))
def test_a_key_does_what_its_option_does(name: str, write: Write) -> None:
    key = schema.keys()[name]
    value, text = example(key)
    place = write(f"[service.x]\nrestart = 'r'\nstart = 's'\n{name} = {json.dumps(value)}\n")
    if not key.flag:
        return
    for verb, action in key.actions.items():
        needs = ["--old-pid=1"] if verb == "swap" and name not in ("pidfile", "old-pid") else []
        needs += ["--max-hold=9"] if verb == "hold" and name != "max-hold" else []
        own = ["x"] if verb == "restart" else ["-s", "x"]
        configured = options_of([verb, *own, f"--config={place}", *needs])
        named = verb in schema.keys()["name"].verbs and name != "name"
        by_option = parser().parse_args(
            [
                verb,
                *own,
                f"--config={place}",
                *needs,
                *(["--name=x"] if named else []),
                key.flag if key.is_switch else f"{key.flag}={text}",
            ]
        )
        assert getattr(configured, action.dest) == getattr(by_option, action.dest), verb
        assert getattr(configured, action.dest) not in (None, [], (), False, "")
        del configured.command
        assert vars(configured) == vars(by_option)


def test_a_variable_does_what_its_option_does() -> None:
    for name, key in schema.keys().items():
        if not key.flag or name in ("old-pid", "pidfile"):
            continue
        _, text = example(key)
        verb = key.verbs[0]
        needs = {"swap": ["--old-pid=1"], "hold": ["--max-hold=1", "--name=x"]}.get(verb, [])
        needs = [word for word in needs if not word.startswith(f"--{name}=")]
        needs += ["--name=x"] if verb in ("release", "supervise") and name != "name" else []
        found = options_of([verb, *needs], environ={variable_of(name): text or "yes"})
        plain = parser().parse_args(
            [verb, *needs, key.flag if key.is_switch else f"{key.flag}={text}"]
        )
        del found.command
        assert vars(found) == vars(plain), name


def test_the_page_names_every_key_and_its_verbs() -> None:
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| ([a-z, ]+) \|", DOC.read_text(), re.MULTILINE))
    expected = {
        name: ", ".join(verb for verb in key.verbs if verb != "restart")
        for name, key in schema.keys().items()
    }
    assert rows == expected


# --- precedence


BOTH = """\
[defaults]
max-hold = "11s"
max-held = 11
settle = "1100ms"
on-full = "pass"

[service.web]
restart = "systemctl restart web"
port = [80, 443]
max-hold = "12s"
max-held = 12
settle = "1200ms"
"""


def test_who_comes_first(write: Write) -> None:
    """Command line, variable, service, defaults, built in: one option of each."""
    place = write(BOTH)
    variables = {"SYNPLUG_MAX_HOLD": "13s", "SYNPLUG_MAX_HELD": "13"}
    words = ["wrap", "-s", "web", "--config", place, "--max-hold", "14s"]
    options = options_of(words, environ=variables)
    assert (options.max_hold, options.max_held, options.settle) == (14.0, 13, 1.2)
    assert (options.on_full, options.drain_timeout) == ("pass", 1.0)
    without = options_of(["wrap", "-p", "1", "--config", place], environ=variables)
    assert (without.max_hold, without.settle, without.on_full) == (13.0, 1.1, "pass")


def test_who_names_endpoints_names_all_of_them(write: Write) -> None:
    place = write(BOTH)
    options = options_of(["wrap", "-s", "web", "--unit", "other", "--config", place])
    assert (options.endpoints, options.units) == ([], ["other"])
    options = options_of(
        ["wrap", "-s", "web", "--config", place], environ={"SYNPLUG_PORT": "81,82"}
    )
    assert [endpoint.port for endpoint in options.endpoints] == [81, 82]
    options = options_of(["wrap", "-s", "web", "--config", place])
    assert [endpoint.port for endpoint in options.endpoints] == [80, 443]


def test_a_switch_is_switched_off_again(write: Write) -> None:
    place = write("[defaults]\nbest-effort = true\nquiet = true\n")
    assert options_of(["wrap", "--config", place]).best_effort
    assert not options_of(["wrap", "--config", place, "--no-best-effort"]).best_effort
    assert not options_of(
        ["wrap", "--config", place], environ={"SYNPLUG_BEST_EFFORT": "no"}
    ).best_effort
    loud = options_of(["wrap", "--config", place, "-v"])
    assert (loud.quiet, loud.verbose) == (False, True)


@pytest.mark.parametrize("name", ["only-if-changed", "log"])
def test_a_list_is_switched_off_again(name: str, write: Write) -> None:
    place = write(f"[service.web]\nrestart = 'r'\n{name} = ['/a', '/b']\n")
    given = ["wrap", "-s", "web", "--config", place]
    dest = name.replace("-", "_")
    assert vars(options_of(given))[dest] == ["/a", "/b"]
    assert vars(options_of([*given, f"--no-{name}"]))[dest] == []
    assert vars(options_of([*given, f"--no-{name}", f"--{name}=/c"]))[dest] == ["/c"]
    assert vars(options_of([*given, f"--{name}=/c", f"--no-{name}"]))[dest] == []


def test_later_files_come_first(write: Write, tmp_path: Path) -> None:
    write("[service.web]\nport = 80\nmax-hold = 1\nsettle = 1\n", "10-a.toml")
    write("[service.web]\nunit = 'w'\nmax-hold = 2\n", "20-b.toml")
    write("[service.web]\nmax-hold = 3\n", "30-c.toml.disabled")
    write("[service.web]\nmax-hold = 4\n", ".hidden.toml")
    tmp_path.chmod(0o755)
    options = options_of(["wrap", "-s", "web", "--config", str(tmp_path)], ["true"])
    assert (options.max_hold, options.settle) == (2.0, 1.0)
    assert (options.endpoints, options.units) == ([], ["w"])


def test_the_command_is_the_service_s_unless_there_is_one(write: Write) -> None:
    place = write("[service.a]\nrestart = ['r', 'x y']\nstart = 's -f'\nport = 1\n")
    assert options_of(["wrap", "-s", "a", "--config", place]).command == ["r", "x y"]
    assert options_of(["restart", "a", "--config", place]).command == ["r", "x y"]
    assert options_of(["wrap", "-s", "a", "--config", place], ["z"]).command == ["z"]
    supervised = options_of(["supervise", "-s", "a", "--config", place])
    assert (supervised.command, supervised.name) == (["s", "-f"], "a")
    place = write("[service.a]\nport = 1\n")
    with pytest.raises(UsageError, match="no command to restart it") as error:
        options_of(["restart", "a", "--config", place])
    assert "add restart = " in error.value.remedy


# --- mistakes, with their place


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[service.web]\nport = 80\nmax-hodl = '5s'\n", [":3:", "'max-hodl'", "max-hold?"]),
        ("# a\u2028b\n[service.web]\nmax-hodl = 1\n", [":3:", "'max-hodl'"]),
        ("[defualts]\nmax-hold = 1\n", [":1:", "'defualts'", "did you mean defaults?"]),
        ("max-hold = 1\n", [":1:", "unknown table 'max-hold'"]),
        ("[service.web]\n\n# why\nmax-hold = true\n", [":4:", "max-hold: true", "duration"]),
        ("[service.web]\nmax-held = '5s'\n", [":2:", "max-held", "whole number"]),
        ("[service.web]\nmax-held = 1.5\n", [":2:", "max-held: 1.5", "whole number"]),
        ("[service.web]\nquiet = 'yes'\n", [":2:", "quiet: 'yes'", "true or false"]),
        ("[service.web]\non-full = 'explode'\n", [":2:", "on-full", '"drop", "pass"']),
        ("[service.web]\nport = [80,\n 'x']\n", [":2:", "port: 'x' is not an endpoint"]),
        ("[service.web]\nport = []\n", [":2:", "port: []"]),
        ("[service.web]\ncheck = [1]\n", [":2:", "check: [1]", "list of words"]),
        ("[service.web]\njson = ['a', 'b']\n", [":2:", "json: ['a', 'b']", "string"]),
        ("[service.web]\nready-http = {a=1}\n", [":2:", "ready-http: dict"]),
        ("[defaults]\nport = 80\n", [":2:", "port belongs to one service"]),
        ("[defaults]\nrestart = 'x'\n", [":2:", "restart belongs to one service"]),
        ("[service]\nweb = 80\n", [":2:", "[service.NAME] is needed"]),
        ("defaults = 3\n", [":1:", "[defaults] must be a table"]),
        ("[service.web]\nport = = 80\n", ["line 2"]),
        ("[service.web]\nport = 80\nport = 81\n", ["line 3"]),
        (
            "[service.web]\nquiet = true\nverbose = true\n",
            [":2 (quiet)", ":3 (verbose)", "not allowed with"],
        ),
        (
            "[service.web]\nport = 80\ndev = 'eth0'\n",
            [":3 (dev)", "add --backend plug"],
        ),
        (
            "[defaults]\nsettle = 9\n[service.web]\nmax-hold = 3\nport = 80\n",
            [":2 (settle)", ":4 (max-hold)", "beyond the longest hold"],
        ),
        ("[service.web]\nready-http = 'ftp://x'\n", [":2 (ready-http)", "http://"]),
        (
            "[service.web]\nport = 80\nbackend = 'plug'\non-full = 'pass'\n",
            [":3 (backend)", ":4 (on-full)", "a plug drops what does not fit"],
        ),
        (
            "[defaults]\nbackend = 'plug'\n[service.web]\nmax-held-per-source = 3\n",
            [":2 (backend)", ":4 (max-held-per-source)", "a plug knows no sources"],
        ),
        (
            "[service.web]\nstart = 's'\nold-pid = 7\npidfile = '/run/web.pid'\n",
            [":3 (old-pid)", ":4 (pidfile)", "not allowed with"],
        ),
        (
            "[service.web]\nold-pid = 7\npidfile = '/run/web.pid'\n",
            [":2 (old-pid)", ":3 (pidfile)", "not allowed with"],
        ),
        ("[service.web]\nname = '../web'\n", [":2:", "name: '../web' is no name"]),
        ("[service.web]\nstart = 's'\nname = ''\n", [":3:", "name: '' is no name"]),
    ],
)
def test_check_names_file_line_and_remedy(
    text: str, says: list[str], write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    place = write(text)
    assert main(["config", "check", "--config", place]) == 1
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith(f"synplug: {place}")
    for words in says:
        assert words in line
    assert captured.out == ""


def test_check_names_every_problem_and_finds_none_in_a_right_one(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    place = write("[service.a]\nx = 1\n[service.b]\ny = 1\nsettle = 'z'\n")
    assert main(["config", "check", "--config", place]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 3
    assert main(["config", "check", "b", "--config", place]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert main(["config", "check", "--config", write(BOTH)]) == 0
    assert "1 service in " in capsys.readouterr().out
    assert main(["config", "check", "--config", "/dev/null"]) == 0
    assert "there is no configuration" in capsys.readouterr().out
    place = write("[service.a]\nx = 1\n", "other.toml")
    assert main(["config", "check", "--json", "--config", place]) == 1
    assert len(json.loads(capsys.readouterr().out)["problems"]) == 1


def test_a_mistake_hides_no_combination_and_makes_up_none(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    combination = "[service.a]\nquiet = true\nverbose = true\n"
    for other in ("[service.b]\ny = 1\n", "y = 1\n", "[defaults]\ny = 1\n"):
        place = write(other + combination)
        assert main(["config", "check", "--config", place]) == 1
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 2
        assert "'y'" in said
        assert "not allowed with" in said
    place = write(f"{combination}y = 1\n")
    assert main(["config", "check", "--config", place]) == 1
    assert "not allowed with" in capsys.readouterr().err
    place = write("[service.a]\nmax-hodl = '20s'\nsettle = '15s'\n")
    assert main(["config", "check", "--config", place]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "did you mean max-hold?" in line, "settle is beyond the hold only for want of that"


RUNS = """\
[defaults]
max-hold = 3
[service.web]
restart = "true"
settle = 9
[service.both]
restart = "true"
start = "true"
quiet = true
verbose = true
on-full = "pass"
[service.far]
hook = "forward"
"""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["restart", "web"], "{0}:2 (max-hold), {0}:5 (settle): the settle time, 9 s, is beyond"),
        (["restart", "web", "--max-hold=5"], "{0}:5 (settle): the settle time, 9 s, is beyond"),
        (["wrap", "-s", "web", "--settle=8", "--", "x"], "{0}:2 (max-hold): the settle time, 8 s"),
        (["restart", "both"], "{0}:9 (quiet), {0}:10 (verbose): argument"),
        (["supervise", "-s", "both", "--backend=plug"], "{0}:11 (on-full): a plug drops"),
        (["hold", "-s", "far"], "{0}:13 (hook): with --hook forward the listeners are not here"),
        (["restart", "web", "--max-hold=5", "--settle=8"], "the settle time, 8 s, is beyond"),
    ],
)
def test_a_run_names_the_places_of_what_it_refuses(
    arguments: list[str],
    says: str,
    write: Write,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("synplug.kernel.procfs.require_net_admin", lambda: None)
    place = write(RUNS)
    monkeypatch.setenv("SYNPLUG_CONFIG", place)
    assert main(arguments) == 125
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"synplug: {says.format(place)}")


@pytest.mark.parametrize("verb", ["wrap", "restart"])
def test_help_is_there_whatever_is_configured(
    verb: str, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, "--config", write(RUNS), "--help"]) == 0
    assert f"synplug {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("variable", "text", "says"),
    [
        ("SYNPLUG_MAX_HODL", "1", "did you mean SYNPLUG_MAX_HOLD?"),
        ("SYNPLUG_max_hold", "1", "did you mean SYNPLUG_MAX_HOLD?"),
        ("SYNPLUG_MAX_HOLD", "soon", "is not a duration"),
        ("SYNPLUG_QUIET", "perhaps", "true or false"),
        ("SYNPLUG_RESTART", "x", "unknown variable"),
    ],
)
def test_wrong_variables_are_named(variable: str, text: str, says: str) -> None:
    with pytest.raises(UsageError, match=re.escape(says)) as error:
        options_of(["wrap"], environ={variable: text})
    assert variable in str(error.value)


def test_variables_that_are_empty_or_another_s_say_nothing() -> None:
    found = options_of(
        ["wrap"], environ={"SYNPLUG_MAX_HOLD": "", "SYNPLUG_GENERATION": "2", "OTHER": "x"}
    )
    assert found.max_hold == 10.0


def test_a_service_that_is_not_configured(write: Write) -> None:
    place = write(BOTH)
    with pytest.raises(UsageError, match="did you mean web"):
        options_of(["wrap", "-s", "wbe", "--config", place])
    with pytest.raises(UsageError, match="no service 'mail'") as error:
        options_of(["wrap", "-s", "mail", "--config", place])
    assert error.value.remedy == f"web: {place}"
    with pytest.raises(UsageError) as error:
        options_of(["restart", "mail", "--config", "/dev/null"])
    assert "write [service.mail] in /etc/synplug.toml" in error.value.remedy


def test_another_service_s_mistake_stops_nobody_and_the_own_one_does(write: Write) -> None:
    place = write(BOTH + "[service.mail]\nprot = 25\n")
    assert options_of(["wrap", "-s", "web", "--config", place]).max_held == 12
    with pytest.raises(UsageError, match="did you mean port"):
        options_of(["wrap", "-s", "mail", "--config", place])


def test_a_verb_that_takes_one_only_says_so(write: Write) -> None:
    place = write("[service.a]\nstart = 's'\npidfile = ['x', 'y']\n")
    with pytest.raises(UsageError, match="swap takes one only"):
        options_of(["swap", "-s", "a", "--config", place])
    assert options_of(["wrap", "-s", "a", "--config", place], ["c"]).pidfiles == ["x", "y"]


# --- trust


@pytest.mark.parametrize("mode", [0o646, 0o602])
def test_what_others_can_write_is_not_read(write: Write, mode: int) -> None:
    with pytest.raises(UsageError, match="can be written by others") as error:
        read(write(BOTH, mode=mode))
    assert error.value.remedy.startswith("chmod go-w ")
    assert read(write(BOTH, mode=0o600)).tables


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can give files away")
def test_what_belongs_to_somebody_else_is_not_read(write: Write, tmp_path: Path) -> None:
    place = write(BOTH)
    os.chown(place, 12345, 0)
    with pytest.raises(UsageError, match="belongs to user 12345"):
        read(place)
    os.chown(place, 0, 12345)
    os.chmod(place, 0o664)
    with pytest.raises(UsageError, match="can be written by others"):
        read(place)
    tmp_path.chmod(0o777)
    with pytest.raises(UsageError, match="can be written by others"):
        config_files.file_names(str(tmp_path))


def test_only_plain_files_are_read(tmp_path: Path, write: Write) -> None:
    os.mkfifo(tmp_path / "fifo.toml", 0o600)
    with pytest.raises(UsageError, match="no plain file"):
        read(str(tmp_path / "fifo.toml"))
    with pytest.raises(UsageError, match="No such file"):
        read(str(tmp_path / "none.toml"))
    big = write("#" * (1 << 20) + "\n#")
    with pytest.raises(UsageError, match="larger than"):
        read(big)
    (tmp_path / "bytes.toml").write_bytes(b"a = 1\n\xff\n")
    (tmp_path / "bytes.toml").chmod(0o600)
    with pytest.raises(UsageError, match=r"bytes\.toml:2: not UTF-8"):
        read(str(tmp_path / "bytes.toml"))


# --- show


def test_show_says_where_each_value_comes_from(
    write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = write(BOTH)
    monkeypatch.setenv("SYNPLUG_SETTLE", "50ms")
    assert main(["config", "show", "web", "--json", "--config", place]) == 0
    shown = json.loads(capsys.readouterr().out)["web"]
    assert shown["max-hold"] == {"value": "12s", "origin": f"{place}:10"}
    assert shown["port"] == {"value": ["80", "443"], "origin": f"{place}:9"}
    assert shown["on-full"] == {"value": "pass", "origin": f"{place}:5"}
    assert shown["settle"] == {"value": "50ms", "origin": "$SYNPLUG_SETTLE"}
    assert shown["quiesce"] == {"value": 1.0, "origin": "default"}
    assert shown["name"] == {"value": "web", "origin": "the service's own"}
    assert main(["config", "show", "--config", place]) == 0
    text = capsys.readouterr().out
    assert re.search(rf"^  max-hold +12s +{re.escape(place)}:10$", text, re.MULTILINE)
    assert re.search(r"^  quiesce +1s +default$", text, re.MULTILINE), "as it can be written there"
    (own,) = re.findall(r"^  settle +(\S+) ", text, re.MULTILINE)
    assert own == "50ms"
    assert main(["config", "show", "wbe", "--config", place]) == 125


# --- whatever stands there


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        return
    file = ConfigFile(name="x", text=text, tables=tables)
    for name in tables:
        assert 1 <= file.line_of((name,)) <= text.count("\n") + 1


NAMES = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6, unique=True)
VALUES = st.sampled_from(['"x"', "1", "[1,\n  2]", '"""\na = 1\n"""', "{y = 1}", "true # a = 2"])


@given(NAMES, st.data())
def test_lines_are_where_the_keys_were_written(names: list[str], data: st.DataObject) -> None:
    """The second opinion: whoever wrote the file counted."""
    text, expected = "[service.x]\n", {}
    for name in names:
        text += data.draw(st.sampled_from(["", "\n", "# a comment\n", "\n#\n"]))
        expected[name] = text.count("\n") + 1
        text += f"{name} = {data.draw(VALUES)}\n"
    file = ConfigFile(name="f", text=text, tables=tomllib.loads(text))
    assert {name: file.line_of(("service", "x", name)) for name in names} == expected


# --- what it costs those who have none


def test_without_a_configuration_nothing_of_it_is_imported(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from synplug.cli import main\n"
        f"main.MAIN_FILE, main.DIRECTORY = {str(tmp_path / 'a')!r}, {str(tmp_path / 'b')!r}\n"
        "main.main(['wrap', '-n', '-p', '1', '--', 'true'])\n"
        "print(*sys.modules)\n"
    )
    environ = {name: text for name, text in os.environ.items() if not name.startswith("SYNPLUG_")}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environ
    )
    loaded = set(done.stdout.split())
    assert "synplug.cli.wrap" in loaded
    dear = {"settings", "schema", "telemetry", "prometheus", "journal", "live", "demo", "systemd"}
    assert loaded & {"tomllib", "tomli", *(f"synplug.cli.{name}" for name in dear)} == set()
