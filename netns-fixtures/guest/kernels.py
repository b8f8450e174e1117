"""The kernels that a guest can have, by name."""

from __future__ import annotations

from guest.errors import FetchError
from guest.stock import STOCK, fetch_stock
from guest.suites import SUITES, Kernel, fetch

#: User Mode Linux of these suites, and the ordinary kernels.
KERNELS = (*SUITES, *STOCK)


def fetch_kernel(name: str) -> Kernel:
    """Return that kernel, downloaded if it is not in the cache.

    Raises:
        FetchError: there is none of that name, a tool is missing, or apt failed; with its words.

    """
    if name not in KERNELS:
        raise FetchError(f"no kernel {name!r}: there are {', '.join(KERNELS)}")
    return fetch_stock(name) if name in STOCK else fetch(name)
