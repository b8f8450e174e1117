"""What the service manager is told."""

from __future__ import annotations

import socket
from pathlib import Path

from synplug.handover.notify import Notifier


def test_a_status_that_is_no_text_is_told_all_the_same(tmp_path: Path) -> None:
    """A path of the operator's need not be UTF-8."""
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(5)
        told = Notifier({"NOTIFY_SOCKET": address}, clock=lambda: 1.0, own_pid=1)
        told.ready(b"no such file: /caf\xe9".decode(errors="surrogateescape"))
        data = manager.recv(4096)
    assert data.startswith(b"READY=1\nSTATUS=no such file: /caf")
    assert data.decode()
