"""Which endpoints are held: those that were named, or those that the processes listen on."""

from __future__ import annotations

import os
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path

import pytest

from synplug.errors import SynplugError, TargetError, UsageError
from synplug.handover import target
from synplug.handover.target import Target, TargetRequest, find_target, read_pidfile
from synplug.model import Endpoint, Listener
from tests.unit.fakes import FakeProcesses, FakeSockets, World, listener

HERE = 1


@pytest.fixture(autouse=True)
def _no_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "output_of", lambda argv: "")


class Machine:
    """Processes with listeners; pid 7 is the service, pid 8 its child."""

    def __init__(self, *listeners: Listener) -> None:
        self.sockets = FakeSockets(World(), listeners)
        self.processes = FakeProcesses(
            children={7: {8}},
            groups={"app.service": {7}},
            inodes={8: {own.inode for own in listeners}},
            names={8: "appd"},
        )

    def find(self, **request: object) -> Target:
        return find_target(
            TargetRequest(**request),  # type: ignore[arg-type]
            sockets=self.sockets,
            processes=self.processes,
            here=HERE,
        )


def at(*names: str) -> tuple[Endpoint, ...]:
    found = []
    for name in names:
        host, _, port = name.rpartition(":")
        address = None if host == "*" else ip_address(host.strip("[]"))
        found.append(Endpoint(port=int(port), address=address))
    return tuple(found)


def words(endpoints: Iterable[Endpoint]) -> list[str]:
    return [str(endpoint) for endpoint in endpoints]


# --- found by process


def test_a_pid_stands_for_what_it_and_its_children_listen_on() -> None:
    machine = Machine(listener(1, port=8080), listener(2, port=80), listener(3, "::1", 443))
    machine.processes.inodes = {7: {1001}, 8: {1002}, 9: {1003}}
    found = machine.find(pids=(7,))
    assert words(found.endpoints) == ["0.0.0.0:80", "0.0.0.0:8080"]
    assert found.pids == (7, 8)
    assert found.how == "pid 7"


@pytest.mark.parametrize("name", ["app", "app.service"])
def test_a_unit_stands_for_its_control_group(name: str) -> None:
    found = Machine(listener(1)).find(units=(name,))
    assert words(found.endpoints) == ["0.0.0.0:80"]
    assert found.unit == "app.service"
    assert found.how == f"unit {name}"


def test_endpoints_are_read_from_the_command_only_when_nothing_is_named() -> None:
    machine = Machine(listener(1), listener(2, port=81))
    argv = ("systemctl", "restart", "app")
    inferred = machine.find(argv=argv)
    assert words(inferred.endpoints) == ["0.0.0.0:80", "0.0.0.0:81"]
    assert inferred.how == "inferred from the command: unit app"
    named = machine.find(argv=argv, endpoints=at("*:81"))
    assert words(named.endpoints) == ["*:81"]
    assert (named.pids, named.how) == ((), "named")
    assert named.unit == "app.service", "whose own checks of the endpoint are let through"


def test_an_alias_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def systemctl(argv: list[str]) -> str:
        asked.append(argv)
        return "app.service"

    monkeypatch.setattr(target, "output_of", systemctl)
    assert Machine(listener(1)).find(units=("alias",)).unit == "app.service"
    assert asked == [["systemctl", "show", "--property=Id", "--value", "--", "alias.service"]]


def test_a_unit_that_does_not_run_is_an_error() -> None:
    with pytest.raises(TargetError, match="unit none has no running process") as error:
        Machine(listener(1)).find(units=("none",))
    assert "-p" in error.value.remedy


