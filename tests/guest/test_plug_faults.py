"""A keeper that holds with a plug is struck at each of its steps: nobody may meet a black hole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from netlab.program import wait_until
from netlab.topology import ClientServer
from tests.guest.plug import PLUG
from tests.integration.conftest import SimpleService
from tests.integration.connect import connects_within
from tests.integration.fault_points import Fault, Party
from tests.integration.fault_run import LAUNCHER

pytestmark = [pytest.mark.kernels, pytest.mark.guests_only]

STEPS = ["arm", "hold", "open", "remove"]


@pytest.mark.parametrize("fault", [Fault.SIGKILL, Fault.EXCEPTION], ids=lambda fault: fault.value)
@pytest.mark.parametrize("step", STEPS)
def test_new_connections_pass_and_nothing_is_left(
    lab: ClientServer, simple: SimpleService, tmp_path: Path, step: str, fault: Fault
) -> None:
    """The lab looks at what is left; nobody calls ``synplug recover``."""
    facts = tmp_path / "facts"
    accident = [f"Backend.{step}", Party.KEEPER.value, fault.value, str(facts)]
    argv = [sys.executable, str(LAUNCHER), *accident, "wrap", *PLUG, "-p", "8080", "--"]
    done = lab.server.run([*argv, *simple.restart_argv()], check=False, timeout_s=120)
    assert "fault" in facts.read_text(), "it struck"
    assert done.returncode == 125, done
    wait_until(simple.listens, 30, "the service listens")
    try:
        assert connects_within(lab.client, (lab.server_ipv4, 8080), 30)
    except subprocess.TimeoutExpired:
        pytest.fail("a black hole")
