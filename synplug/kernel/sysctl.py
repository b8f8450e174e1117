"""Kernel parameters below /proc/sys (proc_sys(5)); those of ``net`` are a network namespace's.

It is the namespace of the thread that opens the file which counts (``net/sysctl_net.c``).
"""

from __future__ import annotations

from synplug.errors import KernelError, UnsupportedError


def read(name: str) -> str:
    """The value of a parameter, such as ``net.ipv4.tcp_migrate_req``.

    :raises UnsupportedError: this kernel has no such parameter. :raises KernelError: it refused.
    """
    return _access(name, None)


def write(name: str, value: str) -> None:
    """Set a parameter; the same errors."""
    _access(name, value)


def _access(name: str, value: str | None) -> str:
    path = "/proc/sys/" + name.replace(".", "/")
    try:
        with open(path, "r" if value is None else "w", encoding="ascii") as file:
            if value is None:
                return file.read().strip()
            file.write(value)
            return value
    except FileNotFoundError as error:
        raise UnsupportedError(f"this kernel has no {name}") from error
    except OSError as error:
        action = "read" if value is None else "set"
        raise KernelError(f"{action} {name}", error.errno or 0) from error
