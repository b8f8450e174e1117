"""What a restart command tells about its service, and what it does not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from synplug.handover import clues
from synplug.handover.clues import Clue, clue_of, output_of
from synplug.record import replace

NOTHING = Clue()


@pytest.fixture(autouse=True)
def _no_nginx(monkeypatch: pytest.MonkeyPatch) -> None:
    """No program is asked for its built-in paths."""
    monkeypatch.setattr(clues, "output_of", lambda argv: "")


def units(*names: str) -> Clue:
    return Clue(units=names)


def pids(*numbers: int) -> Clue:
    return Clue(pids=numbers)


@pytest.mark.parametrize(
    ("command", "clue"),
    [
        # systemctl
        ("systemctl restart nginx", units("nginx")),
        ("systemctl reload nginx.service", units("nginx.service")),
        ("/usr/bin/systemctl restart nginx", units("nginx")),
        ("systemctl --no-block restart a b", units("a", "b")),
        ("systemctl restart --wait app@1.service", units("app@1.service")),
        ("systemctl try-restart app", units("app")),
        ("systemctl reload-or-restart app", units("app")),
        ("systemctl try-reload-or-restart app", units("app")),
        ("systemctl kill app", units("app")),
        ("systemctl stop app", units("app")),
        ("systemctl -q restart app", units("app")),
        ("systemctl kill -s HUP app", units("app")),
        ("systemctl kill --signal=HUP app", units("app")),
        ("systemctl -H other restart app", NOTHING),
        ("systemctl --host=other restart app", NOTHING),
        ("systemctl -M container restart app", NOTHING),
        ("systemctl restart", NOTHING),
        ("systemctl status app", NOTHING),
        ("systemctl daemon-reload", NOTHING),
        ("systemctl isolate rescue.target", NOTHING),
        ("systemctl --user restart app", NOTHING),
        ("systemctl restart --user app", NOTHING),
        ("systemctl", NOTHING),
        # service
        ("service haproxy restart", units("haproxy")),
        ("service haproxy", NOTHING),
        ("service --status-all", NOTHING),
        # kill
        ("kill 123", pids(123)),
        ("kill -HUP 123", pids(123)),
        ("kill -1 123 456", pids(123, 456)),
        ("kill -s HUP 123", pids(123)),
        ("kill --signal HUP 123", pids(123)),
        ("kill -n 1 123", pids(123)),
        ("kill -TERM -- 123", pids(123)),
        ("kill -- 123", pids(123)),
        ("kill -HUP -- -123", NOTHING),
        ("kill -HUP", NOTHING),
        ("kill 0", NOTHING),
        ("kill %1", NOTHING),
        ("kill 123 app", NOTHING),
        ("kill ²", NOTHING),
        ("kill " + "9" * 5000, NOTHING),
        ("kill", NOTHING),
        # haproxy
        ("haproxy -D -f x.cfg -sf 11 12", pids(11, 12)),
        ("haproxy -st 11", pids(11)),
        ("haproxy -sf 11 12 -D", pids(11, 12)),
        ("haproxy -D -f x.cfg", NOTHING),
        ("haproxy -sf 11 ² 12", pids(11)),
        ("haproxy -sf " + "9" * 5000, NOTHING),
        # what runs it
        ("sudo systemctl restart nginx", units("nginx")),
        ("sudo env LANG=C systemctl restart nginx", units("nginx")),
        ("env A=1 B=2 kill -HUP 9", pids(9)),
        ("nice ionice nohup setsid doas systemctl restart x", units("x")),
        ("sudo -u app systemctl restart nginx", NOTHING),
        ("sudo", NOTHING),
        ("env A=1", NOTHING),
        # what is not read
        ("sh -c 'systemctl restart nginx'", NOTHING),
        ("bash restart.sh --unit nginx", NOTHING),
        ("ssh other systemctl restart nginx", NOTHING),
        ("make restart", NOTHING),
        ("", NOTHING),
    ],
)
def test_what_a_command_tells(command: str, clue: Clue) -> None:
    import shlex

    assert replace(clue_of(shlex.split(command)), returns_early=False) == clue


@pytest.mark.parametrize(
    ("command", "returns_early"),
    [
        ("systemctl restart nginx", False),
        ("systemctl --no-block restart nginx", True),
        ("kill 123", True),
        ("kill -TERM 123", True),
        ("kill -s SIGQUIT 123", True),
        ("kill -9 -- 123", True),
        ("kill -HUP 123", False),
        ("kill -s USR2 123", False),
        ("nginx -s reload", False),
    ],
)
def test_which_command_returns_before_the_old_listener_goes(
    command: str, returns_early: bool
) -> None:
    assert clue_of(command.split()).returns_early is returns_early


@pytest.mark.parametrize(
    "command",
    [
        "app --pidfile={}",
        "app --pidfile {}",
        "app --pid-file={}",
        "app --pid-file {} --daemon",
        "haproxy -D -p {}",
        "haproxy -p {} -f x.cfg",
        "gunicorn -p {} app:app",
        "gunicorn --pid {} app:app",
        "gunicorn --pid={} app:app",
        "start-stop-daemon --stop --pidfile {} --retry 5",
        "start-stop-daemon -K -p {}",
        "uwsgi --reload {}",
        "sudo uwsgi --stop {}",
    ],
)
def test_a_pidfile_that_is_named_counts_if_it_is_there(command: str, tmp_path: Path) -> None:
    pidfile = tmp_path / "app.pid"
    words = command.format(pidfile).split()
    assert clue_of(words) == NOTHING
    pidfile.write_text("1\n")
    assert clue_of(words) == Clue(pidfiles=(str(pidfile),))


@pytest.mark.parametrize("command", ["app -p {}", "nc -p {}", "app --pid {}", "app --pidfile"])
def test_flags_that_mean_something_else_elsewhere(command: str, tmp_path: Path) -> None:
    pidfile = tmp_path / "app.pid"
    pidfile.write_text("1\n")
    assert clue_of(command.format(pidfile).split()) == NOTHING


def test_haproxys_pids_win_over_its_pidfile(tmp_path: Path) -> None:
    pidfile = tmp_path / "haproxy.pid"
    pidfile.write_text("1\n")
    assert clue_of(["haproxy", "-p", str(pidfile), "-sf", "7"]) == pids(7)


# --- nginx


class Nginx:
    """A configuration with a pidfile, and another pidfile that is built in."""

    def __init__(self, folder: Path) -> None:
        self.pidfile, self.built_in = folder / "nginx.pid", folder / "built-in.pid"
        self.config = folder / "nginx.conf"
        self.pidfile.write_text("1\n")
        self.built_in.write_text("2\n")
        self.version = f"configure arguments: --pid-path={self.built_in}"

    def configure(self, text: str) -> None:
        self.config.write_text(text)


@pytest.fixture
def nginx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nginx:
    installed = Nginx(tmp_path)
    monkeypatch.setattr(clues, "output_of", lambda argv: installed.version)
    return installed


@pytest.mark.parametrize(
    "line",
    ["pid {};", "\tpid   {} ;", 'pid "{}";', "pid '{}';", "user www;\npid {};\nevents {{}}"],
)
def test_nginxs_pidfile_is_read_from_its_configuration(nginx: Nginx, line: str) -> None:
    nginx.configure(line.format(nginx.pidfile))
    words = ["nginx", "-c", str(nginx.config), "-s", "reload"]
    assert clue_of(words) == Clue(pidfiles=(str(nginx.pidfile),))


def test_a_comment_is_no_setting_of_nginx(nginx: Nginx) -> None:
    nginx.configure(f"# pid {nginx.pidfile};\n")
    assert clue_of(["nginx", "-c", str(nginx.config)]) == Clue(pidfiles=(str(nginx.built_in),))


def test_what_is_relative_is_so_to_nginxs_prefix(
    nginx: Nginx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another service has files of the same names where we are."""
    other = tmp_path / "other"
    other.mkdir()
    for name in ("nginx.pid", "nginx.conf"):
        (other / name).write_text("1")
    monkeypatch.chdir(other)
    nginx.configure("pid nginx.pid;")
    found = Clue(pidfiles=(str(nginx.pidfile),))
    assert clue_of(["nginx", "-p", str(tmp_path), "-c", "nginx.conf"]) == found
    assert clue_of(["nginx", "-p", str(tmp_path), "-g", "pid nginx.pid;"]) == found
    assert clue_of(["nginx", "-c", str(nginx.config)]) == NOTHING
    nginx.version = f"--prefix={tmp_path} --conf-path={nginx.config} --pid-path={nginx.built_in}"
    assert clue_of(["nginx", "-c", "nginx.conf"]) == found
    assert clue_of(["nginx"]) == found


