"""``synplug.hold()``: what has happened when the caller's block begins."""

from __future__ import annotations

from functools import partial

import pytest

from synplug import DrainError, api
from synplug.kernel import procfs
from synplug.model import HoldResult, HoldSpec
from tests.unit.fakes import FakeHold, Restart


class _KeptHold(FakeHold):
    def release(self) -> HoldResult:
        self.begin_release()
        result = self.ended()
        assert result is not None
        return result


@pytest.fixture
def restart(monkeypatch: pytest.MonkeyPatch) -> Restart:
    restart = Restart()

    def kept(spec: HoldSpec, _locks: object) -> FakeHold:
        return _KeptHold(restart.world, spec)

    monkeypatch.setattr(procfs, "require_net_admin", lambda: None)
    monkeypatch.setattr(restart.locks, "take", lambda timeout_s: None)
    monkeypatch.setattr(api, "RunLocks", lambda _ports: restart.locks)
    monkeypatch.setattr(api, "KeptHold", kept)
    monkeypatch.setattr(api, "real_tools", lambda _spec, **_: restart.tools())
    monkeypatch.setattr(restart.sockets, "close", lambda: None, raising=False)
    return restart


def test_the_block_begins_when_the_old_listener_has_run_empty(restart: Restart) -> None:
    restart.sockets.requests = 1
    restart.world.after(0.2, partial(setattr, restart.sockets, "requests", 0))
    began_s = restart.world.now_s
    with api.hold([80]):
        assert restart.world.now_s >= began_s + 0.2
        assert "release" not in restart.world.log


def test_it_begins_all_the_same_when_the_time_is_over(restart: Restart) -> None:
    restart.sockets.requests = 1
    began_s = restart.world.now_s
    with api.hold([80], drain_timeout=0.1, quiesce=0.0):
        assert restart.world.now_s == pytest.approx(began_s + 0.1, abs=0.01)


def test_no_block_runs_when_the_hold_has_ended_before(restart: Restart) -> None:
    restart.sockets.requests = 1
    with pytest.raises(DrainError), api.hold([80], max_hold=0.5):
        pytest.fail("the block ran, and nothing was held")
