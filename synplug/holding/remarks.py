"""What an operator should know of a hold that went on all the same."""

from __future__ import annotations

from collections.abc import Collection

from synplug.holding.base import Backend
from synplug.model import Endpoint, Listener


def loss_remark(lost: int) -> tuple[str, ...]:
    """On SYNs that the kernel dropped from the hold."""
    if not lost:
        return ()
    return (
        f"{lost} held SYNs were dropped by somebody else, who removed a netfilter hook, or removed "
        "a device or set it down; their clients retransmit",
    )


def gone_words(device: str) -> str:
    """On the device of a plug that is not there any more."""
    return f"somebody has removed {device}, or its plug: new connections do not wait there"


def stranded_remark(lost: int) -> tuple[str, ...]:
    """On SYNs that could not go back to where they were taken from."""
    if not lost:
        return ()
    return (f"{lost} held SYNs were lost: the device that had brought them was gone",)


def behind_remark(why: str) -> tuple[str, ...]:
    """On changes of devices and addresses that could not be followed."""
    if not why:
        return ()
    return (f"what devices bring that came during the hold is not held: {why}",)


def full_remark(limit_bytes: int, peak: int, peak_bytes: int) -> tuple[str, ...]:
    """On a limit of bytes that was reached."""
    return (
        f"the plug was full: it takes {limit_bytes} bytes by --max-held, and {peak} SYNs of "
        f"{peak_bytes} bytes waited",
    )


def burst_remark(released: int, listeners: Collection[Listener]) -> tuple[str, ...]:
    """On what has gone at once from a backend that cannot do otherwise, if that was too much."""
    backlog = min((listener.backlog for listener in listeners), default=released)
    if released <= backlog:
        return ()
    return (
        f"{released} SYNs were let go at once, and a listener has a backlog of {backlog}: "
        "some may wait a second more (raise its backlog, and net.core.somaxconn)",
    )


def hurried_remark(left: int, why: str) -> tuple[str, ...]:
    """On those who had to go before the listeners had room for them; *why* as for who asks."""
    if not (left and why):
        return ()
    return (
        f"{left} SYNs that still waited for room at the listeners were let go at once, since "
        f"{why}: some may wait a second more (raise --max-hold, or what bounds the pace)",
    )


def cookies_remark(syncookies: str) -> tuple[str, ...]:
    """On a release in steps where handshakes under way cannot be counted.

    :param syncookies: net.ipv4.tcp_syncookies. At 2 the kernel answers each SYN with a cookie and
        keeps no request socket (``net/ipv4/tcp_input.c``, tcp_conn_request).
    """
    if syncookies != "2":
        return ()
    return (
        "net.ipv4.tcp_syncookies is 2, so the kernel keeps no account of handshakes: from clients "
        "farther than a LAN more may have been let go than the listeners had room for, and some "
        "may wait a second more (set it to 1)",
    )


def restored_remark(places: int) -> tuple[str, ...]:
    """On a rule that somebody took out while it held; *places* as by ``Gate.restore``."""
    if not places:
        return ()
    return (
        f"somebody removed the rule that holds ({places} times, or in as many tables); it was put "
        "back, but new connections may have been refused in between",
    )


def cut_remark(times: int) -> tuple[str, ...]:
    """On filters that somebody took from a device while they diverted SYNs."""
    if not times:
        return ()
    return (
        f"somebody removed filters of the hold, or the qdisc under them ({times} times); they were "
        "put back unless that qdisc was not ours; new connections may have been refused",
    )


def dropped_remark(device: str) -> tuple[str, ...]:
    """On a device that a clsact was put on while it had something to send."""
    return (
        f"what {device} had to send may have been dropped when a clsact was put there: it did not "
        "run empty; nothing is with a standing one ('tc qdisc add dev DEVICE clsact'), or with "
        "other devices (--dev)",
    )


def before_remark(device: str, preferences: Collection[int]) -> tuple[str, ...]:
    """On filters of somebody else that have their way first."""
    if not preferences:
        return ()
    return (
        f"on {device} filters of somebody else come before those of the hold (preference "
        f"{_listed(preferences)}): SYNs that they accept, redirect or drop are not held",
    )


