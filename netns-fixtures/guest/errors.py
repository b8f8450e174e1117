"""What can go wrong with a guest.

::

    GuestError
    ├── FetchError   the kernel's package cannot be had
    └── BootError    the guest did not start, did not end in time, or died
"""

from __future__ import annotations


class GuestError(RuntimeError):
    """Base of every error about guests."""


class FetchError(GuestError):
    """The kernel's package cannot be downloaded or unpacked."""


class BootError(GuestError):
    """The guest did not start, did not end in time, or died; with the end of its console."""
