"""``python -m guest [--suite SUITE] [--systemd] [--fetch | -- COMMAND…]``: a guest by hand."""

from __future__ import annotations

import argparse
import sys
import time

from guest.errors import GuestError
from guest.kernels import KERNELS, fetch_kernel
from guest.machine import Guest
from guest.suites import DEFAULT_SUITE
from guest.systemd import fetch_system

_FOLLOW_S = 0.05


def main() -> int:
    """Exit with the command's status; 125 when the guest failed."""
    parser = argparse.ArgumentParser(prog="guest", description="Run a command on another kernel.")
    parser.add_argument("--suite", choices=KERNELS, default=DEFAULT_SUITE)
    parser.add_argument("--limit", type=float, default=120, metavar="SECONDS")
    parser.add_argument("--systemd", action="store_true", help="with systemd as its PID 1")
    parser.add_argument("--fetch", action="store_true", help="only fetch what it needs")
    parser.add_argument("command", nargs="*", default=["uname", "-a"])
    options = parser.parse_args()
    try:
        kernel = fetch_kernel(options.suite)
        system = fetch_system() if options.systemd else None
        if options.fetch:
            return 0
        with Guest(kernel, limit_s=options.limit, system=system) as guest:
            guest.start(options.command)
            _follow(guest)
            return guest.status()
    except GuestError as error:
        print(f"guest: {error}", file=sys.stderr)
        return 125


def _follow(guest: Guest) -> None:
    """Print the console as it grows."""
    with guest.console.open(encoding="utf-8", errors="replace") as console:
        while True:
            ended = not guest.runs()
            sys.stdout.write(console.read())
            sys.stdout.flush()
            if ended:
                return
            time.sleep(_FOLLOW_S)


if __name__ == "__main__":
    sys.exit(main())