def test_nginxs_dash_g_wins(nginx: Nginx) -> None:
    nginx.configure("pid /elsewhere.pid;")
    words = ["nginx", "-g", f"daemon on;\npid {nginx.pidfile};", "-c", str(nginx.config)]
    assert clue_of(words) == Clue(pidfiles=(str(nginx.pidfile),))


def test_nginxs_dash_g_with_several_settings_on_one_line(nginx: Nginx) -> None:
    words = ["nginx", "-g", f"daemon off; pid {nginx.pidfile};"]
    assert clue_of(words) == Clue(pidfiles=(str(nginx.pidfile),))


def test_nginxs_configuration_is_found_where_it_was_built_to_be(nginx: Nginx) -> None:
    nginx.configure(f"pid {nginx.pidfile};")
    nginx.version = f"--conf-path={nginx.config} --pid-path={nginx.built_in}"
    assert clue_of(["nginx", "-s", "reload"]) == Clue(pidfiles=(str(nginx.pidfile),))


def test_without_a_pid_line_nginxs_pidfile_is_where_it_was_built_to_be(nginx: Nginx) -> None:
    nginx.configure("events {}\n")
    words = ["nginx", "-c", str(nginx.config), "-s", "quit"]
    assert clue_of(words) == Clue(pidfiles=(str(nginx.built_in),))


