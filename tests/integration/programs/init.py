"""A small init: runs commands, and reaps whatever they leave behind.

A line of standard input is a JSON list: the file for the output, then the command's words. A line
of standard output is the status. Not every machine's PID 1 reaps at once, and a script that waits
until a process is gone waits for that.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys

_PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    """Serve until standard input ends."""
    assert ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    for line in sys.stdin:
        path, *argv = json.loads(line)
        with open(path, "wb") as output:
            child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        pid = status = 0
        while pid != child.pid:
            pid, status = os.wait()
        child.returncode = os.waitstatus_to_exitcode(status)
        print(child.returncode, flush=True)


if __name__ == "__main__":
    main()
