"""How a process leaves the control group that it could be killed with."""

from __future__ import annotations

import os
from contextlib import suppress

from synplug.kernel import procfs

#: Where a group can be killed, or frozen, as a whole: by the kernel, or by who kept it for that.
_DANGEROUS = (*procfs.SYSTEMDS, "freezer")
#: With version 1 the first of them is a file system in memory.
_ROOT_GROUPS = (
    "/sys/fs/cgroup",
    "/sys/fs/cgroup/unified",
    "/sys/fs/cgroup/systemd",
    "/sys/fs/cgroup/freezer",
)


def leave_control_group() -> bool:
    """Move this process into the root control groups (cgroups(7)), where that is allowed.

    A control group can be killed as a whole (cgroup.kill, a unit's KillMode=control-group), and so
    can a PID namespace: with its init (pid_namespaces(7)).

    :returns: whether this process is in none that can be killed so. That is looked up, not
        concluded: the root that a write succeeds at may be that of a container.
    """
    if not _is_in_no_group():
        for root in _ROOT_GROUPS:
            with suppress(OSError):
                descriptor = os.open(f"{root}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.write(descriptor, b"0")
                finally:
                    os.close(descriptor)
    return _is_in_no_group() and procfs.is_in_first_namespace("pid")


def _is_in_no_group() -> bool:
    """Whether it is in the root groups of the machine; of a namespace they may be a container's."""
    if any(path != "/" for _, path in procfs.control_groups(os.getpid(), _DANGEROUS)):
        return False
    return procfs.is_in_first_namespace("cgroup")
