"""Which backend holds on which kernel; and each that does: held, released, clean after SIGKILL.

What is recorded here becomes the tables of docs/kernels.md (``make kernels``).
"""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest

from guest.bridge import MACHINE
from netlab.load import Load
from netlab.snapshot import NetworkState
from netlab.topology import ClientServer
from tests.guest.features import features
from tests.integration import shell
from tests.integration.conftest import SimpleService
from tests.integration.connect import connects_within, holds_in_force

BACKENDS = ["nfqueue", "nfqueue-iptables"]

_NO_INET = {"nf_tables, family inet", "nf_tables, family ip", "NFQUEUE target in nf_tables"}
_NO_LEGACY = {"legacy iptables with NFQUEUE", "legacy ip6tables with NFQUEUE"}
#: What a guest's kernel lacks. The machine's own may lack anything.
ABSENT = {
    "bullseye": _NO_INET | {"nf_tables, tables with an owner"},
    "bookworm": _NO_INET,
    "trixie": _NO_INET,
    "sid": _NO_INET | _NO_LEGACY,
}
#: What each backend cannot do without.
NEEDS = {
    "nfqueue": {"nf_tables, family inet", "nf_tables, tables with an owner", "nfnetlink_queue"},
    "nfqueue-iptables": _NO_LEGACY | {"nfnetlink_queue"},
}


@pytest.fixture(scope="session")
def found(kernel: str) -> dict[str, bool]:
    """The features of this kernel."""
    return features()


@pytest.fixture(scope="session")
def findings(kernel: str) -> dict[str, dict[str, Any]]:
    """What ``synplug doctor`` says, by name."""
    with ClientServer() as lab:
        said = shell.run(lab.server, "doctor", "--json")
    return {finding["name"]: finding for finding in json.loads(said.stdout)["findings"]}


def test_the_kernel_has_what_is_documented(
    kernel: str, found: dict[str, bool], record_property: pytest.RecordProperty
) -> None:
    record_property("release", os.uname().release)
    record_property("features", found)
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
def test_a_restart_under_load(
    kernel: str,
    backend: str,
    lab: ClientServer,
    simple: SimpleService,
    findings: dict[str, dict[str, Any]],
    record_property: pytest.RecordProperty,
) -> None:
    options = ["--backend", backend, "--max-hold", "30s", "-p", "8080"]
    argv = simple.restart_argv("--delay", "0.5")
    record_property("backend", backend)
    if not findings[f"self-test {backend}"]["ok"]:
        refused = shell.wrap(lab.server, options, argv)
        assert refused.status == 125, refused
        assert "was not run" in refused.stderr or "not run" in refused.stderr, refused
        record_property("held", "cannot")
        return
    with Load(lab.client, simple.targets(lab), rate_per_s=50, timeout_s=30) as load:
        wrapped = shell.wrap(lab.server, options, argv)
        result = load.stop()
    assert wrapped.status == 0, wrapped
    hold = wrapped.report["hold"]
    assert hold["held"] > 0
    assert hold["released"] == hold["held"]
    assert result.failures == 0, result.summary()
    record_property("held", hold["held"])
    record_property("released", hold["released"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_after_sigkill_new_connections_pass_and_recover_clears_the_rest(
    kernel: str,
    backend: str,
    lab: ClientServer,
    simple: SimpleService,
    findings: dict[str, dict[str, Any]],
    record_property: pytest.RecordProperty,
) -> None:
    if not findings[f"self-test {backend}"]["ok"]:
        return  # the test before has seen that it refuses
    before = NetworkState.capture(lab.server)
    options = ["--backend", backend, "--max-hold", "60s", "-p", "8080", "--name", "web"]
    held = shell.run(lab.server, "hold", *options)
    assert held.status == 0, held
    assert not connects_within(lab.client, (lab.server_ipv4, 8080), 0.5)
    (entry,) = holds_in_force(lab.server)
    os.kill(entry["keeper"], signal.SIGKILL)
    assert connects_within(lab.client, (lab.server_ipv6, 8080), 5.0)
    recovered = shell.run(lab.server, "recover")
    assert recovered.status == 0, recovered
    assert before.difference(NetworkState.capture(lab.server)) == []
    record_property("backend", backend)
    record_property("clean", value=True)
