"""Where the program begins: what comes from here on is imported, and that is most of a start."""

from __future__ import annotations

import gc


def main() -> int:
    """Run synplug with the process's arguments; returns the exit status."""
    gc.disable()  # 5 ms of looking through what is imported, for garbage that is not there
    from synplug.cli.main import main as run

    return run()
