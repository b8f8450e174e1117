"""Which backend holds on which kernel; and each that does: held, released, clean after SIGKILL.

What is recorded here becomes the tables of docs/kernels.md (``make kernels``).
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from guest.bridge import MACHINE
from guest.stock import STOCK
from netlab.load import Load
from netlab.topology import ClientServer
from synplug.kernel.netlink import NETLINK_NETFILTER, NLM_F_CREATE, NetlinkSocket
from synplug.kernel.netlink_codec import be32, nested, text
from synplug.kernel.nft_rules import expression, native_queue
from tests.guest.features import ABSENT, BACKENDS, NEEDS, features
from tests.integration import shell
from tests.integration.conftest import SimpleService
from tests.integration.connect import connects_within, holds_in_force

#: What is too much for an emulated processor waits for it, and no longer for a release: one served
#: 35 a second.
RATE_PER_S, EMULATED_RATE_PER_S = 50, 10
#: A plug is opened by its watcher, which reads all qdiscs and filters first: seconds, in a guest.
PASSES_AFTER_SIGKILL_S = {"nfqueue": 5.0, "nfqueue-iptables": 5.0, "plug": 30.0}

# include/uapi/linux/netfilter/nf_tables.h, nfnetlink.h; NFPROTO_BRIDGE
_NFTABLES, _BRIDGE = 10, bytes((7, 0, 0, 0))
_NEWTABLE, _DELTABLE, _NEWCHAIN, _NEWRULE = 0, 2, 3, 6
_OWNER = 0x2


@pytest.fixture(scope="session")
def found(kernel: str) -> dict[str, bool]:
    """The features of this kernel."""
    return features()


Record = Callable[..., None]


@pytest.fixture
def record(kernel: str, record_property: Callable[[str, object], None]) -> Record:
    """Keep something for the tables of docs/kernels.md: ``record(name=value)``."""
    record_property("kernel", kernel)

    def keep(**properties: object) -> None:
        for name, value in properties.items():
            record_property(name, value)

    return keep


@pytest.fixture(scope="session")
def health(kernel: str) -> dict[str, Any]:
    """What ``synplug doctor`` says, and its status."""
    with ClientServer() as lab:
        said = shell.run(lab.server, "doctor", "--json")
    found: dict[str, Any] = json.loads(said.stdout)
    return found | {"status": said.status}


@pytest.fixture(scope="session")
def findings(health: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Its findings, by name."""
    return {finding["name"]: finding for finding in health["findings"]}


def test_the_kernel_has_what_is_documented(
    kernel: str, found: dict[str, bool], record: Record
) -> None:
    record(release=os.uname().release, features=found)
    if kernel != MACHINE:
        assert {name for name, there in found.items() if not there} == ABSENT[kernel]


