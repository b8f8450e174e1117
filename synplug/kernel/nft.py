"""The hold's nftables objects: an inet table that dies with its socket.

Source: ``include/uapi/linux/netfilter/nf_tables.h``; nft(8). Everything is sent as one
transaction per call. The table carries NFT_TABLE_F_OWNER (Linux 5.12): the kernel removes it
when the socket that made it is closed, SIGKILL included, and refuses others to change it.

::

    table inet synplug-RUN {
        chain queues { one queue statement per queue, by source port }
        chain hold { one rule per endpoint → jump queues }               armed: nobody goes there
        chain input { type filter hook input priority mangle; policy accept;
            meta l4proto tcp, not marked as probe, a bare SYN → jump hold      } this rule holds
    }

In the place of ``input`` there may be ``forward``; or ``prerouting`` for what devices other than
loopback bring, and ``output`` for what local clients send, both before any DNAT (priority -100).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from synplug.errors import KernelError, UnsupportedError
from synplug.kernel.netlink import NETLINK_NETFILTER, NLM_F_CREATE, NLM_F_EXCL, NetlinkSocket
from synplug.kernel.netlink_codec import attributes, be32, nested, text
from synplug.kernel.nft_rules import (
    bare_syn,
    chains_of,
    comment,
    compat_queue,
    expression,
    jump,
    native_queue,
    one_share,
    sent_to,
)
from synplug.model import Endpoint, Hook

_SUBSYSTEM = 10
_NEWTABLE, _GETTABLE, _DELTABLE, _NEWCHAIN, _NEWRULE, _GETRULE, _DELRULE = 0, 1, 2, 3, 6, 7, 8
_INET = bytes((1, 0, 0, 0))  # NFPROTO_INET
_TABLE_F_OWNER = 0x2
_HOOKS = {"prerouting": 0, "input": 1, "forward": 2, "output": 3}
_NF_ACCEPT = 1
PRIORITY_MANGLE = -150
_MODULES, _TARGETS, _TARGET = "/proc/modules", "/proc/thread-self/net/ip_tables_targets", "NFQUEUE"


class HoldTable:
    """One run's table. Closing it, or dying, removes the table from the kernel.

    :param name: of the table; unique to the run.
    :raises UnsupportedError: no nf_tables here. :raises PrivilegeError: no CAP_NET_ADMIN.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._socket = NetlinkSocket(NETLINK_NETFILTER)

    def prepare(
        self,
        endpoints: Sequence[Endpoint],
        queues: Sequence[int],
        *,
        probe_mark: int,
        hook: Hook = Hook.INPUT,
    ) -> None:
        """Create the table with everything in it but the rule that holds.

        Tries the native queue statement first, the compat target where it is missing; in the
        other order where :func:`_ways_to_queue` says so. The base chain comes last, in a
        transaction of its own: one that is aborted after it registered a base chain unregisters it
        again, and that drops what every queue of the network namespace holds
        (``net/netfilter/nf_tables_api.c``, __nf_tables_abort; measured on 6.18).

        :raises UnsupportedError: the kernel lacks owner tables, or both ways to queue.
        """
        self._probe_mark = probe_mark
        self._hook = hook
        self._chains = chains_of(hook)
        for queue in _ways_to_queue():
            try:
                self._create_rules(endpoints, queues, queue)
            except KernelError as error:
                if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise UnsupportedError(
                        "this kernel's nftables has no inet tables that die with their owner",
                        remedy="Linux 5.12 has; or use --backend nfqueue-iptables",
                    ) from error
                if error.errno != errno.ENOENT:
                    raise
                continue
            self._create_base_chains()
            return
        if hook is Hook.PREROUTING:
            raise UnsupportedError(
                "this kernel's nftables has no queue statement, or no fib expression",
                remedy="load nft_queue and nft_fib_inet, or name each address: -p ADDRESS:PORT",
            )
        raise UnsupportedError(
            "this kernel's nftables has neither the queue statement nor the NFQUEUE target",
            remedy="load nft_queue or xt_NFQUEUE, or use --backend nfqueue-iptables",
        )

    def _create_rules(
        self, endpoints: Sequence[Endpoint], queues: Sequence[int], queue: Callable[[int], bytes]
    ) -> None:
        """Table, endpoints and queue statements: no packet comes here yet.

        Two chains, since a rule per endpoint *and* queue would be thousands of them, through
        which each SYN would have to go.
        """
        name = text(1, self.name)
        requests = [
            (_NEWTABLE, NLM_F_CREATE | NLM_F_EXCL, name + be32(2, _TABLE_F_OWNER)),
            (_NEWCHAIN, NLM_F_CREATE, name + text(3, "queues")),
            (_NEWCHAIN, NLM_F_CREATE, name + text(3, "hold")),
        ]
        for index, number in enumerate(queues):
            share = one_share(index, len(queues))
            requests.append(self._rule("queues", share + expression("counter") + queue(number)))
        requests += [
            self._rule("hold", sent_to(endpoint, self._hook) + jump("queues"))
            for endpoint in endpoints
        ]
        self._transact("create the nftables table", requests)

    def _create_base_chains(self) -> None:
        """The chains that every packet of their hooks passes; without a rule so far."""
        for chain in self._chains:
            hook = nested(4, be32(1, _HOOKS[chain]), be32(2, PRIORITY_MANGLE))
            body = text(1, self.name) + text(3, chain) + hook
            body += be32(5, _NF_ACCEPT) + text(7, "filter")
            self._transact("create the nftables chain", [(_NEWCHAIN, NLM_F_CREATE, body)])

    def hold(self, words: str) -> None:
        """The one change that makes SYNs wait. *words* is the rule's comment."""
        match = bare_syn(self._probe_mark)
        rules = [
            self._rule(chain, match + more + jump("hold"), words)
            for chain, more in self._chains.items()
        ]
        self._transact("add the holding rule", rules)

    def open(self) -> None:
        """Take the holding rule out; the chain stays, so nothing that is held is dropped."""
        name = text(1, self.name)
        rules = [(_DELRULE, 0, name + text(2, chain)) for chain in self._chains]
        self._transact("delete the holding rule", rules)

    def matched(self) -> int:
        """How many packets the queue statements have met so far.

        An interrupted dump will do. Any change of anybody's tables marks it, but these rules are
        the owner's alone, and nothing is left out of a chain that did not change; an error in
        the middle of a hold, over a number, would drop all that waits.
        """
        body = _INET + text(1, self.name) + text(2, "queues")
        rules = self._socket.dump(
            "read the rules' counters", _SUBSYSTEM << 8 | _GETRULE, body, complete=False
        )
        return sum(_packets_counted(rule) for rule in rules)

    def remove(self, just_before: Callable[[], None] = lambda: None) -> None:
        """Remove the table. Unregistering its chain flushes every queue of the namespace.

        :param just_before: is called as late as can be.
        """
        request = (_DELTABLE, 0, text(1, self.name))
        self._transact("delete the nftables table", [request], just_before=just_before)

    def close(self) -> None:
        """Close the socket; the kernel removes what is left."""
        self._socket.close()

    def _rule(self, chain: str, expressions: bytes, words: str = "") -> tuple[int, int, bytes]:
        body = text(1, self.name) + text(2, chain) + nested(4, expressions)
        return _NEWRULE, NLM_F_CREATE, body + (comment(words) if words else b"")

    def _transact(
        self,
        action: str,
        requests: Iterable[tuple[int, int, bytes]],
        *,
        just_before: Callable[[], None] = lambda: None,
    ) -> None:
        self._socket.batch(
            action,
            _SUBSYSTEM,
            [(_SUBSYSTEM << 8 | kind, flags, _INET + body) for kind, flags, body in requests],
            just_before=just_before,
        )


