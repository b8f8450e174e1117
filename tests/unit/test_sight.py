"""A restart whose listeners are in another network namespace, or cannot be seen at all."""

from __future__ import annotations

import pytest

from synplug.errors import UsageError
from synplug.handover.detached import hold
from synplug.handover.plan import DrainPlan, HoldPlan, WrapPlan
from synplug.handover.wrap import wrap
from synplug.holding.describe import equivalent_commands
from synplug.model import BackendName, Endpoint, HoldSpec, Hook, Outcome, Report
from tests.unit.fakes import FakeProbe, FakeSockets, Restart, listener

PUBLISHED = Endpoint(port=8080)
CONTAINER = "/run/netns/container"


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """No terminal sends our signals to the command as well."""
    monkeypatch.setattr("synplug.handover.wrap.reached_the_command_too", lambda *_: False)


@pytest.fixture
def restart() -> Restart:
    """Here an engine's proxy listens, before and after; there a service, on another port."""
    made = Restart()
    made.sockets.now = [listener(7, port=8080)]
    made.far[CONTAINER] = FakeSockets(made.world, [listener(1, port=80)])
    made.script = lambda command: made.world.after(0.3, lambda: command.end(0))
    probe = FakeProbe(made.world)
    made.probe = probe
    made.world.after(0.5, lambda: setattr(probe, "passed", True))
    return made


def plan(netns: str = CONTAINER, hook: Hook = Hook.PREROUTING) -> WrapPlan:
    spec = HoldSpec(endpoints=(PUBLISHED,), run_id="0123abcd", hook=hook, max_hold_s=5.0)
    return WrapPlan(argv=("replace",), spec=spec, drain=DrainPlan(netns=netns))


def run(restart: Restart, netns: str = CONTAINER, hook: Hook = Hook.PREROUTING) -> Report:
    return wrap(plan(netns, hook), restart.tools())


def test_the_probe_is_asked_when_the_command_has_succeeded_and_not_before(
    restart: Restart,
) -> None:
    """Who answers before may be the old container."""
    report = run(restart)
    log = restart.world.log
    assert log.index("the command ends with 0") < log.index("probe") < log.index("release")
    assert restart.hold.released_at_s == pytest.approx(1000.5, abs=0.01)
    assert (report.outcome, report.readiness, report.gap_s) == (Outcome.READY, "unseen", None)
    assert report.warnings == ()
    assert report.new_listeners == ()


def test_the_old_one_is_drained_where_it_is(restart: Restart) -> None:
    far = restart.far[CONTAINER]
    far.requests = 1
    restart.world.after(0.1, lambda: setattr(far, "requests", 0))
    report = run(restart)
    assert report.drain is not None
    assert report.drain.empty
    assert [owned.listener.port for owned in report.old_listeners] == [80]
    assert {tuple(one.port for one in asked) for asked in far.asked} == {(80,)}
    log = restart.world.log
    assert log.index("close the sockets") < log.index("spawn"), "they keep its namespace alive"


def test_after_dnat_only_the_endpoint_is_looked_at(restart: Restart) -> None:
    restart.far[CONTAINER].now.append(listener(3, port=8080))
    report = run(restart, hook=Hook.FORWARD)
    assert [owned.listener.port for owned in report.old_listeners] == [8080]


def test_what_could_not_be_looked_at_is_said(restart: Restart) -> None:
    report = run(restart, netns="")
    assert report.drain is None
    (warning,) = report.warnings
    assert warning.startswith("the old listener's queues could not be looked at (--hook prerout")
    assert report.ok


def test_nobody_in_there_is_said(restart: Restart) -> None:
    restart.far[CONTAINER].now = []
    assert run(restart).warnings == (f"nobody listened in {CONTAINER} before the command",)


def test_a_namespace_that_is_not_there_holds_nothing(restart: Restart) -> None:
    class Nowhere(dict[str, FakeSockets]):
        def __missing__(self, name: str) -> FakeSockets:
            raise UsageError(f"no network namespace {name!r}")

    restart.far = Nowhere()
    report = run(restart)
    assert (report.outcome, report.exit_code) == (Outcome.ERROR, 125)
    assert "arm" not in restart.world.log
    assert restart.commands == []


def test_a_command_that_does_not_end_is_what_is_complained_of(restart: Restart) -> None:
    restart.script = lambda command: restart.world.after(6, lambda: command.end(0))
    report = run(restart)
    assert report.outcome is Outcome.DEADLINE
    assert "the command had not ended in time, and the readiness check is asked only then" in (
        report.warnings
    )


def test_a_hold_by_name_drains_there_and_leaves_no_listeners_of_its_own(restart: Restart) -> None:
    spec = HoldSpec(endpoints=(PUBLISHED,), run_id="0123abcd", name="web", hook=Hook.PREROUTING)
    begun = hold(HoldPlan(spec=spec, drain=DrainPlan(netns=CONTAINER)), restart.tools())
    assert begun.drain is not None
    assert begun.warnings == ()
    assert [own.port for own in restart.hold.left or ()] == [80]
    begun = hold(HoldPlan(spec=spec), Restart().tools())
    assert begun.drain is None
    assert "could not be looked at" in begun.warnings[0]


# --- in the words of nft(8) and iptables(8)


def test_the_same_by_hand() -> None:
    spec = HoldSpec(endpoints=(PUBLISHED,), run_id="0123abcd", hook=Hook.PREROUTING)
    said = "\n".join(equivalent_commands(spec))
    assert "chain prerouting { type filter hook prerouting priority mangle;" in said
    assert "chain output { type filter hook output priority mangle;" in said
    assert "fib daddr type local tcp dport 8080 jump queues" in said
    assert "prerouting iif != lo tcp flags" in said
    assert "flush chain inet synplug-0123abcd output" in said


def test_the_same_by_hand_with_iptables() -> None:
    backend = BackendName.NFQUEUE_IPTABLES
    for hook, inserted in (
        (Hook.INPUT, ["-I INPUT -p tcp"]),
        (Hook.FORWARD, ["-I FORWARD -p tcp"]),
        (Hook.PREROUTING, ["-I PREROUTING ! -i lo -p tcp", "-I OUTPUT -p tcp"]),
    ):
        spec = HoldSpec(endpoints=(PUBLISHED,), run_id="0123abcd", hook=hook, backend=backend)
        lines = equivalent_commands(spec)
        for words in inserted:
            assert any(words in line for line in lines), words
            assert any(words.replace("-I", "-D") in line for line in lines), words
        assert any("--dst-type LOCAL" in line for line in lines) is (hook is Hook.PREROUTING)
