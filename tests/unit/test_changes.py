"""Notices of rtnetlink: which of them are news to whom sets a qdisc of its own."""

from __future__ import annotations

import errno
import struct

import pytest

from synplug.kernel.changes import Changes
from synplug.kernel.netlink_codec import HEADER

OWN, OTHER = 7, 8
NEWLINK, NEWQDISC, DELQDISC, NEWTFILTER = 16, 36, 37, 44


def notice(kind: int, index: int) -> bytes:
    """Of ``struct tcmsg``, or ``struct ifinfomsg``: both have the index behind four bytes."""
    body = struct.pack("=4xi12x", index)
    return HEADER.pack(HEADER.size + len(body), kind, 0, 0, 0) + body


class Heard:
    """The datagrams of a socket, then what it says."""

    def __init__(self, *heard: bytes | OSError) -> None:
        self._heard = [*heard, BlockingIOError()]

    def recv(self, _bytes: int) -> bytes:
        said = self._heard.pop(0)
        if isinstance(said, OSError):
            raise said
        return said


OWN_SET = notice(NEWQDISC, OWN)


@pytest.mark.parametrize(
    ("heard", "is_news"),
    [
        ((), False),
        ((OWN_SET,), False),
        ((OWN_SET, OWN_SET + OWN_SET), False),
        ((notice(NEWQDISC, OTHER),), True),
        ((notice(NEWTFILTER, OWN),), True),
        ((notice(DELQDISC, OWN),), True),
        ((notice(DELQDISC, OWN) + OWN_SET,), True),
        ((notice(NEWLINK, OWN),), True),
        ((OWN_SET[:-4],), True),
        ((notice(NEWQDISC, OTHER), OWN_SET), True),
        ((OSError(errno.ENOBUFS, "more than the buffer takes"),), True),
        ((OSError(errno.ENOBUFS, "more than the buffer takes"), OWN_SET), True),
    ],
    ids=[
        "nothing",
        "own plug set",
        "own plug set thrice",
        "another device's qdisc",
        "a filter on the own device",
        "own plug gone",
        "own plug replaced",
        "own device",
        "not to be read",
        "another's before the own",
        "unknown",
        "unknown before the own",
    ],
)
def test_the_own_plug_is_no_news(
    heard: tuple[bytes | OSError, ...], is_news: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = Changes()
    changes.close()
    monkeypatch.setattr(changes, "_socket", Heard(*heard))
    assert changes.take(OWN) == is_news


def test_to_who_has_no_plug_a_qdisc_is_news(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = Changes()
    changes.close()
    monkeypatch.setattr(changes, "_socket", Heard(OWN_SET))
    assert changes.take()
