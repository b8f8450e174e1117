"""What a forked child does to be a keeper's process: it keeps nothing that it does not need."""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress

from synplug.holding.base import ANY_BACKEND
from synplug.kernel import procfs
from synplug.kernel.capabilities import DAC_OVERRIDE, DAC_READ_SEARCH, SYS_MODULE, keep_only
from synplug.model import ReleaseReason

_NICE = -10
#: Files of root's, if it is not root: /run/synplug, and the kernel's list of netfilter queues.
_ANOTHER_USERS = frozenset({DAC_OVERRIDE, DAC_READ_SEARCH})
_DYING_MS = 100


def become_keeper(keep: tuple[int, ...]) -> None:
    """Turn the forked child into a keeper: a session, a name, descriptors, few capabilities.

    :param keep: the descriptors that stay open. Standard streams become /dev/null, so that
        nobody who reads our caller's pipes waits for a lingering keeper.
    """
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    procfs.close_descriptors_but(keep)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # All that waits, waits for it, and it does little: it goes before a busy service, if it may.
    with suppress(OSError):
        os.nice(_NICE)
    # Until it is armed it may have to import what is in a home that only its owner may read, and
    # python-iptables runs modprobe(8) where nobody has used legacy iptables yet.
    keep_only(ANY_BACKEND | _ANOTHER_USERS | {SYS_MODULE})
    procfs.set_name("synplug-keeper")


def told_of_sigterm() -> int:
    """A descriptor that is readable when SIGTERM has come."""
    readable, written = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(written)
    signal.signal(signal.SIGTERM, lambda *_: None)  # the descriptor tells
    return readable


def limit(capabilities: frozenset[int]) -> None:
    """Give up what is not needed. Root's files are its own; others may have to override rights."""
    keep_only(capabilities if os.geteuid() == 0 else capabilities | _ANOTHER_USERS)


def has_ended(pidfd: int, reason: ReleaseReason | None = None) -> bool:
    """Whether that process has ended.

    :param reason: why the hold ends. Where a signal is, the process may have had the same one, and
        be dying of it: a moment is waited then.
    """
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(_DYING_MS if reason is ReleaseReason.SIGNAL else 0))
