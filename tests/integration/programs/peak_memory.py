"""Run a command, and write how many KiB it had resident at most: ``peak_memory.py FILE COMMAND``.

The kernel's figure (wait4(2)) begins with what the process had before exec(2): that of whoever
started it. So a large one, such as pytest, cannot see it for a small one; this one can.
"""

import os
import sys

pid = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(pid, 0)
with open(sys.argv[1], "w", encoding="ascii") as file:
    file.write(str(usage.ru_maxrss))
sys.exit(os.waitstatus_to_exitcode(status))
