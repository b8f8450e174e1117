"""What a person at a terminal sees, and what a pipe is spared."""

from __future__ import annotations

import os
import re
import subprocess

import pytest

from netlab.load import Load
from netlab.topology import ClientServer
from tests.integration import shell
from tests.integration.conftest import SimpleService


def on_terminal(lab: ClientServer, *argv: str, term: str = "xterm") -> str:
    """Run synplug with a terminal as its standard error; all that was written to it."""
    master, slave = os.openpty()
    with os.fdopen(master, "rb", buffering=0) as screen:
        process = subprocess.Popen(
            lab.server.command(["env", f"TERM={term}", *shell.SYNPLUG, *argv]),
            stderr=slave, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(slave)
        written = b""
        while True:
            try:
                piece = screen.read(65536)
            except OSError:  # EIO: the last who had it open has gone
                break
            if not piece:
                break
            written += piece
        assert process.wait(timeout=30) == 0, written.decode()
    return written.decode()


def test_a_line_lives_while_connections_wait(lab: ClientServer, simple: SimpleService) -> None:
    command = simple.restart_argv("--delay", "0.8")
    with Load(lab.client, simple.targets(lab), rate_per_s=100) as load:
        seen = on_terminal(lab, "wrap", "-p", "8080", "--max-hold", "9s", "--", *command)
        kept = load.stop()
    assert kept.failures == 0, kept.summary()
    lines = re.findall(r"\r\x1b\[Ksynplug: (\w+); (\d+) wait, (\d\.\d) s to the deadline\r", seen)
    waiting = [int(number) for phase, number, _ in lines if phase == "restarting"]
    assert max(waiting) > 30, lines
    left = [float(text) for _, _, text in lines]
    assert left == sorted(left, reverse=True)
    assert left[0] > 8
    live, _, report = seen.rpartition("\r\x1b[K")
    assert live
    assert report.startswith("synplug: restarted, exit 0"), "the line is gone before the report"
    assert re.search(r"^  ready +█{10,}", report, re.MULTILINE)


@pytest.mark.parametrize(("term", "options"), [("dumb", []), ("xterm", ["-q"])])
def test_who_cannot_or_will_not_see_it(
    lab: ClientServer, simple: SimpleService, term: str, options: list[str]
) -> None:
    command = simple.restart_argv("--delay", "0.3")
    seen = on_terminal(lab, "wrap", *options, "-p", "8080", "--", *command, term=term)
    assert "\x1b" not in seen
    assert "█" not in seen
    assert bool(seen) == (term == "dumb")


def test_a_pipe_is_spared(lab: ClientServer, simple: SimpleService) -> None:
    done = shell.run(lab.server, "wrap", "-p", "8080", "--", *simple.restart_argv("--delay", "0.3"))
    assert done.status == 0
    assert done.stderr.startswith("synplug: restarted")
    assert not set("\r\x1b█") & set(done.stderr)
