"""The drop-in of ``synplug systemd``, its lines run as systemd runs those of a restart.

ExecStop= in their order, SIGTERM, the start, ExecStartPost=: systemd.service(5). systemctl and
systemd-run are stand-ins; what they start is real.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from netlab.load import Load
from netlab.load_result import LoadResult
from netlab.program import wait_until
from netlab.topology import ClientServer
from tests.integration.conftest import SimpleService
from tests.integration.connect import holds_in_force

BIN = Path(sys.executable).parent


def restart(
    lab: ClientServer, simple: SimpleService, lines: list[str], environ: dict[str, str]
) -> LoadResult:
    """One restart of the unit under load."""

    def run(key: str) -> None:
        for line in lines:
            name, _, value = line.partition("=")
            if name == key and value:
                argv = shlex.split(value.lstrip("@-:+!"))
                lab.server.run(argv, timeout_s=30, env=environ)

    with Load(lab.client, simple.targets(lab), rate_per_s=300) as load:
        run("ExecStop")
        lab.server.run(["sh", "-c", simple.stop_line()])
        lab.server.run(simple.start_argv("--delay", "0.3"))
        run("ExecStartPost")
        wait_until(simple.listens, 10, "it listens again")
        return load.stop()


#: A unit's own look at itself after its start: it fails where nobody answers.
HEALTH_CHECK = """\
#!/bin/sh
exec timeout 3 bash -c 'until : </dev/tcp/127.0.0.1/8080; do sleep 0.05; done 2>/dev/null'
"""


def test_a_unit_with_the_drop_in_loses_nobody(
    lab: ClientServer, simple: SimpleService, tmp_path: Path
) -> None:
    unit = tmp_path / "unit"
    check = tmp_path / "is-healthy"
    unit.write_text(f"[Service]\nExecStop=/bin/true\nExecStartPost={check}\n")
    check.write_text(HEALTH_CHECK)
    check.chmod(0o755)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (
        ("systemctl", f"cat {unit}"),
        ("systemd-run", '[ "$1 $2" = "--scope --quiet" ] && shift 2 && exec "$@"'),
    ):
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    environ = os.environ | {"PATH": f"{tools}:{BIN}:{os.environ['PATH']}"}

    lost = restart(lab, simple, ["ExecStop=/bin/true"], environ)
    assert lost.failures > 0, "the control lost nothing: the test shows nothing"

    argv = ["synplug", "systemd", "drop-in", "app", "-p", "8080", "--max-hold", "15s"]
    lines = lab.server.run(argv, env=environ).stdout.splitlines()
    assert [line.partition("=")[0] for line in lines[-6:]] == [
        *["ExecStop"] * 3, *["ExecStartPost"] * 3,
    ]  # fmt: skip
    (release,) = (line for line in lines if f"{BIN}/synplug release" in line)
    first = lab.server.run(shlex.split(release.partition("=-+")[2]), env=environ)
    assert "no hold named 'app'" in first.stderr, "as of a first start: said, and no failure"
    kept = restart(lab, simple, lines, environ)
    assert kept.failures == 0, kept.summary()
    assert not holds_in_force(lab.server)
