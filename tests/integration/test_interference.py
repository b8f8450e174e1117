"""What others do to a hold while it holds: noticed, told, and survived as far as that goes.

Each case interferes while connections wait. Others who remove chains, and other queues, are in
:mod:`tests.integration.test_neighbours`.
"""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from netlab.load import Load
from netlab.load_result import LoadResult
from netlab.program import wait_until
from netlab.topology import ClientServer
from tests.integration import shell
from tests.integration.conftest import SimpleService
from tests.integration.connect import holds_in_force

_RATE_PER_S = 200
_OUTAGE_S = 1.5
_QUEUE_USER = Path(__file__).with_name("programs") / "queue_user.py"
_FAKETIME = "faketime/libfaketime.so.1"
_LEGACY = ("iptables-legacy", "ip6tables-legacy")
_LOST = "dropped by somebody else"
_RESTORED = "somebody removed the rule that holds"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A restart in whose midst somebody interfered."""

    status: int
    stderr: str
    load: LoadResult


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A service under load, and a hold that somebody can interfere with."""

    lab: ClientServer
    simple: SimpleService

    def play(
        self,
        interfere: Callable[[], object],
        *options: str,
        targets: list[tuple[str, int]] | None = None,
    ) -> Seen:
        """Restart it, and interfere when some wait."""
        restart = self.simple.restart_argv("--delay", f"{_OUTAGE_S}")
        targets = targets or self.simple.targets(self.lab)
        with Load(self.lab.client, targets, rate_per_s=_RATE_PER_S) as load:
            run = shell.start(self.lab.server, "wrap", "-p", "8080", *options, "--", *restart)
            wait_until(lambda: bool(holds_in_force(self.lab.server)), 10, "connections are held")
            wait_until(lambda: sum(self.queues().values()) > 20, 10, "some wait")
            interfere()
            _, stderr = run.communicate(timeout=30)
            result = load.stop()
        return Seen(status=run.returncode, stderr=stderr, load=result)

    def queues(self) -> dict[int, int]:
        """The netfilter queues of the namespace, and how many packets wait in each."""
        state = self.lab.server.run(["cat", "/proc/net/netfilter/nfnetlink_queue"]).stdout
        rows = [line.split() for line in state.splitlines()]
        return {int(row[0]): int(row[2]) for row in rows}

    def do(self, *argv: str, check: bool = True, input_text: str = "") -> str:
        """What somebody runs on the server; what it says."""
        done = self.lab.server.run(argv, check=check, input_text=input_text)
        return done.stdout + done.stderr


@pytest.fixture
def scene(lab: ClientServer, simple: SimpleService) -> Scene:
    """The lab with its small server."""
    return Scene(lab=lab, simple=simple)


def _nobody_notices(seen: Seen) -> None:
    assert seen.status == 0, seen.stderr
    assert seen.load.failures == 0, seen.load.summary()
    assert _LOST not in seen.stderr
    assert _RESTORED not in seen.stderr


@pytest.mark.parametrize(("extra", "loses"), [(("-p", "8080"), False), (("-p", "9"), True)])
def test_the_control(scene: Scene, extra: tuple[str, ...], loses: bool) -> None:
    """With nobody who interferes nothing is lost; and without the hold the same load is."""
    restart = scene.simple.restart_argv("--delay", f"{_OUTAGE_S}")
    with Load(scene.lab.client, scene.simple.targets(scene.lab), rate_per_s=_RATE_PER_S) as load:
        shell.run(scene.lab.server, "wrap", *extra, "--ready-timeout", "3s", "--", *restart)
        wait_until(scene.simple.listens, 10, "it listens again")
        result = load.stop()
    assert (result.failures > _RATE_PER_S * _OUTAGE_S / 2) is loses, result.summary()


# --- rules


def test_our_table_cannot_be_deleted(scene: Scene) -> None:
    said = []

    def delete() -> None:
        tables = scene.do("nft", "list", "tables").split()
        ours = [word for word in tables if word.startswith("synplug-")]
        assert len(ours) == 1
        said.append(scene.do("nft", "delete", "table", "inet", ours[0], check=False))
        said.append(scene.do("nft", "flush", "table", "inet", ours[0], check=False))

    _nobody_notices(scene.play(delete, "--backend", "nfqueue"))
    assert [line.count("Operation not permitted") for line in said] == [1, 1], said


def test_a_flushed_ruleset_with_nothing_else_in_it(scene: Scene) -> None:
    flush = ("nft", "flush", "ruleset")
    _nobody_notices(scene.play(lambda: scene.do(*flush), "--backend", "nfqueue"))


_REMOVALS = {
    "flushed": ["-t mangle -F"],
    "deleted": ["-t mangle -D INPUT 1"],
    "flushed and our chain deleted": ["-t mangle -F", "-t mangle -X"],
}