def passed_by_remark(device: str, preferences: Collection[int]) -> tuple[str, ...]:
    """On filters of somebody else that do not see a held SYN."""
    if not preferences:
        return ()
    return (
        f"on {device} filters of somebody else come behind those of the hold (preference "
        f"{_listed(preferences)}): held SYNs pass them by, and are neither dropped nor marked "
        "there",
    )


def ingress_hook_remark(device: str, chains: Collection[str]) -> tuple[str, ...]:
    """On chains of nftables that see what a device brings, by their names."""
    if not chains:
        return ()
    return (
        f"held SYNs pass by the ingress hook of {device}: the nftables chains there "
        f"({', '.join(chains)}) neither drop nor mark them",
    )


def tcx_remark(device: str, programs: int) -> tuple[str, ...]:
    """On programs of tcx."""
    if not programs:
        return ()
    return (
        f"programs of tcx on {device} ({programs}) come before the filters of the hold: SYNs that "
        "they let pass, redirect or drop are not held",
    )


def translated_remark(chains: Collection[str], *, spares_own: bool) -> tuple[str, ...]:
    """On NAT that this host's own connections go through before they come to a plug's filters.

    :param chains: those of it, by their names. :param spares_own: no filter sees them.
    """
    if not chains:
        return ()
    names = ", ".join(chains)
    if spares_own:
        return (
            f"connections from this host are not held: {names} may translate them, and one that is "
            "translated to the ports held cannot go through a plug; --dev lo, with the other "
            "devices, if none is",
        )
    return (
        f"connections from this host that {names} translates to the ports held time out as long as "
        "the hold's filters are there, from before it holds",
    )


def arriving_translated_remark(chains: Collection[str]) -> tuple[str, ...]:
    """On NAT that SYNs from elsewhere come to behind a plug's filters.

    :param chains: those of it, by their names.
    """
    if not chains:
        return ()
    return (
        f"what {', '.join(chains)} sends elsewhere, to a container for one, waits with the others "
        "if it comes to an address and port that are held: a plug sees it before; name other "
        "addresses with -p ADDRESS:PORT, or other devices with --dev",
    )


def _listed(numbers: Collection[int]) -> str:
    return ", ".join(map(str, numbers))


def unheld_remark(device: str, why: str) -> tuple[str, ...]:
    """On a device that came during the hold, and cannot have filters."""
    return (f"what {device} brings is not held: {why}",)


def elsewhere_remark(endpoints: Collection[Endpoint]) -> tuple[str, ...]:
    """On endpoints with an address that the machine does not have, or no more."""
    return tuple(
        f"{endpoint} is not held: this machine does not answer for the address, and what it "
        "forwards passes"
        for endpoint in endpoints
    )


def tagged_remark(has_room: bool) -> tuple[str, ...]:
    """On frames with a priority alone (VLAN 0), where no filters are left for them."""
    if has_room:
        return ()
    return (
        "SYNs in priority-tagged frames (VLAN 0) are not held: with these devices, addresses and "
        "ports that takes too many filters; name the devices with --dev",
    )


def foreign_remark(packets: int) -> tuple[str, ...]:
    """On packets that somebody else's rule sent to our queues."""
    if not packets:
        return ()
    return (
        f"{packets} packets that are no SYNs to the endpoints came to our queues by somebody "
        "else's rule; they were let through",
    )


def unwatched_remark(backend: Backend) -> str:
    """On a watcher that dies with its keeper where the whole control group is killed."""
    stays = [f"{kind} {name}" for kind, name in backend.traces().items() if kind != "queues"]
    what = ", ".join(stays)
    holds_on = "" if backend.uses_queues else ", and new connections wait for ever"
    return (
        "the watcher could not leave the keeper's control group (its file system is read-only, or "
        "not there, or that of a container) or PID namespace: if that is killed as a whole, the "
        f"hold's {what} stays{holds_on}, until 'synplug recover' clears it"
    )