def test_a_unit_that_is_down_may_be_started_again_on_the_ports_that_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its own checks, behind its start, are let through as those of one that ran."""
    argv = ("systemctl", "restart", "down")
    for request in ({"units": ("down",)}, {"argv": argv}, {"units": ("down",), "argv": argv}):
        found = Machine().find(endpoints=at("*:80"), **request)
        assert (words(found.endpoints), words(found.unserved)) == (["*:80"], ["*:80"])
        assert (found.pids, found.unit) == ((), "down.service")
    monkeypatch.setattr(target, "output_of", lambda argv: "real.service")
    assert Machine().find(endpoints=at("*:80"), units=("down",)).unit == "real.service"
    monkeypatch.setattr(target, "output_of", lambda argv: "cannot ask for down.service")
    assert Machine().find(endpoints=at("*:80"), units=("down",)).unit == "down.service"


def test_one_of_two_units_is_down() -> None:
    found = Machine(listener(1)).find(endpoints=at("*:80", "*:81"), units=("down", "app"))
    assert (found.pids, found.unit) == ((7,), "app.service")


def test_a_unit_without_a_process_is_an_error_where_all_ports_are_served() -> None:
    """By somebody else: it is the wrong one."""
    with pytest.raises(TargetError, match="unit none has no running process"):
        Machine(listener(1)).find(endpoints=at("*:80"), units=("none",))


def test_several_units_and_a_pid_together() -> None:
    machine = Machine(listener(1), listener(2, port=81))
    machine.processes.groups["b.scope"] = {20}
    machine.processes.inodes = {7: {1001}, 20: {1002}}
    found = machine.find(units=("app", "b.scope"), pids=(7,))
    assert words(found.endpoints) == ["0.0.0.0:80", "0.0.0.0:81"]
    assert found.how == "unit app, unit b.scope, pid 7"


# --- not found


def test_a_command_that_tells_nothing_lists_who_listens() -> None:
    machine = Machine(
        listener(1, "::", 8080),
        listener(2, "127.0.0.1", 443),
        listener(3, "::1", 443),
        listener(4, "::", 22, v6only=True),
    )
    machine.processes.inodes = {8: {1001}, 9: {1001, 1002}}
    machine.processes.names = {8: "appd", 9: "x"}
    with pytest.raises(TargetError, match="cannot tell which ports") as error:
        machine.find(argv=("sh", "-c", "systemctl restart app"))
    assert error.value.remedy.splitlines() == [
        "who listens here:",
        "  -p [::]:22  owner not visible",
        "  -p 127.0.0.1:443  x (pid 9)",
        "  -p [::1]:443  owner not visible",
        "  -p 8080  appd (pid 8), x (pid 9)",
    ]


def test_a_port_that_one_service_has_for_all_is_listed_once() -> None:
    """Who takes the first of two lines would hold half of its clients."""
    machine = Machine(
        listener(1, "0.0.0.0", 80),
        listener(2, "::", 80, v6only=True),
        listener(3, "0.0.0.0", 81),
        listener(4, "::", 81, v6only=True),
    )
    machine.processes.inodes = {8: {1001, 1002, 1003}, 9: {1004}}
    machine.processes.names = {8: "nginx", 9: "other"}
    with pytest.raises(TargetError) as error:
        machine.find(argv=("./restart",))
    assert error.value.remedy.splitlines() == [
        "who listens here:",
        "  -p 80  nginx (pid 8)",
        "  -p 0.0.0.0:81  nginx (pid 8)",
        "  -p [::]:81  other (pid 9)",
    ]


def test_a_whole_command_in_one_word_tells_nothing_but_that() -> None:
    with pytest.raises(TargetError, match="ports the command restarts; leave out the quotes"):
        Machine().find(argv=("systemctl restart app",))
    with pytest.raises(TargetError, match="ports the command restarts; name them with -p"):
        Machine().find(argv=("./restart", "systemctl restart app"))


def test_a_reuseport_set_is_one_line_for_each_owner() -> None:
    machine = Machine(listener(1), listener(2))
    with pytest.raises(TargetError) as error:
        machine.find(argv=("make", "restart"))
    assert error.value.remedy.count("-p 0.0.0.0:80") == 1


def test_nobody_listens_at_all() -> None:
    with pytest.raises(TargetError) as error:
        Machine().find(argv=("make", "restart"))
    assert error.value.remedy == "nobody listens on TCP here"


def test_a_process_without_listeners() -> None:
    machine = Machine(listener(1))
    with pytest.raises(TargetError, match="pid 30: no process of it listens") as error:
        machine.find(pids=(30,))
    assert "-p 0.0.0.0:80  appd (pid 8)" in error.value.remedy


def test_a_process_in_another_network_namespace() -> None:
    machine = Machine(listener(1))
    machine.processes.networks = {30: 4026532000}
    with pytest.raises(TargetError) as error:
        machine.find(pids=(30,))
    assert error.value.remedy.endswith("add --netns 30")


def test_a_process_whose_namespace_is_hidden_is_not_said_to_be_elsewhere() -> None:
    machine = Machine(listener(1))
    machine.processes.networks = {30: 0}
    with pytest.raises(TargetError) as error:
        machine.find(pids=(30,))
    assert "--netns" not in error.value.remedy


# --- named endpoints


@pytest.mark.parametrize(
    ("sockets", "named", "held"),
    [
        pytest.param([listener(1, "::")], ["[::]:80"], ["*:80"], id="dual: v4 is served, too"),
        pytest.param([listener(1, "::", v6only=True)], ["[::]:80"], ["[::]:80"], id="v6 only"),
        pytest.param([], ["[::]:80"], ["[::]:80"], id="nobody yet"),
        pytest.param(
            [listener(1, "::", v6only=True), listener(2, "0.0.0.0")],
            ["[::]:80"],
            ["[::]:80"],
            id="a v4 socket of its own",
        ),
        pytest.param(
            [listener(1, "::", 81)], ["[::]:80", "[::]:81"], ["[::]:80", "*:81"], id="by port"
        ),
        pytest.param([listener(1, "::")], ["10.0.0.1:80"], ["10.0.0.1:80"], id="exact stays"),
        pytest.param([listener(1, "::")], ["0.0.0.0:80"], ["0.0.0.0:80"], id="v4 stays"),
    ],
)
def test_widening(sockets: list[Listener], named: list[str], held: list[str]) -> None:
    found = Machine(*sockets).find(endpoints=at(*named))
    assert words(found.endpoints) == held


@pytest.mark.parametrize(
    ("named", "held"),
    [
        (["*:80", "*:80"], ["*:80"]),
        (["*:80", "10.0.0.1:80", "[::]:80", "0.0.0.0:80"], ["*:80"]),
        (["0.0.0.0:80", "10.0.0.1:80", "[fd00::1]:80"], ["0.0.0.0:80", "[fd00::1]:80"]),
        (["[::]:80", "[fd00::1]:80", "10.0.0.1:80"], ["[::]:80", "10.0.0.1:80"]),
        (["0.0.0.0:80", "[::]:80"], ["0.0.0.0:80", "[::]:80"]),
        (["10.0.0.1:80", "10.0.0.2:80"], ["10.0.0.1:80", "10.0.0.2:80"]),
        (["*:80", "10.0.0.1:81"], ["*:80", "10.0.0.1:81"]),
    ],
)
def test_what_another_endpoint_covers_is_left_out(named: list[str], held: list[str]) -> None:
    """Its SYNs would meet two rules, and be queued twice."""
    assert words(Machine().find(endpoints=at(*named)).endpoints) == held


def test_covered_endpoints_of_processes_are_left_out_too() -> None:
    found = Machine(listener(1, "0.0.0.0"), listener(2, "127.0.0.1"), listener(3, "::1"))
    assert words(found.find(pids=(7,)).endpoints) == ["0.0.0.0:80", "[::1]:80"]


def test_endpoints_that_nobody_serves_are_told() -> None:
    found = Machine(listener(1)).find(endpoints=at("*:80", "*:81"))
    assert words(found.unserved) == ["*:81"]


# --- pidfiles


def test_a_pidfile(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text(f"{os.getpid()}\nmore\n")
    assert read_pidfile(str(path)) == os.getpid()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no pid"),
        (b"\n", "holds no pid"),
        (b"abc", "holds no pid"),
        (b"-5", "holds no pid"),
        (b"0", "holds no pid"),
        (b"4194304", "holds no pid"),
        (b"99999999999999999999", "holds no pid"),
        (b"\xff\xfe12", "holds no pid"),
        (b"12.5", "holds no pid"),
        (b"9" * 100, "holds no pid"),
        (b"4194303", "there is no process 4194303"),
    ],
)
def test_a_pidfile_that_is_none(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as error:
        read_pidfile(str(path))
    assert str(path) in error.value.message


def test_a_pidfile_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_pidfile(str(tmp_path / "none"))
    with pytest.raises(UsageError, match="not a plain file"):
        read_pidfile(str(tmp_path))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UsageError, match="not a plain file"):
        read_pidfile(str(tmp_path / "fifo"))


def test_a_pidfile_that_is_named_is_an_error_where_it_is_stale(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text("4194303")
    with pytest.raises(SynplugError, match="there is no process"):
        Machine(listener(1)).find(pidfiles=(str(path),))


def test_a_pidfile_of_a_service_that_is_down_is_none_where_its_ports_are_named(
    tmp_path: Path,
) -> None:
    path = tmp_path / "pid"
    for content in ("4194303", None):
        path.write_text(content) if content else path.unlink()
        found = Machine().find(endpoints=at("*:80"), pidfiles=(str(path),))
        assert (found.pids, words(found.unserved)) == ((), ["*:80"])
        with pytest.raises(UsageError, match=str(path)):
            Machine(listener(1)).find(endpoints=at("*:80"), pidfiles=(str(path),))