@pytest.mark.parametrize("how", _REMOVALS)
def test_a_legacy_rule_that_somebody_removes_is_put_back(scene: Scene, how: str) -> None:
    def remove() -> None:
        for tool in _LEGACY:
            for words in _REMOVALS[how]:
                scene.do(tool, "-w", *words.split())

    _is_put_back(scene.play(remove, "--backend", "nfqueue-iptables"))


def test_a_firewall_reload_by_iptables_restore(scene: Scene) -> None:
    mine = "*mangle\n:INPUT ACCEPT [0:0]\n-A INPUT -p tcp --dport 9 -j DROP\nCOMMIT\n"

    def reload() -> None:
        for tool in _LEGACY:
            scene.do(f"{tool}-restore", "-w", input_text=mine)

    _is_put_back(scene.play(reload, "--backend", "nfqueue-iptables"))
    for tool in _LEGACY:
        assert "-A INPUT -p tcp -m tcp --dport 9 -j DROP" in scene.do(f"{tool}-save")
        scene.do(tool, "-w", "-t", "mangle", "-F")


def _is_put_back(seen: Seen) -> None:
    """Most of the outage is held; what is not is told."""
    assert seen.status == 0, seen.stderr
    assert _RESTORED in seen.stderr
    assert seen.load.failures < _RATE_PER_S * _OUTAGE_S / 3, seen.load.summary()


# --- queues


def test_nobody_else_can_bind_our_queue(scene: Scene) -> None:
    said = []

    def bind() -> None:
        for number in scene.queues():
            user = [sys.executable, "-S", str(_QUEUE_USER), str(number)]
            said.append(scene.do(*user, check=False))

    _nobody_notices(scene.play(bind))
    assert said
    assert all("cannot bind queue" in line for line in said), said


