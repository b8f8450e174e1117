"""Single connections, and what is in force meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from netlab.topology import Namespace
from tests.integration import shell

_CONNECT = """
import socket, sys, time
host, port, limit = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
began = time.monotonic()
try:
    socket.create_connection((host, port), timeout=limit).close()
except OSError as error:
    print(type(error).__name__)
else:
    print(time.monotonic() - began)
"""


def connect_argv(target: tuple[str, int], limit_s: float) -> list[str]:
    """A command that connects once, and prints how long that took, or the error's name."""
    return [sys.executable, "-S", "-c", _CONNECT, target[0], str(target[1]), str(limit_s)]


def connects_within(client: Namespace, target: tuple[str, int], limit_s: float) -> bool:
    """Whether a new connection is established in so many seconds."""
    said = client.run(connect_argv(target, limit_s), timeout_s=limit_s + 10).stdout.strip()
    return said[:1].isdigit() and float(said) < limit_s


def connect_s(client: Namespace, target: tuple[str, int]) -> float:
    """How long a new connection takes, by the clock of who connects."""
    return float(client.run(connect_argv(target, 30), timeout_s=60).stdout)


def is_refused(client: Namespace, target: tuple[str, int]) -> bool:
    """Whether a new connection is refused."""
    said = client.run(connect_argv(target, 2.0), timeout_s=12).stdout.strip()
    return said == "ConnectionRefusedError"


def connecting(client: Namespace, target: tuple[str, int], limit_s: float) -> subprocess.Popen[str]:
    """Begin to connect, and do not wait for it."""
    return client.popen(connect_argv(target, limit_s), stdout=subprocess.PIPE)


def holds_in_force(server: Namespace) -> list[dict[str, Any]]:
    """What ``synplug status`` shows of live, holding runs."""
    entries: list[dict[str, Any]] = json.loads(shell.run(server, "status", "--json").stdout)
    return [entry for entry in entries if entry["live"] and entry["state"] == "holding"]
