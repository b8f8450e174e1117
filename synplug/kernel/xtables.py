"""The mangle tables of legacy iptables, through python-iptables (``iptc``) and libiptc.

Source: libiptc of iptables 1.8, ``include/uapi/linux/netfilter/x_tables.h``.

A legacy table is changed as a whole: libiptc reads it, edits its copy and puts all of it back,
foreign rules as the very bytes that the kernel gave, counters added on. Two that do this at
once undo each other, so all is done under the lock of iptables(8), on a copy read under it.

Of python-iptables only ``Table`` is used, and a new one each time. Its cache ignores that
setns(2) changed the network namespace; its default commits by itself and swallows failures;
and its ``Rule``, ``Match`` and ``Target`` parse foreign rules and fail on extensions that they
do not know, point file descriptor 1 elsewhere, and open every table to find out whether a name
is a chain, which registers the hooks of all five, nat with its connection tracking included.
Rules are therefore built as the kernel's structures (:mod:`synplug.kernel.xt_rules`).

What iptables(8) does to the rules of others happens here, too: their counters stay, but what
``limit``, ``quota`` and their like remember in the kernel starts anew with each change.
"""

from __future__ import annotations

import errno
import os
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from synplug.errors import (
    KernelError,
    PrivilegeError,
    SynplugError,
    UnsupportedError,
    UsageError,
)
from synplug.kernel.namespaces import network_inode
from synplug.kernel.xt_lock import lock
from synplug.model import Family

TABLE = "mangle"
_BUILT_IN = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
LOCK_FILE = "/run/xtables.lock"
#: ``XT_EXTENSION_MAXNAMELEN`` less the end of the string.
CHAIN_NAME_MAX = 28
_TRIES = 5
_NAMES = {Family.IPV4: "ip_tables_names", Family.IPV6: "ip6_tables_names"}
_NEEDS = "run it as root, or with CAP_NET_ADMIN and CAP_NET_RAW"
_Seen = TypeVar("_Seen")

# --- python-iptables


def load_library() -> Any:
    """Import python-iptables. It takes a third of a second, and runs ldconfig, and gcc or ld.

    :raises UnsupportedError: it is not installed, or misses iptables' libraries.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it uses what newer Pythons deprecate
            import iptc
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            "python-iptables is not installed",
            remedy="install it beside synplug (pipx inject synplug python-iptables, or pip)",
        ) from error
    except Exception as error:  # whatever its search for libraries runs into
        raise UnsupportedError(
            f"python-iptables does not work here: {error!r}",
            remedy="install iptables with its libraries and extensions (Debian: apt-get install "
            "iptables), and python-iptables anew",
        ) from error
    return iptc


def describe() -> str:
    """Which python-iptables there is.

    :raises UnsupportedError: none that works.
    """
    iptc = load_library()
    return f"{iptc.version.__version__}, libxtables {iptc.xtables.xtables_version}"


def _fresh_table(family: Family) -> Any:
    """An ``iptc.Table`` outside of python-iptables' cache, not open yet.

    Its *code* is the errno of what failed last: the message alone does not tell.
    """
    iptc = load_library()
    import ctypes

    base: Any = iptc.Table if family is Family.IPV4 else iptc.Table6
    errno_location = ctypes.CDLL(None)["__errno_location"]
    errno_location.restype = ctypes.POINTER(ctypes.c_int)

    class FreshTable(base):  # type: ignore[misc]  # python-iptables has no types
        def __new__(cls) -> Any:
            return object.__new__(cls)

        def __init__(self) -> None:
            self._handle = None
            self.code = 0

        def open(self) -> None:
            self._init(TABLE, autocommit=False)

        def strerror(self) -> Any:
            self.code = int(errno_location()[0])
            return super().strerror()

        def delete_number(self, chain: str, number: int) -> None:
            if not self._iptc.iptc_delete_num_entry(chain.encode(), number, self._handle):
                raise iptc.IPTCError(f"can't delete rule {number} of {chain}: {self.strerror()}")

    return FreshTable()


class MangleTable:
    """A copy of one IP version's mangle table, as it is now; :meth:`commit` puts it back.

    :raises UnsupportedError: the kernel has none. :raises PrivilegeError: EPERM.
    """

    def __init__(self, family: Family) -> None:
        self._family = family
        self._table = _fresh_table(family)
        self._error: type[Exception] = load_library().IPTCError
        with self._translated("open"):
            self._table.open()

    def has_chain(self, chain: str) -> bool:
        """Whether there is one of this name."""
        return bool(self._table.is_chain(chain))

    def create_chain(self, chain: str, rules: Iterable[bytes]) -> None:
        """A chain of our own; nothing jumps there."""
        if len(chain) > CHAIN_NAME_MAX:
            raise UsageError(f"{chain} is too long for the name of an iptables chain")
        with self._translated(f"create chain {chain} in"):
            self._table.create_chain(chain)
            for rule in rules:
                self._table.append_entry(chain, _buffer(rule))

    def insert_first(self, chain: str, rule: bytes) -> None:
        """Put a rule before all others of a chain."""
        with self._translated(f"insert a rule into chain {chain} of"):
            self._table.insert_entry(chain, _buffer(rule), 0)

    def delete_jumps(self, base: str, chain: str) -> None:
        """Delete every rule of *base* that jumps to *chain*, and no other."""
        with self._translated(f"delete the jump to {chain} from"):
            targets = self._targets(base)
            for number in reversed(range(len(targets))):
                if targets[number] == chain.encode():
                    self._table.delete_number(base, number)

    def delete_chain(self, chain: str) -> None:
        """Delete a chain with its rules."""
        with self._translated(f"delete chain {chain} from"):
            self._table.flush_entries(chain)
            self._table.delete_chain(chain)

    def is_whole(self, base: str, chain: str, rules: int) -> bool:
        """Whether *base* jumps to *chain*, and that has so many rules."""
        return (
            self.has_chain(chain)
            and chain.encode() in self._targets(base)
            and sum(1 for _ in self._rules(chain)) == rules
        )

    def packets(self, chain: str) -> int:
        """How many packets the chain's rules have met."""
        return sum(int(rule.counters.pcnt) for rule in self._rules(chain))

    def commit(self) -> None:
        """Put all of it into the kernel, in one step.

        :raises KernelError: it was refused; EAGAIN: somebody who ignores the lock has changed
            the table meanwhile. :raises UnsupportedError: an extension is missing.
        """
        with self._translated("commit"):
            for chain in _BUILT_IN:
                # libiptc would put the policy's counters to zero, as iptables(8) itself does.
                self._table.set_policy(chain, *self._table.get_policy(chain))
            self._table.commit()

    def close(self) -> None:
        """Forget the copy."""
        self._table.close()

    def _rules(self, chain: str) -> Iterator[Any]:
        """The rules' heads, unparsed: foreign extensions need not be known here."""
        rule = self._table.first_rule(chain)
        while rule:
            yield rule
            rule = self._table.next_rule(rule)

    def _targets(self, chain: str) -> list[bytes]:
        return [self._table.get_target(rule) for rule in self._rules(chain)]

    @contextmanager
    def _translated(self, action: str) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            raise _meaning(action, self._family, self._table.code) from error


