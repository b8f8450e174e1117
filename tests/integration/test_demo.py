"""``synplug demo``, as whoever tries it runs it."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from netlab.snapshot import NetworkState
from netlab.topology import ClientServer
from tests.integration import shell


def test_the_demo_shows_the_difference_and_leaves_nothing(
    lab: ClientServer, tmp_path: Path
) -> None:
    before = NetworkState.capture(lab.server)
    picture = tmp_path / "demo.svg"
    done = shell.run(lab.server, "demo", "--restarts", "2", "--plot", str(picture))
    assert done.status == 0, done
    rows = dict(re.findall(r"^(\w[\w ]+?)  +(.*)$", done.stdout, re.MULTILINE))
    without, wrapped = map(int, rows["failed in all"].split())
    assert without > 0 == wrapped
    assert int(rows["held"]) > 0
    crosses = [
        path
        for path in ElementTree.parse(picture).getroot().iter("{http://www.w3.org/2000/svg}path")
        if path.get("class") == "failed"
    ]
    assert len(crosses) == without
    assert not before.difference(NetworkState.capture(lab.server))


def test_a_picture_that_cannot_be_drawn_is_said_at_once(lab: ClientServer, tmp_path: Path) -> None:
    done = shell.run(lab.server, "demo", "--plot", str(tmp_path / "none" / "demo.svg"))
    assert done.status == 125
    assert "cannot be written" in done.stderr
    assert done.stdout == ""