def _ways_to_queue() -> tuple[Callable[[int], bytes], Callable[[int], bytes]]:
    """The native queue statement and the compat target, in the order in which to try them.

    A refused transaction waits for a grace period of RCU, 10 ms here
    (``net/netfilter/nf_tables_api.c``, __nf_tables_abort). A kernel without modules does not tell
    whether it has the statement, but tells that it has the target, and hardly lacks nft's compat
    layer then: the other way is seldom needed.
    """
    with suppress(OSError):
        if not os.path.exists(_MODULES):
            with open(_TARGETS) as file:
                if _TARGET in file.read().split():
                    return compat_queue, native_queue
    return native_queue, compat_queue


def _packets_counted(rule: memoryview) -> int:
    """The packet count of a rule's counter expression; 0 without one."""
    for kind, expressions in attributes(rule[4:]):
        if kind != 4:
            continue
        for _, element in attributes(expressions):
            parts = dict(attributes(element))
            if bytes(parts.get(1, b"")) == b"counter\0":
                return int.from_bytes(dict(attributes(parts[2])).get(2, b""), "big")
    return 0


def tables() -> list[str]:
    """The names of the inet tables of this network namespace.

    :raises PrivilegeError: no CAP_NET_ADMIN.
    """
    sock = NetlinkSocket(NETLINK_NETFILTER)
    try:
        kind = _SUBSYSTEM << 8 | _GETTABLE
        found = []
        for body in sock.dump("list the nftables tables", kind, _INET):
            for kind, payload in attributes(body[4:]):
                if kind == 1:
                    found.append(bytes(payload).rstrip(b"\0").decode(errors="replace"))
        return found
    finally:
        sock.close()
