"""The plug backend on a kernel that has sch_plug: these tests run inside the guest.

Its processor is slow: rates are low, and the time of day is not what is measured.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from netlab.program import wait_until
from netlab.topology import ClientServer
from tests.document_blocks import block
from tests.guest.plug import (
    PLUG,
    backlog,
    device,
    hold,
    ifb,
    kill_everything,
    ledger,
    standing_clsact,
    waits,
)
from tests.integration import shell
from tests.integration.conftest import SimpleService
from tests.integration.connect import connecting, connects_within, holds_in_force

pytestmark = pytest.mark.guests_only


def test_a_held_connection_waits_and_is_not_refused(
    lab: ClientServer, simple: SimpleService
) -> None:
    hold(lab)
    waiting = [connecting(lab.client, (host, 8080), 60) for host in lab.server_addresses]
    wait_until(lambda: backlog(lab) >= len(waiting), 30, "both SYNs wait in the plug")
    lab.server.run(["sh", "-c", simple.stop_line()])
    lab.server.run(simple.start_argv())
    outcome = shell.run(lab.server, "release", "--name", "web", "--json", "-")
    assert outcome.status == 0, outcome
    assert outcome.report["hold"]["released"] >= len(waiting)
    for client in waiting:
        assert float(client.communicate(timeout=60)[0]) < 60


def test_other_ports_and_answers_pass(lab: ClientServer, simple: SimpleService) -> None:
    """Only the SYNs to the held port: not those to another one, nor any other packet."""
    shell.run(lab.server, "hold", "-p", "9", "--name", "other", *PLUG)
    done = lab.client.run(
        [sys.executable, "-c", _ASK, lab.server_ipv4, "8080"], check=False, timeout_s=60
    )
    assert done.stdout.strip() == "HTTP/1.1 200 OK"
    assert shell.run(lab.server, "release", "--name", "other", "--now").status == 0


_ASK = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=30) as ours:
    ours.sendall(b"GET / HTTP/1.1\\r\\n\\r\\n")
    print(ours.recv(100).decode().splitlines()[0])
"""


def test_the_keeper_is_killed_and_who_waited_is_let_go(
    lab: ClientServer, simple: SimpleService
) -> None:
    hold(lab)
    waiting = connecting(lab.client, (lab.server_ipv4, 8080), 60)
    wait_until(lambda: backlog(lab) >= 1, 30, "its SYN waits in the plug")
    os.kill(holds_in_force(lab.server)[0]["keeper"], signal.SIGKILL)
    assert float(waiting.communicate(timeout=60)[0]) < 60
    wait_until(lambda: not ledger(lab), 30, "the watcher has cleaned up")


@pytest.mark.kernels
def test_a_watcher_that_is_killed_alone_changes_nothing_yet(
    lab: ClientServer, simple: SimpleService
) -> None:
    """The hold ends as ever; and were the keeper killed after it, only recover would let go."""
    for keeper_too in (False, True):
        hold(lab)
        waiting = connecting(lab.client, (lab.server_ipv4, 8080), 60)
        waits(lab, 1)
        keeper = holds_in_force(lab.server)[0]["keeper"]
        with open(f"/proc/{keeper}/task/{keeper}/children") as file:
            (watcher,) = map(int, file.read().split())
        os.kill(watcher, signal.SIGKILL)
        if keeper_too:
            os.kill(keeper, signal.SIGKILL)
            assert not connects_within(lab.client, (lab.server_ipv4, 8080), 3)
            assert " SYNs were let go" in shell.run(lab.server, "recover").stdout
        else:
            assert shell.run(lab.server, "release", "--name", "web").status == 0
        assert float(waiting.communicate(timeout=60)[0]) < 60


def test_everything_is_killed_and_recover_lets_go(lab: ClientServer, simple: SimpleService) -> None:
    hold(lab)
    waiting = connecting(lab.client, (lab.server_ipv4, 8080), 60)
    wait_until(lambda: backlog(lab) >= 1, 30, "its SYN waits in the plug")
    kill_everything(lab)
    time.sleep(1)
    assert waiting.poll() is None, "this is what docs/failure-modes.md warns of"
    recovered = shell.run(lab.server, "recover").stdout
    for words in (" tc filters; ", f"the clsact of {device(lab)}; ", "1 SYNs were let go"):
        assert words in recovered
    assert float(waiting.communicate(timeout=60)[0]) < 60


