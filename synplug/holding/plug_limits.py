"""What a plug cannot do of what may be asked of a hold, and how much it takes."""

from __future__ import annotations

from synplug.errors import UnsupportedError
from synplug.model import HoldSpec, OnFull

#: The limit of a plug is one of bytes, and this is what a SYN of ``--max-held`` is given. Linux
#: sends 74 with the Ethernet header over IPv4, 94 over IPv6; with more options they are more.
BYTES_PER_SYN = 128


def limit_bytes(spec: HoldSpec) -> int:
    """How many may wait in it."""
    return spec.max_held_packets * BYTES_PER_SYN


def refuse_what_it_cannot(spec: HoldSpec) -> None:
    """Look at the options.

    :raises UnsupportedError: one of them asks for what a plug cannot do.
    """
    if spec.on_full is OnFull.PASS:
        raise UnsupportedError("a plug drops what does not fit", remedy="leave out --on-full pass")
    if spec.max_held_per_source:
        raise UnsupportedError("a plug knows no sources", remedy="leave out --max-held-per-source")