def _buffer(rule: bytes) -> Any:
    import ctypes

    return ctypes.create_string_buffer(rule, len(rule))


def _meaning(action: str, family: Family, code: int) -> SynplugError:
    """The error that stands for an errno of libiptc."""
    words = f"{action} the {TABLE} table of legacy iptables, IPv{family.value}"
    if code in (errno.EPERM, errno.EACCES):
        return PrivilegeError(f"{words}: not permitted", capability="CAP_NET_ADMIN", remedy=_NEEDS)
    if action == "open" and code in (errno.ENOENT, errno.ENOPROTOOPT):
        return UnsupportedError(
            f"this kernel has no {TABLE} table of legacy iptables, IPv{family.value}",
            remedy="load iptable_mangle and ip6table_mangle, or use --backend nfqueue",
        )
    if action == "commit" and code == errno.ENOENT:
        return UnsupportedError(
            f"{words}: this kernel lacks one of the extensions tcp, mark, comment, addrtype (where "
            "it is asked for) and NFQUEUE",
            remedy="load xt_tcpudp, xt_mark, xt_comment, xt_addrtype and xt_NFQUEUE, or use "
            "--backend nfqueue",
        )
    return KernelError(words, code)


# --- transactions


class MangleTables:
    """The mangle tables of one network namespace, that of the first use, under the lock."""

    def __init__(self) -> None:
        self._network = 0

    @contextmanager
    def locked(self, *, patience_s: float) -> Iterator[None]:
        """Have iptables(8)'s lock. Other threads are kept out by it, too.

        :param patience_s: how long to wait for another, in seconds.
        :raises LockError: it took longer. :raises SynplugError: another network namespace.
        """
        network = network_inode()
        if self._network not in (0, network):
            raise SynplugError(
                "this process has left the network namespace whose iptables it changed"
            )
        self._network = network
        descriptor = lock(os.environ.get("XTABLES_LOCKFILE") or LOCK_FILE, patience_s)
        try:
            yield
        finally:
            os.close(descriptor)

    def read(self, family: Family, look: Callable[[MangleTable], _Seen]) -> _Seen:
        """What *look* finds in the table."""
        table = MangleTable(family)
        try:
            return look(table)
        finally:
            table.close()

    def change(self, family: Family, edit: Callable[[MangleTable], None]) -> None:
        """Commit what *edit* does to the table.

        Done anew, a few times, when somebody who ignores the lock was faster.

        :raises SynplugError: see :class:`MangleTable`; nothing was changed.
        """

        def edit_and_commit(table: MangleTable) -> None:
            edit(table)
            table.commit()

        for left in reversed(range(_TRIES)):
            try:
                self.read(family, edit_and_commit)
            except KernelError as error:
                if error.errno != errno.EAGAIN or not left:
                    raise
            else:
                return


# --- what there is


def has_ipv6() -> bool:
    """Whether this kernel speaks IPv6 at all; if not, no SYN can come that way."""
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_CLOEXEC).close()
    except OSError:
        return False
    return True


def is_in_use(family: Family, table: str = TABLE) -> bool:
    """Whether that table exists in this network namespace. Looking does not create it."""
    try:
        with open(f"/proc/thread-self/net/{_NAMES[family]}") as file:
            return table in file.read().split()
    except FileNotFoundError:
        return False
    except PermissionError as error:
        raise PrivilegeError(
            f"cannot read the names of the IPv{family.value} tables", capability="CAP_NET_ADMIN"
        ) from error
    except OSError as error:
        raise KernelError(
            f"read the names of the IPv{family.value} tables", error.errno or 0
        ) from error
