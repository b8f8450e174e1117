"""What this kernel and this user can do: each thing tried, each failure with its remedy."""

from __future__ import annotations

from collections.abc import Callable

from synplug.errors import SynplugError
from synplug.holding.backends import plug_objections
from synplug.holding.runtime import ROOT, check_root
from synplug.holding.selftest import try_hold
from synplug.kernel import procfs
from synplug.kernel.nfqueue import queue_states
from synplug.kernel.nft import tables
from synplug.kernel.sock_diag import SocketDiagnostics
from synplug.kernel.xtables import describe
from synplug.model import BackendName, Hook
from synplug.record import Record, replace

_SYSCTLS = ("net.core.somaxconn", "net.ipv4.tcp_max_syn_backlog", "net.ipv4.tcp_syncookies")
_MIGRATE = "net.ipv4.tcp_migrate_req"


#: In the order in which ``auto`` tries them; and what each needs that every run may look at.
_NEEDS = {
    BackendName.NFQUEUE: {"nf_tables", "nfnetlink_queue"},
    BackendName.NFQUEUE_IPTABLES: {"nfnetlink_queue", "python-iptables"},
    BackendName.PLUG: set[str](),
}
_ALWAYS_NEEDED = {"CAP_NET_ADMIN", "sock_diag", "runtime folder"}


class Finding(Record):
    """One thing that was looked at.

    :param needed: whether a hold with the default, ``--backend auto``, needs it.
    """

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    needed: bool = False


class Health(Record):
    """All that was looked at.

    :param backend: the one that ``auto`` would take: the first that works; None if none does.
    """

    findings: tuple[Finding, ...]
    backend: BackendName | None

    @property
    def is_fit(self) -> bool:
        """Whether a hold works without any option."""
        return all(finding.ok for finding in self.findings if finding.needed)


def examine() -> Health:
    """Look at everything."""
    tests = {backend: _self_test(backend) for backend in _NEEDS}
    tests[BackendName.PLUG] = _beside_others(tests[BackendName.PLUG])
    taken = next((backend for backend, test in tests.items() if test.ok), None)
    findings = (
        _try("CAP_NET_ADMIN", procfs.require_net_admin, "in the effective set"),
        _try("sock_diag", _listeners, "listeners can be read"),
        _try("nf_tables", tables, "tables can be listed"),
        _try("nfnetlink_queue", queue_states, "queues can be read"),
        _try("runtime folder", check_root, f"{ROOT} can be used"),
        tests[BackendName.NFQUEUE],
        _try("python-iptables", describe, "can be imported"),
        tests[BackendName.NFQUEUE_IPTABLES],
        tests[BackendName.PLUG],
        _self_test(BackendName.NFQUEUE, Hook.PREROUTING),
        *(_sysctl(name) for name in _SYSCTLS),
        _migration(),
    )
    # Where no backend works, what the first would need is what is to be mended.
    judged = taken or BackendName.NFQUEUE
    needed = _ALWAYS_NEEDED | _NEEDS[judged] | {tests[judged].name}
    return Health(
        findings=tuple(replace(found, needed=found.name in needed) for found in findings),
        backend=taken,
    )


def _try(name: str, look: Callable[[], object], good: str) -> Finding:
    try:
        found = look()
    except SynplugError as error:
        return Finding(name=name, ok=False, detail=error.message, remedy=error.remedy)
    detail = found if isinstance(found, str) else good
    return Finding(name=name, ok=True, detail=detail)


def _listeners() -> None:
    diagnostics = SocketDiagnostics()
    diagnostics.listeners()
    diagnostics.close()


def _self_test(backend: BackendName, hook: Hook = Hook.INPUT) -> Finding:
    failure = try_hold(backend, hook)
    where = "" if hook is Hook.INPUT else hook.value
    return Finding(
        name=f"self-test {where or backend.value}",
        ok=not failure,
        detail=failure or "a SYN waited, was released and connected, IPv4 and IPv6",
        remedy="see the lines above, and docs/kernels.md" if failure else "",
    )


def _beside_others(plug: Finding) -> Finding:
    """The plug's self-test, if ``auto`` would take one in this network namespace."""
    if not plug.ok:
        return plug
    try:
        said = plug_objections()
    except SynplugError as error:
        return replace(plug, ok=False, detail=error.message, remedy=error.remedy)
    if not said:
        return plug
    detail = f"it works, but 'auto' passes it over here: {said[0]}"
    return replace(plug, ok=False, detail=detail, remedy="--backend plug, if that may be")


def _sysctl(name: str) -> Finding:
    """A value that bounds how fast held connections can be released; never a failure."""
    detail = procfs.sysctl(name) or "not readable"
    return Finding(name=name, ok=True, detail=detail)


def _migration() -> Finding:
    """What ``--migrate`` of a swap sets; one is possible without it, too."""
    value = procfs.sysctl(_MIGRATE)
    return Finding(
        name=_MIGRATE,
        ok=bool(value),
        detail=f"{value}; 'synplug swap --migrate' can set it" if value else "not in this kernel",
        remedy="" if value else "swap without --migrate; the parameter came with Linux 5.14",
    )
