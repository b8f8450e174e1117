"""What can go wrong with legacy iptables, what it leaves behind, and what it costs."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from ipaddress import ip_address
from itertools import pairwise

import pytest

from synplug.errors import (
    LockError,
    ReleaseError,
    SynplugError,
    UnsupportedError,
    UsageError,
)
from synplug.holding import iptables_gate
from synplug.holding.iptables_gate import IptablesGate, port_shares
from synplug.kernel import xtables
from synplug.kernel.namespaces import unshare_network
from synplug.model import Endpoint, Family, HoldSpec, Hook
from synplug.record import replace
from tests.unit.legacy_tables import (
    apart,
    cycle,
    iptables,
    open_patiently,
    put_foreign_rules,
    rules_only,
    saved,
    saved_one,
    spec_of,
)

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("iptc") is None,
    reason="python-iptables (synplug[iptables]) is not installed",
)


# --- where the rules stand


@pytest.mark.parametrize(
    ("hook", "port", "jumps", "match"),
    [
        (Hook.INPUT, "*", ["INPUT -p tcp"], "-p tcp -m tcp --dport 80"),
        (Hook.FORWARD, "10.0.0.1", ["FORWARD -p tcp"], "-d 10.0.0.1/32 -p tcp -m tcp --dport 80"),
        (Hook.PREROUTING, "*", ["PREROUTING ! -i lo -p tcp", "OUTPUT -p tcp"], "dst-type LOCAL"),
        (
            Hook.PREROUTING,
            "10.0.0.1",
            ["PREROUTING ! -i lo -p tcp", "OUTPUT -p tcp"],
            "-d 10.0.0.1/32 -p tcp -m tcp --dport 80",
        ),
    ],
)
def test_each_hook_has_its_chains(hook: Hook, port: str, jumps: list[str], match: str) -> None:
    address = None if port == "*" else ip_address(port)

    def body() -> None:
        put_foreign_rules()
        before = saved()
        gate = IptablesGate(replace(spec_of(Endpoint(port=80, address=address)), hook=hook))
        gate.prepare((20_000,))
        assert rules_only(saved_one("iptables-legacy-save")) != rules_only(before)
        gate.hold()
        lines = saved_one("iptables-legacy-save").splitlines()
        found = [line for line in lines if line.endswith("-j synplug-0badcafe")]
        assert sorted(line.split(" -m ")[0] for line in found) == sorted(f"-A {j}" for j in jumps)
        (queued,) = (line for line in lines if line.startswith("-A synplug-0badcafe"))
        assert match in queued
        assert ("addrtype" in queued) is ("LOCAL" in match)
        iptables("-F", jumps[-1].split()[0])
        gate._looked_at_s = 0.0
        assert gate.restore() == 1
        assert gate.restore() == 0
        open_patiently(gate)
        gate.remove()
        assert "synplug" not in saved()

    apart(body)


# --- what can go wrong


def test_a_lock_that_is_not_given_back_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iptables_gate, "_PATIENCE_S", 0.2)

    def body() -> None:
        before = saved()
        with open(xtables.LOCK_FILE, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            gate = IptablesGate(spec_of(Endpoint(port=80)))
            began_s = time.monotonic()
            with pytest.raises(LockError, match=xtables.LOCK_FILE):
                gate.prepare((20_000,))
            assert 0.2 <= time.monotonic() - began_s < 2
            assert saved() == before
        gate.close()
        cycle(gate)

    apart(body)


def test_somebody_who_ignores_the_lock_is_not_overwritten() -> None:
    """The kernel sees that the number of rules is another, and the change is done anew."""

    def body() -> None:
        rude = dict(os.environ, XTABLES_LOCKFILE="/run/another.lock")
        insert = ["iptables-legacy", "-w", "-t", "mangle", "-A", "INPUT", "-j", "RETURN"]
        seen: list[bool] = []

        def edit(table: xtables.MangleTable) -> None:
            if not seen:
                subprocess.run(insert, check=True, env=rude)
            seen.append(table.has_chain("mine"))
            table.create_chain("mine", [])

        tables = xtables.MangleTables()
        with tables.locked(patience_s=1):
            tables.change(Family.IPV4, edit)
        assert seen == [False, False]
        assert ":mine" in saved()
        assert "-A INPUT -j RETURN" in saved()

    apart(body)


def test_if_ipv6_cannot_be_held_ipv4_is_not_either() -> None:
    def body() -> None:
        gate = IptablesGate(spec_of(Endpoint(port=80)))
        gate.prepare((20_000,))
        for option in ("-F", "-X"):
            iptables(option, "synplug-0badcafe", tool="ip6tables-legacy")
        with pytest.raises(SynplugError, match="somebody removed chain synplug-0badcafe"):
            gate.hold()
        assert "-A INPUT" not in saved()
        gate.close()
        assert "synplug" not in saved()

    apart(body)


def test_a_foreign_flush_is_no_error_afterwards() -> None:
    def body() -> None:
        gate = IptablesGate(spec_of(Endpoint(port=80)))
        gate.prepare((20_000,))
        gate.hold()
        iptables("-F")
        iptables("-X")
        gate.open()
        assert gate.matched() == 0
        gate.remove()
        gate.close()
        assert "synplug" not in saved()

    apart(body)


def test_copies_of_the_jump_are_deleted_too() -> None:
    """Firewall managers save and restore rules that they do not know."""

    def body() -> None:
        put_foreign_rules()
        before = saved()
        gate = IptablesGate(spec_of(Endpoint(port=80)))
        gate.prepare((20_000,))
        gate.hold()
        iptables("-A", "INPUT", "-j", "synplug-0badcafe")
        gate.open()
        gate.remove()
        assert rules_only(saved()) == rules_only(before)

    apart(body)


def test_a_rule_that_cannot_be_taken_out_is_named() -> None:
    def body() -> None:
        gate = IptablesGate(spec_of(Endpoint(port=80)))
        gate.prepare((20_000,))
        gate.hold()
        with open(xtables.LOCK_FILE, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(
                LockError, match="synplug-0badcafe are still in table mangle"
            ) as info:
                gate.open()
        assert "for 0 s" not in str(info.value)
        assert xtables.LOCK_FILE in str(info.value)
        assert "synplug recover" in info.value.remedy
        gate.close()
        assert "synplug" not in saved()

    apart(body)


def test_what_cannot_be_removed_is_named() -> None:
    def body() -> None:
        gate = IptablesGate(spec_of(Endpoint(port=80)))
        gate.prepare((20_000,))
        iptables("-A", "OUTPUT", "-j", "synplug-0badcafe")
        with pytest.raises(ReleaseError, match="synplug-0badcafe is still in table mangle") as info:
            gate.remove()
        assert "iptables-legacy -w -t mangle -F synplug-0badcafe" in info.value.remedy
        assert "synplug" not in saved_one("ip6tables-legacy-save"), "the other one is gone"
        iptables("-D", "OUTPUT", "-j", "synplug-0badcafe")
        gate.close()
        assert "synplug" not in saved()

    apart(body)


def test_another_network_namespace_is_refused() -> None:
    def body() -> None:
        gate = IptablesGate(spec_of(Endpoint(port=80)))
        gate.prepare((20_000,))
        unshare_network()
        with pytest.raises(SynplugError, match="network namespace"):
            gate.hold()
        assert not xtables.is_in_use(Family.IPV4)
        cycle(IptablesGate(spec_of(Endpoint(port=80))))  # a new one works in the new namespace

    apart(body)


def test_threads_take_turns() -> None:
    def body() -> None:
        failures: list[SynplugError] = []

        def work(number: int) -> None:
            try:
                for _ in range(20):
                    cycle(IptablesGate(spec_of(Endpoint(port=80), run_id=f"{number:08x}")))
            except SynplugError as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert "synplug" not in saved()

    apart(body)


@pytest.mark.parametrize("capability", ["net_admin", "net_raw"])
def test_a_missing_capability_is_named(capability: str) -> None:
    code = (
        "from synplug.holding.iptables_gate import IptablesGate as G\n"
        "from synplug.model import *\n"
        "from synplug.errors import PrivilegeError\n"
        "try: G(HoldSpec(endpoints=(Endpoint(port=1),), run_id='0'*8)).prepare((20000,))\n"
        "except PrivilegeError as error: print(error)\n"
    )

    def body() -> None:
        argv = ["setpriv", "--bounding-set", f"-{capability}", sys.executable, "-c", code]
        said = subprocess.run(argv, check=True, capture_output=True, text=True)
        assert "CAP_NET_ADMIN and CAP_NET_RAW" in said.stdout
        assert not said.stderr

    apart(body)


def test_without_python_iptables_it_is_named() -> None:
    def body() -> None:
        sys.modules["iptc"] = None  # type: ignore[assignment] # as if it were not there
        gate = IptablesGate(spec_of(Endpoint(port=80)))
        with pytest.raises(UnsupportedError) as info:
            gate.prepare((20_000,))
        assert "python-iptables" in info.value.remedy
        gate.close()
        iptables("-S")  # now the table is in use
        with pytest.raises(UnsupportedError):
            gate.clean_up_after_death()
        auto = HoldSpec(endpoints=(Endpoint(port=80),), run_id="0badcafe")
        IptablesGate(auto).clean_up_after_death()

    apart(body)


def test_libraries_that_are_missing_are_named() -> None:
    def body() -> None:
        class Finder:
            @staticmethod
            def find_spec(name: str, *_: object) -> None:
                if name == "iptc":
                    raise AttributeError("'NoneType' object has no attribute 'iptc_init'")

        sys.meta_path.insert(0, Finder)
        with pytest.raises(UnsupportedError, match="does not work here") as info:
            xtables.describe()
        assert "apt-get install iptables" in info.value.remedy

    apart(body)


# --- what it costs


def test_making_a_gate_imports_nothing() -> None:
    def body() -> None:
        gate = IptablesGate(spec_of(Endpoint(port=80)))
        assert gate.traces() == {"iptables chain": "mangle synplug-0badcafe"}
        gate.close()
        assert "iptc" not in sys.modules
        assert not xtables.is_in_use(Family.IPV4)

    apart(body)


def test_no_descriptor_no_thread_and_no_word_is_left() -> None:
    def body() -> None:
        reader, writer = os.pipe()
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        cycle(IptablesGate(spec_of(Endpoint(port=80))))
        before = descriptors()
        for _ in range(10):
            gate = IptablesGate(spec_of(Endpoint(port=80)))
            cycle(gate)
            gate.prepare((20_000,))
            with suppress(SynplugError):
                gate.prepare((20_000,))
            gate.close()
        assert descriptors() == before
        assert threading.active_count() == 1
        os.set_blocking(reader, False)
        with pytest.raises(BlockingIOError):
            os.read(reader, 1)

    apart(body)


def descriptors() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found[name] = os.readlink(f"/proc/self/fd/{name}")
    return {name: path for name, path in found.items() if not path.startswith("/proc/")}


def test_a_name_that_is_too_long_is_refused() -> None:
    def body() -> None:
        gate = IptablesGate(spec_of(Endpoint(port=80), run_id="0" * 21))
        with pytest.raises(UsageError):
            gate.prepare((20_000,))
        cycle(IptablesGate(spec_of(Endpoint(port=80), run_id="0" * 20)))

    apart(body)


@pytest.mark.parametrize("queues", [1, 2, 4, 8, 16, 64])
def test_every_source_port_has_one_queue(queues: int) -> None:
    shares = port_shares(queues)
    ranges = sorted(part for share in shares for part in share)
    assert ranges[0][0] == 0
    assert ranges[-1][1] == 65_535
    assert all(left[1] + 1 == right[0] for left, right in pairwise(ranges))
    ephemeral = range(32_768, 61_000)
    loads = [
        sum(len(range(max(low, 32_768), min(high + 1, 61_000))) for low, high in share)
        for share in shares
    ]
    assert max(loads) < 1.5 * len(ephemeral) / queues


def test_what_the_clean_up_imports_is_there_before_it() -> None:
    """A watcher has fewer capabilities: it may not be able to read where the library is."""
    code = (
        "import sys\n"
        "from synplug.holding.iptables_gate import IptablesGate as G\n"
        "from synplug.errors import LockError\n"
        "from synplug.model import *\n"
        "gate = G(HoldSpec(endpoints=(Endpoint(port=1),), run_id='0badcafe'))\n"
        "gate.load_libraries()\n"
        "sys.meta_path.clear()\n"  # nothing is found any more
        "sys.path_hooks.clear()\n"
        "try: gate.clean_up_after_death()\n"
        "except LockError as error: print(error)\n"
    )

    def body() -> None:
        gate = IptablesGate(spec_of(Endpoint(port=80)))
        gate.prepare((20_000,))
        argv = [sys.executable, "-c", code]
        subprocess.run(argv, check=True)
        assert "synplug" not in saved()
        with open(xtables.LOCK_FILE, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            said = subprocess.run(argv, check=True, capture_output=True, text=True)
        assert "lock of iptables" in said.stdout

    apart(body)
