"""The values of options: durations, endpoints, counts, argument vectors."""

from __future__ import annotations

import math
import re
import shlex
import signal
from ipaddress import ip_address

from synplug.errors import UsageError
from synplug.model import Address, Endpoint

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*(ms|s|m|h|)")
_COUNT = re.compile(r"[0-9]+(?:_[0-9]+)*")
_COUNT_LETTERS = 12
_UNIT_S = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST_S = 24 * 3600.0


def duration(text: str) -> float:
    """``500ms``, ``2s``, ``1m``, ``1.5``: seconds.

    :raises UsageError: it is no duration, or beyond a day.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not a duration", remedy="write 500ms, 2s, 1m or a number")
    seconds = float(match.group(1)) * _UNIT_S[match.group(2)]
    if not math.isfinite(seconds) or seconds > _LONGEST_S:
        raise UsageError(f"{text!r} is longer than a day")
    return seconds


def positive_duration(text: str) -> float:
    """A duration of more than nothing."""
    seconds = duration(text)
    if not seconds:
        raise UsageError(f"{text!r}: a duration of more than 0 is needed here")
    return seconds


def count(text: str) -> int:
    """A whole number from 1."""
    if not _COUNT.fullmatch(text) or len(text) > _COUNT_LETTERS or not text.strip("_0"):
        raise UsageError(f"{text!r} is not a whole number from 1")
    return int(text.replace("_", ""))


def pid(text: str) -> int:
    """A process id."""
    if not re.fullmatch(r"[0-9]{1,7}", text) or not int(text):
        raise UsageError(f"{text!r} is not a process id")
    return int(text)


def signal_number(text: str) -> int:
    """``QUIT``, ``SIGQUIT`` or ``3``."""
    name = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
    if text.isdigit() and int(text) in set(signal.Signals):
        return int(text)
    if name in signal.Signals.__members__:
        return int(signal.Signals[name])
    raise UsageError(f"{text!r} is not a signal", remedy="write QUIT, SIGQUIT or 3")


def argv(text: str) -> tuple[str, ...]:
    """A command in one string, split as a shell would, but run without one."""
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"{text!r} is not a command: {error}") from error
    if not words:
        raise UsageError("an empty command")
    return words


def endpoints(text: str) -> tuple[Endpoint, ...]:
    """``80``, ``80,443``, ``0.0.0.0:80``, ``[::1]:80``, ``*:80``.

    :raises UsageError: something in it is no endpoint.
    """
    return tuple(_endpoint(part.strip()) for part in text.split(","))


def _endpoint(text: str) -> Endpoint:
    host, colon, port = text.rpartition(":")
    if colon and not host:
        raise _no_endpoint(text)
    address: Address | None = None
    if host and host != "*":
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        try:
            address = ip_address(bare)
        except ValueError:
            raise _no_endpoint(text) from None
        if (address.version == 6) != (bare is not host) or "%" in bare:
            raise _no_endpoint(text)
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise _no_endpoint(text)
    return Endpoint(port=int(port), address=address)


def hold_name(text: str) -> str:
    """What a hold, or a supervisor, is called.

    :raises UsageError: it is no name.
    """
    from synplug.holding.names import check_name

    return check_name(text)


def _no_endpoint(text: str) -> UsageError:
    return UsageError(
        f"{text!r} is not an endpoint",
        remedy="write PORT, IPV4:PORT or [IPV6]:PORT, with a port from 1 to 65535",
    )
