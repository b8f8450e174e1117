"""Debian's cron, in mount and network namespaces of its own, a minute a few seconds long.

faketime(1) speeds cron's own clock up. Its jobs run at the normal pace: cron gives them an
environment of their own, without LD_PRELOAD.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from netlab.processes import describe
from netlab.program import wait_until
from netlab.snapshot import is_synplug
from netlab.topology import Namespace

MINUTE_S = 2.0
_FAKETIME = "/usr/lib/*/faketime/libfaketime.so.1"
_SCRIPT = """
set -e
T=$1
mkdir "$T/sbin" "$T/etc" "$T/w1" "$T/w2" "$T/spool"
mount -t overlay o -o "lowerdir=/usr/sbin,upperdir=$T/sbin,workdir=$T/w1" /usr/sbin
mount -t overlay o -o "lowerdir=/etc,upperdir=$T/etc,workdir=$T/w2" /etc
mount --bind "$T/spool" /var/spool/cron/crontabs
mount -t tmpfs state /var/lib
rm -rf /etc/cron.d/* /etc/synplug*
printf '#!/bin/sh\\ncat >>%s\\n' "$T/mails" >/usr/sbin/sendmail
chmod 755 /usr/sbin/sendmail
cp "$T/crontab" /etc/crontab
chmod 644 /etc/crontab
cp "$T/synplug.toml" /etc/synplug.toml
chmod 644 /etc/synplug.toml
set -- @faketime@
LD_PRELOAD=$1 FAKETIME="+0 x@speed@" FAKETIME_DONT_FAKE_MONOTONIC=1 exec cron -f
"""


@dataclass(frozen=True, kw_only=True)
class Cron:
    """A cron that runs; what it has mailed, and how many minutes have passed for it."""

    folder: Path

    @property
    def mails(self) -> str:
        """All mails, one behind the other."""
        path = self.folder / "mails"
        return path.read_text() if path.exists() else ""

    @property
    def minutes(self) -> int:
        """How often a job of every minute has run."""
        path = self.folder / "ticks"
        return path.read_text().count("\n") if path.exists() else 0

    def wait_for_minutes(self, number: int) -> None:
        """Wait until so many more have begun."""
        until = self.minutes + number
        wait_until(lambda: self.minutes >= until, 30, f"{number} more minutes have passed")


@contextmanager
def cron(namespace: Namespace, folder: Path, crontab: str, config: str) -> Iterator[Cron]:
    """Run this table, with this /etc/synplug.toml."""
    # Not a workdir on an overlay: the machine's /tmp may be one.
    subprocess.run(["mount", "-t", "tmpfs", "cron", folder], check=True)
    try:
        tick = f"* * * * * root echo >>{folder}/ticks\n"
        (folder / "crontab").write_text(crontab + "\n" + tick)
        (folder / "synplug.toml").write_text(config)
        script = _SCRIPT.replace("@faketime@", _FAKETIME)
        script = script.replace("@speed@", f"{60 / MINUTE_S:g}")
        argv = ["unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh", str(folder)]
        process = namespace.popen(argv, start_new_session=True)
        try:
            made = Cron(folder=folder)
            made.wait_for_minutes(1)
            yield made
        finally:
            process.terminate()
            process.wait(timeout=10)
            wait_until(lambda: not _jobs(namespace), 20, "the last jobs have ended")
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def _jobs(namespace: Namespace) -> list[int]:
    """The synplugs that are still at it."""
    found = [process for pid in namespace.pids() if (process := describe(pid))]
    return [process.pid for process in found if is_synplug(process.arguments)]
