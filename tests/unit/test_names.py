"""Names of holds, the socket at which a keeper is found, and who it talks with."""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synplug.errors import NoSuchHoldError, UsageError
from synplug.holding import runtime
from synplug.holding.audience import Audience
from synplug.holding.channel import Channel
from synplug.holding.locks import RunLocks, remove_unused_locks
from synplug.holding.names import Door, call, check_name
from synplug.model import Endpoint


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Instead of /run/synplug."""
    path = tmp_path / "run"
    monkeypatch.setattr(runtime, "ROOT", str(path))
    return path


@given(st.text())
def test_a_name_is_the_name_of_a_file_in_its_folder(text: str) -> None:
    try:
        name = check_name(text)
    except UsageError:
        return
    assert name == text
    assert "/" not in name
    assert not name.startswith(".")
    assert name.isascii()
    assert len(f"name-{name}.sock") < 80, "sun_path has 108 bytes"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "-x", "é", "a\n", "x" * 65, "a\0"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(UsageError, match="no name for a hold"):
        check_name(name)


def test_nobody_is_there(root: Path) -> None:
    with pytest.raises(NoSuchHoldError) as caught:
        call("web")
    assert caught.value.exit_code == 3
    assert not root.exists()


def test_a_dead_keepers_socket_is_nobody_and_is_removed_with_its_lock(root: Path) -> None:
    locks = RunLocks([Endpoint(port=80)], "web")
    locks.take(timeout_s=0)
    door = Door("web")
    lock, socket = root.rglob("name-web.lock"), root.rglob("name-web.sock")
    assert len([*lock, *socket]) == 2
    door._socket.close()  # as by SIGKILL
    locks.leave()
    with pytest.raises(NoSuchHoldError):
        call("web")
    remove_unused_locks()
    assert not root.exists()


def test_a_live_keepers_socket_stays(root: Path) -> None:
    locks = RunLocks([Endpoint(port=80)], "web")
    locks.take(timeout_s=0)
    door = Door("web")
    remove_unused_locks()
    channel, pid = call("web")
    assert pid > 0
    channel.close()
    door.close()
    locks.drop()
    assert not root.exists()


def test_the_same_name_and_other_ports_share_a_lock(root: Path) -> None:
    first, second = RunLocks([Endpoint(port=80)], "web"), RunLocks([Endpoint(port=81)], "web")
    first.take(timeout_s=0)
    with pytest.raises(Exception, match="a hold named 'web' is in force"):
        second.take(timeout_s=0)
    first.drop()
    second.take(timeout_s=0)
    second.drop()


class Talk:
    """An audience with a run, and what it hears."""

    def __init__(self) -> None:
        self.run, ours = Channel.pair()
        self.poll = select.poll()
        self.audience = Audience(ours, self.poll)
        self.audience.greeting = lambda: {"run_id": "0123abcd"}

    def hear(self) -> list[str]:
        """The events of everybody that can be heard now."""
        heard = [self.audience.hear(descriptor) for descriptor, _ in self.poll.poll(0)]
        return [message["event"] for message in heard if message]


def test_a_run_that_goes_leaves_an_orphan() -> None:
    talk = Talk()
    talk.run.send("hold")
    assert talk.hear() == ["hold"]
    talk.run.close()
    assert talk.hear() == ["orphaned"]
    assert talk.hear() == []


def test_a_run_that_has_left_the_hold_to_us_leaves_none() -> None:
    talk = Talk()
    talk.audience.detach([])
    assert talk.run.receive() == {"event": "detached"}
    talk.run.close()
    assert talk.hear() == []
    talk.audience.say("released")  # to nobody


@pytest.mark.parametrize("length", [0, 65_000, 66_000, 5_000_000])
def test_a_message_may_be_long(length: int) -> None:
    """As long as thousands of listeners make it; and what follows it is no part of it."""
    one, other = Channel.pair()
    try:
        assert one.send("detach", old=["x" * length])
        assert one.send("release")
        assert other.receive() == {"event": "detach", "old": ["x" * length]}
        assert other.receive() == {"event": "release"}
        one.close()
        assert other.receive() is None
    finally:
        other.close()


def test_a_long_message_leaves_no_descriptor_and_is_none_to_who_has_gone() -> None:
    before = os.listdir("/proc/self/fd")
    one, other = Channel.pair()
    assert one.send("detach", old=["x" * 100_000])
    other.close()
    assert not one.send("detach", old=["x" * 100_000])
    one.close()
    assert os.listdir("/proc/self/fd") == before


def test_guests_are_greeted_heard_and_told(root: Path) -> None:
    locks = RunLocks([Endpoint(port=80)], "web")
    locks.take(timeout_s=0)
    talk = Talk()
    talk.audience.open_door("web")
    talk.audience.admit()
    one, _ = call("web")
    other, _ = call("web")
    while not talk.poll.poll(0):
        pass
    talk.hear()
    talk.hear()
    for guest in (one, other):
        assert guest.receive() == {"event": "holding", "old": [], "run_id": "0123abcd"}
    one.send("release")
    assert talk.hear() == ["release"]
    one.close()
    assert talk.hear() == [], "a guest that goes leaves no orphan"
    talk.audience.close_door()
    talk.audience.say("released")
    assert other.receive() == {"event": "released"}
    with pytest.raises(NoSuchHoldError):
        call("web")
    other.close()
    talk.run.close()
    talk.hear()
    locks.drop()
