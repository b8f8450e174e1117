"""Doctor judges by the backend that ``auto`` would take."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from synplug.handover import doctor
from synplug.model import BackendName, Hook


def _examined(
    monkeypatch: pytest.MonkeyPatch,
    working: Collection[BackendName],
    objections: Collection[str] = (),
) -> doctor.Health:
    def tried(backend: BackendName, _hook: Hook) -> str:
        return "" if backend in working else "this kernel cannot"

    def looked(name: str, _look: object, good: str) -> doctor.Finding:
        return doctor.Finding(name=name, ok=name != "nf_tables", detail=good)

    monkeypatch.setattr(doctor, "try_hold", tried)
    monkeypatch.setattr(doctor, "_try", looked)
    monkeypatch.setattr(doctor, "plug_objections", lambda: list(objections))
    return doctor.examine()


@pytest.mark.parametrize("taken", [BackendName.NFQUEUE_IPTABLES, BackendName.PLUG])
def test_another_backend_will_do(monkeypatch: pytest.MonkeyPatch, taken: BackendName) -> None:
    health = _examined(monkeypatch, {taken, BackendName.PLUG})
    assert (health.backend, health.is_fit) == (taken, True)
    needed = {found.name for found in health.findings if found.needed}
    assert f"self-test {taken.value}" in needed
    assert not needed & {"nf_tables", "self-test nfqueue"}


def test_where_none_works_the_first_is_to_be_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    health = _examined(monkeypatch, ())
    assert (health.backend, health.is_fit) == (None, False)
    failed = {found.name for found in health.findings if found.needed and not found.ok}
    assert failed == {"nf_tables", "self-test nfqueue"}


def test_a_plug_that_auto_would_pass_over_here_is_not_what_it_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The self-test has a namespace of its own, without the filters of others."""
    health = _examined(monkeypatch, {BackendName.PLUG}, ["on eth0 filters of somebody else"])
    assert (health.backend, health.is_fit) == (None, False)
    (found,) = (one for one in health.findings if one.name == "self-test plug")
    assert not found.ok
    assert "'auto' passes it over here: on eth0 filters" in found.detail
    assert _examined(monkeypatch, {BackendName.PLUG}).backend is BackendName.PLUG
