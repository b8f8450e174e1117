"""What the figures were measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

from bench.errors import BenchError
from netlab.servers.envoy import VERSIONS

_VERSION = re.compile(r"\d+\.\d+(\.\d+)*")
_ASKED = (
    ("HAProxy", ("haproxy", "-v")),
    ("nginx", ("nginx", "-v")),
    ("start_server", ("start_server", "--version")),
    ("iptables", ("iptables", "--version")),
)


def describe() -> dict[str, str]:
    """The machine, its load just now, and the versions of what takes part."""
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text(encoding="ascii"))
    processor = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    found = {
        "kernel": f"Linux {platform.release()}",
        "processors": f"{os.cpu_count()} × {processor.group(1) if processor else 'unknown'}",
        "memory": f"{int(memory.group(1)) / 1024**2:.1f} GiB" if memory else "unknown",
        "load average before": f"{os.getloadavg()[0]:.2f}",
        "Python": platform.python_version(),
        "gunicorn": importlib.metadata.version("gunicorn"),
        "Envoy": ", ".join(VERSIONS),
    }
    return found | {name: _version(argv) for name, argv in _ASKED}


def _version(argv: tuple[str, ...]) -> str:
    try:
        said = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=10)
    except FileNotFoundError as error:
        raise BenchError(f"{argv[0]} is not installed: run sh scripts/setup.sh") from error
    found = _VERSION.search(said.stdout + said.stderr)
    return found.group() if found else "unknown"
