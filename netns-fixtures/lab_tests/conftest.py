"""Every test runs below private namespaces, in a lab of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from netlab.isolation import ENVIRONMENT_MARKER, enter_private_namespaces
from netlab.topology import ClientServer

_NOBODY = 65534


def pytest_configure() -> None:
    """Before any fixture, and while there is only one thread."""
    enter_private_namespaces()


@pytest.fixture
def lab() -> Iterator[ClientServer]:
    """Make a client and a server, with two more client addresses of each family."""
    with ClientServer(extra_client_addresses=2) as lab:
        yield lab


@pytest.fixture
def as_nobody(tmp_path: Path) -> list[str]:
    """What begins a command of an unprivileged user, who may look into `tmp_path`."""
    first, _, count = Path("/proc/self/uid_map").read_text(encoding="ascii").split()[:3]
    if os.geteuid() != 0 or int(first) != 0 or int(count) <= _NOBODY:
        pytest.skip("needs a second user: run as root, outside of a user namespace")
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    user = [f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]
    return ["env", "-u", ENVIRONMENT_MARKER, "setpriv", *user]