@pytest.mark.parametrize("lost", ["file", "format"])
def test_what_no_entry_tells_of_is_let_go_by_its_id(
    lab: ClientServer, simple: SimpleService, lost: str
) -> None:
    """Everything is killed, and somebody has removed /run/synplug; or another version wrote it.

    The clsact is somebody's: of one that the run had made, its id would not tell.
    """
    with standing_clsact(lab.server):
        hold(lab)
        run_id = ifb(lab).removeprefix("synplug")
        kill_everything(lab)
        if lost == "file":
            shutil.rmtree("/run/synplug")
        else:
            (entry,) = Path("/run/synplug").glob("*/*.json")
            entry.write_text(entry.read_text().replace('"format": 1', '"format": 2'))
        assert not connects_within(lab.client, (lab.server_ipv4, 8080), 2), "the control: it holds"
        told = shell.run(lab.server, "recover")
        assert told.status == 125, told
        assert f"'synplug recover --run {run_id}'" in told.stdout
        done = shell.run(lab.server, "recover", "--run", run_id)
        assert done.status == 0, done
        assert " tc filters; " in done.stdout
        assert connects_within(lab.client, (lab.server_ipv4, 8080), 5)
        assert shell.run(lab.server, "recover").stdout == "no dead run in this network namespace\n"


@pytest.mark.kernels
def test_recover_finds_the_device_of_a_dead_run_by_whatever_name(
    lab: ClientServer, simple: SimpleService
) -> None:
    hold(lab)
    name = ifb(lab)
    kill_everything(lab)
    for words in (f"{name} down", f"{name} name theirs", "theirs up"):
        lab.server.run(["ip", "link", "set", *words.split()])
    assert not connects_within(lab.client, (lab.server_ipv4, 8080), 2), "the control: it holds"
    assert "with its plug" in shell.run(lab.server, "recover").stdout
    assert connects_within(lab.client, (lab.server_ipv4, 8080), 5)
    assert "theirs" not in lab.server.run(["ip", "link", "show"]).stdout


@pytest.mark.kernels
def test_what_holds_needs_one_capability_and_so_does_recover(
    lab: ClientServer, simple: SimpleService
) -> None:
    """As root with these alone; docs/privileges.md."""
    wrap = ["wrap", "-p", "8080", *PLUG, "--"]
    for capabilities, status in (((), 125), (("net_admin",), 0)):
        argv = shell.limited(capabilities, *wrap, *simple.restart_argv())
        done = lab.server.run(argv, check=False, timeout_s=60)
        assert done.returncode == status, done
        assert ("CAP_NET_ADMIN" in done.stderr) == bool(status)
    held = shell.limited(("net_admin",), "hold", "-p", "8080", "--name", "web", *PLUG)
    lab.server.run(held, timeout_s=60)
    kill_everything(lab)
    done = lab.server.run(shell.limited((), "recover"), check=False, timeout_s=60)
    assert (done.returncode, "CAP_NET_ADMIN" in done.stderr) == (125, True)
    recover = shell.limited(("net_admin",), "recover")
    assert "tc filters" in lab.server.run(recover, timeout_s=60).stdout


@pytest.mark.parametrize("side", ["ingress", "egress"])
def test_the_readme_s_lines_clear_a_plug_that_stayed(
    lab: ClientServer, simple: SimpleService, side: str
) -> None:
    """As they stand there, but for the run, the devices and what is shown of their filters."""
    is_egress = side == "egress"
    names = ["lo"] if is_egress else [device(lab), "lo"]
    client, target = (
        (lab.server, ("127.0.0.1", 8080)) if is_egress else (lab.client, (lab.server_ipv4, 8080))
    )
    hold(lab, *(["--loopback-egress"] if is_egress else []))
    waiting = connecting(client, target, 60)
    wait_until(lambda: backlog(lab) >= 1, 30, "its SYN waits in the plug")
    run_id = ifb(lab).removeprefix("synplug")
    kill_everything(lab)
    lines = block("README.md", "tc qdisc change").splitlines()
    assigned, let_go, show, _, of_probes, delete, remove = lines
    assert "for lo with egress" in show
    (probes,) = re.findall("handle (0x[0-9a-f]+)", of_probes)
    run = assigned.replace("1a2b3c4d", run_id)
    lab.server.run(["sh", "-e", "-c", f"{run}\n{let_go}"])
    assert float(waiting.communicate(timeout=60)[0]) < 60
    for name in names:
        there = (("eth0", name), ("ingress", side))
        shown = lab.server.run(["sh", "-c", _replaced(show.partition("#")[0], there)]).stdout
        told = (f"synplug{run_id}", f"handle {probes}")
        ours = [text for text in shown.split("filter ") if any(word in text for word in told)]
        prefs = {found for text in ours for found in re.findall(r" pref (\d+) ", text)}
        assert prefs
        for pref in prefs:
            line = _replaced(delete, (*there, ("pref 4 ", f"pref {pref} ")))
            assert f"pref {pref} " in line
            lab.server.run(["sh", "-e", "-c", line])
    lab.server.run(["sh", "-e", "-c", f"{run}\n{remove}"])
    assert run_id not in lab.server.run(["ip", "link"]).stdout
    assert connects_within(client, target, 30)
    assert "cleaned up" in shell.run(lab.server, "recover").stdout


