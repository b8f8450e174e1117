"""Restart anything that listens on TCP without losing a connection.

>>> import synplug
>>> with synplug.hold(ports=[80], max_hold=5.0) as held:          # doctest: +SKIP
...     restart_my_service()
>>> report = synplug.wrap(["systemctl", "restart", "app"])        # doctest: +SKIP
>>> report.ok                                                     # doctest: +SKIP
True
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from synplug.api import Held, hold, wrap
    from synplug.errors import (
        CheckError,
        CommandError,
        CommandNotFoundError,
        DrainError,
        KeeperError,
        KernelError,
        LockError,
        PrivilegeError,
        ReleaseError,
        SynplugError,
        TargetError,
        UnsupportedError,
        UsageError,
    )
    from synplug.model import Endpoint, HoldCounts, HoldResult, Outcome, Report

__all__ = [
    "CheckError",
    "CommandError",
    "CommandNotFoundError",
    "DrainError",
    "Endpoint",
    "Held",
    "HoldCounts",
    "HoldResult",
    "KeeperError",
    "KernelError",
    "LockError",
    "Outcome",
    "PrivilegeError",
    "ReleaseError",
    "Report",
    "SynplugError",
    "TargetError",
    "UnsupportedError",
    "UsageError",
    "__version__",
    "hold",
    "wrap",
]


def __getattr__(name: str) -> Any:
    """Import the public names when they are asked for: the command line needs none of them."""
    if name not in __all__:
        raise AttributeError(f"module 'synplug' has no attribute {name!r}")
    import importlib

    for module in ("synplug.errors", "synplug.model", "synplug.api"):
        found = getattr(importlib.import_module(module), name, None)
        if found is not None:
            return found
    raise AttributeError(f"module 'synplug' has no attribute {name!r}")