def test_settings_of_nginx_on_one_line(nginx: Nginx) -> None:
    nginx.configure(f"user www; pid {nginx.pidfile}; events {{}}\n")
    assert clue_of(["nginx", "-c", str(nginx.config)]) == Clue(pidfiles=(str(nginx.pidfile),))


def test_a_comment_behind_a_setting_is_none(nginx: Nginx) -> None:
    nginx.configure(f"user www; # was: a; pid {nginx.pidfile};\n")
    assert clue_of(["nginx", "-c", str(nginx.config)]) == Clue(pidfiles=(str(nginx.built_in),))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("log_format x 'a; pid {};';", id="in a quoted text"),
        pytest.param("http {{ pid {}; }}", id="in a block, where it is no directive"),
        pytest.param("load_module x#y; env z pid {};", id="as another directive's word"),
    ],
)
def test_what_looks_like_a_pidfile_of_nginx(nginx: Nginx, text: str) -> None:
    nginx.configure(text.format(nginx.pidfile))
    assert clue_of(["nginx", "-c", str(nginx.config)]) == Clue(pidfiles=(str(nginx.built_in),))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("user 'www; pid {};", id="a quote that stays open"),
        pytest.param("#" + "x" * (1 << 20) + "\npid {};", id="more than is read"),
    ],
)
def test_a_configuration_of_nginx_that_is_not_understood(nginx: Nginx, text: str) -> None:
    nginx.configure(text.format(nginx.pidfile))
    assert clue_of(["nginx", "-c", str(nginx.config)]) == NOTHING


@pytest.mark.parametrize("line", ["\n", " ", ";", "{", "; ", "pid ", '\\"', "'\\"])
def test_no_configuration_of_nginx_takes_long_to_read(nginx: Nginx, line: str) -> None:
    nginx.configure(line * (500_000 // len(line)))
    clue_of(["nginx", "-c", str(nginx.config)])


def test_a_configuration_of_nginx_that_is_a_fifo_blocks_nobody(nginx: Nginx) -> None:
    os.mkfifo(nginx.config)
    assert clue_of(["nginx", "-c", str(nginx.config)]) == NOTHING


def test_a_configuration_of_nginx_that_cannot_be_read_tells_nothing(nginx: Nginx) -> None:
    assert clue_of(["nginx", "-c", "/nonexistent/nginx.conf", "-s", "quit"]) == NOTHING


def test_the_very_nginx_that_is_run_is_asked(nginx: Nginx, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def version(argv: list[str]) -> str:
        asked.append(argv[0])
        return nginx.version

    monkeypatch.setattr(clues, "output_of", version)
    clue_of(["/opt/nginx/sbin/nginx", "-s", "reload"])
    assert asked == ["/opt/nginx/sbin/nginx"]


def test_a_pidfile_of_nginx_that_is_not_there(nginx: Nginx) -> None:
    nginx.configure("pid /nonexistent/nginx.pid;")
    assert clue_of(["nginx", "-c", str(nginx.config)]) == NOTHING


# --- programs that are asked


def test_output_of_a_program_and_of_one_that_is_not_there(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho out; echo err >&2; exit 3\n")
    os.chmod(program, 0o755)
    assert sorted(output_of([str(program)]).split()) == ["err", "out"]
    assert output_of([str(tmp_path / "none")]) == ""


@pytest.mark.parametrize(
    "line", ["kill --signal=TERM 4711", "kill -ABRT 4711", "systemctl kill app", "kill 4711"]
)
def test_what_ends_a_service_and_waits_for_nothing_returns_early(line: str) -> None:
    assert clue_of(line.split()).returns_early


@pytest.mark.parametrize("line", ["kill --signal=HUP 4711", "systemctl restart app"])
def test_what_reloads_or_waits_does_not(line: str) -> None:
    assert clue_of(line.split()) != clue_of(["true"])
    assert not clue_of(line.split()).returns_early
