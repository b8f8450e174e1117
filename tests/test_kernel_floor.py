"""The kernel floor against the running kernel, in the private network namespace of the tests."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from synplug.errors import KernelError
from synplug.kernel import nft
from synplug.kernel.netlink import NETLINK_NETFILTER, NetlinkSocket

# --- dumps that are interrupted


class Meddled(NetlinkSocket):
    """A socket behind whose back nftables change, whenever it has begun a dump."""

    dumps = 0
    changes = 0

    def send(self, action: str, data: bytes) -> None:
        super().send(action, data)
        Meddled.dumps += 1
        if Meddled.changes:
            Meddled.changes -= 1
            subprocess.run(["nft", f"add table inet late{Meddled.dumps}"], check=True)


@pytest.fixture
def meddled(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Meddled]]:
    """Tables with foreign names; what meddles with them."""
    Meddled.dumps = 0
    monkeypatch.setattr(nft, "NetlinkSocket", Meddled)
    with ExitStack() as stack:
        stack.callback(subprocess.run, ["nft", "flush ruleset"], check=True)
        subprocess.run(["nft", "add table inet early"], check=True)
        yield Meddled


def test_an_interrupted_dump_shows_what_came_meanwhile(meddled: type[Meddled]) -> None:
    """The kernel marks the end of the first and of the second one; the third one counts."""
    meddled.changes = 2
    assert nft.tables() == ["early", "late1", "late2"]
    assert meddled.dumps == 3


def test_a_dump_at_rest_is_asked_for_once(meddled: type[Meddled]) -> None:
    meddled.changes = 0
    assert nft.tables() == ["early"]
    assert meddled.dumps == 1


def test_the_kernel_answers_what_it_lacks() -> None:
    """An nfnetlink subsystem that does not exist: an error, and no empty list."""
    sock = NetlinkSocket(NETLINK_NETFILTER)
    with pytest.raises(KernelError, match="list nothing: EINVAL"):
        sock.dump("list nothing", 0xEE << 8, b"\1\0\0\0")
    sock.close()