@contextmanager
def _datagrams_counted(scene: Scene, port: int) -> Iterator[subprocess.Popen[str]]:
    """Counts datagrams until its standard input ends, and prints how many there were."""
    program = f"""
import select, socket, sys
ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
ear.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
ear.bind(("0.0.0.0", {port}))
print("ready", flush=True)
count = 0
while True:
    ready, _, _ = select.select([ear, sys.stdin], [], [])
    if ear in ready:
        ear.recv(64)
        count += 1
    elif sys.stdin in ready:
        break
print(count, flush=True)
"""
    counter = scene.lab.server.popen(
        [sys.executable, "-S", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert counter.stdout is not None
    assert counter.stdout.readline() == "ready\n"
    try:
        yield counter
    finally:
        counter.kill()
        counter.wait()


_SEND = """
import socket, sys, time
mouth = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in range(int(sys.argv[3])):
    mouth.sendto(b"x", (sys.argv[1], int(sys.argv[2])))
    if number % 20 == 0:
        time.sleep(0.005)
"""


@pytest.mark.parametrize("backend", ["nfqueue", "nfqueue-iptables"])
def test_what_somebody_else_sends_to_our_queue_passes(scene: Scene, backend: str) -> None:
    """More of it than the hold has room for."""
    datagrams = 4000
    counted = []

    def fill() -> None:
        (number,) = scene.queues()
        rule = ["INPUT", "-p", "udp", "--dport", "9999", "-j", "NFQUEUE"]
        rule += ["--queue-num", str(number), "--queue-bypass"]
        scene.do("iptables-legacy", "-w", "-A", *rule)
        send = [sys.executable, "-S", "-c", _SEND, scene.lab.server_ipv4, "9999", str(datagrams)]
        with _datagrams_counted(scene, 9999) as counter:
            scene.lab.client.run(send, timeout_s=20)
            counted.append(int(counter.communicate("", timeout=10)[0]))
        scene.do("iptables-legacy", "-w", "-D", *rule)

    seen = scene.play(fill, "--backend", backend, "--max-held", "2000")
    assert seen.status == 0, seen.stderr
    assert seen.load.failures == 0, seen.load.summary()
    # Those that are in the queue at the moment when the base chain goes, go with it.
    assert datagrams * 0.9 < counted[0] <= datagrams, seen.stderr
    told = re.search(r"(\d+) packets that are no SYNs to the endpoints came", seen.stderr)
    assert told is not None, seen.stderr
    assert 2000 < int(told[1]) <= datagrams, "more than the hold has room for"


_SEND_RAW = """
import socket, sys, time
family, protocol = int(sys.argv[2]), int(sys.argv[3])
mouth = socket.socket(family, socket.SOCK_RAW, protocol)
for number in range(int(sys.argv[4])):
    mouth.sendto(b"x" * 64, (sys.argv[1], 0))
    if number % 20 == 0:
        time.sleep(0.005)
"""


@pytest.mark.parametrize("backend", ["nfqueue", "nfqueue-iptables"])
@pytest.mark.parametrize(
    ("program", "protocol"),
    [
        ("iptables-legacy", 47),  # GRE
        ("iptables-legacy", 50),  # ESP
        ("iptables-legacy", 112),  # VRRP
        ("ip6tables-legacy", 47),
        ("ip6tables-legacy", 89),  # OSPF
    ],
)
def test_no_protocol_but_tcp_takes_room_of_the_hold(
    scene: Scene, backend: str, program: str, protocol: int
) -> None:
    """Whoever sends it to our queue."""
    packets = 1500
    lab = scene.lab
    address, family = (
        (lab.server_ipv4, socket.AF_INET)
        if program == "iptables-legacy"
        else (lab.server_ipv6, socket.AF_INET6)
    )

    def fill() -> None:
        (number,) = scene.queues()
        rule = ["INPUT", "-p", str(protocol), "-j", "NFQUEUE", "--queue-num", str(number)]
        scene.do(program, "-w", "-A", *rule, "--queue-bypass")
        send = [sys.executable, "-S", "-c", _SEND_RAW, address, str(int(family))]
        lab.client.run([*send, str(protocol), str(packets)], timeout_s=20)
        scene.do(program, "-w", "-D", *rule, "--queue-bypass")

    seen = scene.play(fill, "--backend", backend, "--max-held", "1000")
    assert seen.status == 0, seen.stderr
    assert seen.load.failures == 0, seen.load.summary()
    assert "beyond" not in seen.stderr
    told = re.search(r"(\d+) packets that are no SYNs to the endpoints came", seen.stderr)
    assert told is not None, seen.stderr
    assert packets * 0.9 < int(told[1]) <= packets


# --- devices, settings, clocks


def test_the_interface_goes_down_and_comes_up(scene: Scene) -> None:
    """The kernel drops what waits of it; clients send it again. IPv6 loses its addresses."""

    def down_and_up() -> None:
        scene.do("ip", "link", "set", scene.lab.interface, "down")
        scene.do("ip", "link", "set", scene.lab.interface, "up")

    targets = [(scene.lab.server_ipv4, 8080)]
    seen = scene.play(down_and_up, targets=targets)
    assert seen.status == 0, seen.stderr
    assert _LOST in seen.stderr
    assert seen.load.failures == 0, seen.load.summary()
    assert seen.load.retransmitted > 0, "what was dropped came again"


@pytest.mark.parametrize("backend", ["nfqueue", "nfqueue-iptables"])
def test_settings_change(scene: Scene, backend: str) -> None:
    settings = {
        "net.ipv4.tcp_syncookies": ("2", "1"),
        "net.ipv4.tcp_abort_on_overflow": ("1", "0"),
        "net.ipv4.tcp_max_syn_backlog": ("64", "512"),
        "net.ipv4.tcp_timestamps": ("0", "1"),
        "net.ipv4.conf.all.rp_filter": ("1", "0"),
        "net.core.somaxconn": ("128", "4096"),
        "net.ipv4.tcp_fastopen": ("3", "1"),
    }
    before = {name: scene.do("sysctl", "-n", name).strip() for name in settings}

    def change() -> None:
        for number in (0, 1, 0):
            for name, values in settings.items():
                scene.do("sysctl", "-q", "-w", f"{name}={values[number]}")

    _nobody_notices(scene.play(change, "--backend", backend))
    for name, value in before.items():
        scene.do("sysctl", "-q", "-w", f"{name}={value}")


@pytest.mark.parametrize("jump", ["+2d", "-2d"])
def test_the_clock_is_moved(scene: Scene, tmp_path: Path, jump: str) -> None:
    """Every process of the run sees a wall clock that jumps; deadlines are not by that clock."""
    offset = tmp_path / "offset"
    offset.write_text("+0\n")
    program = [*shell.SYNPLUG, "wrap", "-p", "8080", "--max-hold", "8s", "--"]
    restart = scene.simple.restart_argv("--delay", f"{_OUTAGE_S}")
    environment = {
        "LD_PRELOAD": _faketime(),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    moved = [f"{name}={value}" for name, value in environment.items()]
    sees = ["env", *moved, "date", "+%s"]
    start_s = int(scene.do(*sees))
    with Load(scene.lab.client, scene.simple.targets(scene.lab), rate_per_s=_RATE_PER_S) as load:
        run = scene.lab.server.popen(
            ["env", *moved, *program, *restart], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        wait_until(lambda: bool(holds_in_force(scene.lab.server)), 10, "connections are held")
        offset.write_text(f"{jump}\n")
        assert abs(int(scene.do(*sees)) - start_s) > 86_400, "the clock does jump"
        _, stderr = run.communicate(timeout=30)
        result = load.stop()
    _nobody_notices(Seen(status=run.returncode, stderr=stderr, load=result))


def _faketime() -> str:
    found = subprocess.run(
        ["dpkg-query", "-L", "libfaketime"], capture_output=True, text=True, check=True
    ).stdout.split()
    (library,) = (path for path in map(shlex.quote, found) if path.endswith(_FAKETIME))
    return library
