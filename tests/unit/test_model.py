"""Which connections reach which listener: the ground of readiness, drain and target."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from synplug.model import Endpoint, Family, Outcome
from tests.unit.fakes import Restart, listener

ANY = None


def endpoint(address: str | None, port: int = 80) -> Endpoint:
    return Endpoint(port=port, address=None if address is None else ip_address(address))


@pytest.mark.parametrize(
    ("own", "v6only", "served", "not_served"),
    [
        ("0.0.0.0", False, [ANY, "0.0.0.0", "10.0.0.1"], ["::", "fd00::1"]),
        ("::", False, [ANY, "0.0.0.0", "10.0.0.1", "::", "fd00::1"], []),
        ("::", True, [ANY, "::", "fd00::1"], ["0.0.0.0", "10.0.0.1"]),
        ("10.0.0.1", False, [ANY, "0.0.0.0", "10.0.0.1"], ["10.0.0.2", "::"]),
        ("fd00::1", False, [ANY, "::", "fd00::1"], ["fd00::2", "0.0.0.0", "10.0.0.1"]),
    ],
)
def test_who_serves_what(
    own: str, v6only: bool, served: list[str | None], not_served: list[str | None]
) -> None:
    sock = listener(1, own, v6only=v6only)
    assert [name for name in served if not sock.serves(endpoint(name))] == []
    assert [name for name in not_served if sock.serves(endpoint(name))] == []
    assert not sock.serves(endpoint(ANY, port=81))


@pytest.mark.parametrize(
    ("own", "v6only", "stands_for"),
    [
        ("0.0.0.0", False, "0.0.0.0:80"),
        ("::", False, "*:80"),
        ("::", True, "[::]:80"),
        ("10.0.0.1", False, "10.0.0.1:80"),
        ("fd00::1", False, "[fd00::1]:80"),
    ],
)
def test_a_listener_stands_for_an_endpoint(own: str, v6only: bool, stands_for: str) -> None:
    assert str(listener(1, own, v6only=v6only).endpoint()) == stands_for


@pytest.mark.parametrize(
    ("address", "families", "exact"),
    [
        (None, (Family.IPV4, Family.IPV6), None),
        ("0.0.0.0", (Family.IPV4,), None),
        ("::", (Family.IPV6,), None),
        ("10.0.0.1", (Family.IPV4,), "10.0.0.1"),
        ("fd00::1", (Family.IPV6,), "fd00::1"),
    ],
)
def test_families_and_exact_addresses(
    address: str | None, families: tuple[Family, ...], exact: str | None
) -> None:
    found = endpoint(address)
    assert found.families == families
    assert found.exact_address == (None if exact is None else ip_address(exact))


def test_only_a_ready_run_with_exit_code_0_is_ok() -> None:
    from synplug.handover.wrap import wrap
    from synplug.record import replace

    restart = Restart()
    report = wrap(restart.plan(), restart.tools())
    assert report.ok
    assert not replace(report, exit_code=1).ok
    assert not replace(report, outcome=Outcome.INTERRUPTED).ok