@pytest.mark.parametrize("backend", BACKENDS)
def test_doctor_says_what_is_so(
    kernel: str, backend: str, found: dict[str, bool], findings: dict[str, dict[str, Any]]
) -> None:
    finding = findings[f"self-test {backend}"]
    works = all(found[name] for name in NEEDS[backend])
    assert finding["ok"] == works, finding
    assert works or finding["remedy"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_restart_under_load_loses_nothing_or_is_refused(
    request: pytest.FixtureRequest,
    kernel: str,
    backend: str,
    found: dict[str, bool],
    record: Record,
) -> None:
    record(backend=backend)
    if not all(found[name] for name in NEEDS[backend]):
        _refuses_before_the_command(backend)
        record(held="cannot")
        return
    lab: ClientServer = request.getfixturevalue("lab")
    simple: SimpleService = request.getfixturevalue("simple")
    options = ["--backend", backend, "--max-hold", "60s", "-p", "8080"]
    rate_per_s = EMULATED_RATE_PER_S if kernel in STOCK else RATE_PER_S
    with Load(lab.client, simple.targets(lab), rate_per_s=rate_per_s, timeout_s=60) as load:
        wrapped = shell.wrap(lab.server, options, simple.restart_argv("--delay", "0.5"))
        result = load.stop()
    assert wrapped.status == 0, wrapped
    hold = wrapped.report["hold"]
    assert hold["held"] > 0
    record(held=hold["held"])
    assert hold["released"] == hold["held"]
    assert result.failures == 0, f"{result.summary()}: {result.failed}, {wrapped.report}"
    record(released=hold["released"])


def test_auto_takes_the_first_that_works_and_says_what_it_passed_over(
    request: pytest.FixtureRequest, found: dict[str, bool], health: dict[str, Any]
) -> None:
    """And doctor has said so."""
    works = [name for name in BACKENDS if all(found[need] for need in NEEDS[name])]
    assert works, "no backend holds here"
    lab: ClientServer = request.getfixturevalue("lab")
    simple: SimpleService = request.getfixturevalue("simple")
    options = ["--max-hold", "60s", "-p", "8080"]
    wrapped = shell.wrap(lab.server, options, simple.restart_argv())
    assert wrapped.status == 0, wrapped
    assert wrapped.report["hold"]["backend"] == works[0]
    assert (health["status"], health["fit"], health["backend"]) == (0, True, works[0])
    passed_over = BACKENDS[: BACKENDS.index(works[0])]
    said = [text for text in wrapped.report["warnings"] if "is not available" in text]
    assert [text.split()[1] for text in said] == passed_over


@pytest.mark.guests_only
def test_the_first_hold_loads_the_modules_of_legacy_iptables(
    request: pytest.FixtureRequest, found: dict[str, bool]
) -> None:
    if not all(found[name] for name in NEEDS["nfqueue-iptables"]):
        return  # a test before has seen what is said then
    lab: ClientServer = request.getfixturevalue("lab")
    simple: SimpleService = request.getfixturevalue("simple")
    modules = ["iptable_mangle", "ip6table_mangle", "ip_tables", "ip6_tables"]
    lab.server.run(["modprobe", "--dirname", os.environ["GUEST_MODULES"], "--remove", *modules])
    options = ["--backend", "nfqueue-iptables", "--max-hold", "60s", "-p", "8080"]
    wrapped = shell.wrap(lab.server, options, simple.restart_argv())
    assert wrapped.status == 0, wrapped


@pytest.mark.guests_only
def test_our_own_queue_statement_is_one_to_the_kernel(found: dict[str, bool]) -> None:
    """In a bridge table, which every guest has; packets pass it in test_native_queue.py."""
    name, flags = "synplug-test", _OWNER if found["nf_tables, tables with an owner"] else 0
    table = text(1, name)
    rule = table + text(2, "queues") + nested(4, expression("counter") + native_queue(513))
    requests = [
        (_NEWTABLE, table + be32(2, flags)),
        (_NEWCHAIN, table + text(3, "queues")),
        (_NEWRULE, rule),
    ]
    sock = NetlinkSocket(NETLINK_NETFILTER)
    bodies = [(_NFTABLES << 8 | kind, NLM_F_CREATE, _BRIDGE + body) for kind, body in requests]
    sock.batch("make a table", _NFTABLES, bodies)
    try:
        argv = ["nft", "list", "table", "bridge", name]
        shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        assert re.search(r"counter packets 0 bytes 0 queue flags bypass to 513\n", shown), shown
        assert ("flags owner" in shown) == bool(flags), shown
    finally:
        sock.batch("remove it", _NFTABLES, [(_NFTABLES << 8 | _DELTABLE, 0, _BRIDGE + table)])
        sock.close()


def _refuses_before_the_command(backend: str) -> None:
    with ClientServer() as lab:
        command = ["sh", "-c", "echo it ran"]
        refused = shell.run(lab.server, "wrap", "--backend", backend, "-p", "80", "--", *command)
    assert refused.status == 125, refused
    assert "it ran" not in refused.stdout


@pytest.mark.parametrize("backend", BACKENDS)
def test_after_sigkill_new_connections_pass_and_recover_clears_the_rest(
    request: pytest.FixtureRequest, backend: str, found: dict[str, bool], record: Record
) -> None:
    if not all(found[name] for name in NEEDS[backend]):
        return  # there is no hold to kill: the test before has seen that
    lab: ClientServer = request.getfixturevalue("lab")
    request.getfixturevalue("simple")
    record(backend=backend)
    options = ["--backend", backend, "--max-hold", "60s", "-p", "8080", "--name", "web"]
    held = shell.run(lab.server, "hold", *options)
    assert held.status == 0, held
    assert not connects_within(lab.client, (lab.server_ipv4, 8080), 0.5)
    (entry,) = holds_in_force(lab.server)
    os.kill(entry["keeper"], signal.SIGKILL)
    assert connects_within(lab.client, (lab.server_ipv6, 8080), PASSES_AFTER_SIGKILL_S[backend])
    recovered = shell.run(lab.server, "recover")
    assert recovered.status == 0, recovered
    record(clean=True)  # as the fixture, which looks at what is left, may deny