def _replaced(line: str, words: Iterable[tuple[str, str]]) -> str:
    for word, other in words:
        line = line.replace(word, other)
    return line


def test_the_deadline_lets_go(lab: ClientServer, simple: SimpleService) -> None:
    options = ["--backend", "plug", "--max-hold", "3s"]
    assert shell.run(lab.server, "hold", "-p", "8080", "--name", "web", *options).status == 0
    waiting = connecting(lab.client, (lab.server_ipv6, 8080), 60)
    assert float(waiting.communicate(timeout=60)[0]) < 60
    wait_until(lambda: not ledger(lab), 30, "nothing is left")


@pytest.mark.kernels
def test_what_does_not_fit_is_dropped_and_told(lab: ClientServer, simple: SimpleService) -> None:
    """One SYN's worth: the next one is sent again, and connects after the release."""
    hold(lab, "--max-held", "1")
    first = connecting(lab.client, (lab.server_ipv4, 8080), 60)
    waits(lab, 1)
    second = connecting(lab.client, (lab.server_ipv4, 8080), 60)
    show = ["tc", "-s", "-j", "qdisc", "show", "dev", ifb(lab)]

    def dropped() -> int:
        return int(json.loads(lab.server.run(show).stdout)[0]["drops"])

    wait_until(lambda: dropped() > 0, 30, "one was dropped")
    assert backlog(lab) == 1
    outcome = shell.run(lab.server, "release", "--name", "web", "--json", "-")
    assert outcome.report["hold"]["overflowed"] >= 1
    assert any("takes 128 bytes" in text for text in outcome.report["warnings"])
    for client in (first, second):
        assert float(client.communicate(timeout=60)[0]) < 60


def test_our_clsact_is_taken_away_and_comes_back(lab: ClientServer, simple: SimpleService) -> None:
    """By somebody who tidies up: who waits waits on, and who comes later waits, too."""
    wire = device(lab)
    hold(lab)
    first = connecting(lab.client, (lab.server_ipv4, 8080), 60)
    wait_until(lambda: backlog(lab) >= 1, 30, "its SYN waits in the plug")
    lab.server.run(["tc", "qdisc", "del", "dev", wire, "clsact"])
    show = ["tc", "filter", "show", "dev", wire, "ingress"]
    wait_until(lambda: "Redirect" in lab.server.run(show, check=False).stdout, 20, "it is back")
    second = connecting(lab.client, (lab.server_ipv4, 8080), 60)
    wait_until(lambda: backlog(lab) >= 2, 30, "both wait")
    outcome = shell.run(lab.server, "release", "--name", "web", "--json", "-")
    assert any("removed filters of the hold" in text for text in outcome.report["warnings"])
    for waiting in (first, second):
        assert float(waiting.communicate(timeout=60)[0]) < 60
    assert not lab.server.run(["tc", "qdisc", "show", "dev", wire, "clsact"]).stdout


def test_the_ifb_is_taken_away(lab: ClientServer, simple: SimpleService) -> None:
    """By somebody who tidies up: what waited is lost, what comes passes."""
    hold(lab)
    waiting = connecting(lab.client, (lab.server_ipv4, 8080), 60)
    wait_until(lambda: backlog(lab) >= 1, 30, "its SYN waits in the plug")
    lab.server.run(["ip", "link", "del", ifb(lab)])
    assert float(waiting.communicate(timeout=60)[0]) < 60, "its next SYN passed"
    outcome = shell.run(lab.server, "release", "--name", "web", "--json", "-")
    assert outcome.report["hold"]["lost"] >= 1
    assert any("dropped by somebody else" in text for text in outcome.report["warnings"])
