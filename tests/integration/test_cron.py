"""The recipe for cron, under the real one: its PATH, its mails, its minutes."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from netlab.load import Load
from netlab.program import wait_until
from netlab.topology import ClientServer
from tests.integration import shell
from tests.integration.conftest import SimpleService
from tests.integration.crond import cron

RECIPES = Path(__file__).parents[2] / "docs" / "recipes.md"
BIN = str(Path(sys.executable).parent)


def recipe(configuration: Path) -> str:
    """The table of docs/recipes.md, with this environment's synplug, and without its patience."""
    (table,) = re.findall(r"```crontab\n(.*?)```", RECIPES.read_text(), re.DOTALL)
    for there, here in (
        ("/usr/local/sbin", BIN),
        ("--jitter 20s", "--jitter 300ms"),
        ("/etc/app.conf", str(configuration)),
    ):
        assert there in table
        table = table.replace(there, here)
    return str(table)


def test_the_recipe_restarts_on_change_mails_on_failure_and_loses_nobody(
    lab: ClientServer, simple: SimpleService, tmp_path: Path
) -> None:
    configuration, fault = tmp_path / "app.conf", tmp_path / "fault"
    configuration.write_text("1")
    folder = tmp_path / "cron"
    folder.mkdir()
    # The pid changes with each restart, so the script looks it up.
    script = tmp_path / "restart"
    script.write_text(
        f"#!/bin/sh\n[ ! -e {fault} ] || {{ echo 'it is broken'; exit 3; }}\n"
        + simple.restart_argv("--delay", "0.2")[2].replace(
            str(simple.pid), f"$(cat {simple.pidfile})"
        )
    )
    script.chmod(0o755)
    config = f"[service.app]\nport = 8080\nrestart = {json.dumps([str(script)])}\n"
    pids = [simple.pid]
    with (
        cron(lab.server, folder, recipe(configuration), config) as running,
        Load(lab.client, simple.targets(lab), rate_per_s=200) as load,
    ):
        wait_until(lambda: _other(simple, pids), 20, "the first run restarts")
        running.wait_for_minutes(3)
        assert not _other(simple, pids), "nothing has changed"
        configuration.write_text("2")
        wait_until(lambda: _other(simple, pids), 20, "a change restarts")
        assert running.mails == "", "success is silent, and so is doing nothing"

        fault.touch()
        configuration.write_text("3")
        wait_until(lambda: "it is broken" in running.mails, 20, "a failure is mailed")
        wait_until(lambda: "exit 3 (run " in running.mails, 5, "with the report")
        fault.unlink()
        wait_until(lambda: _other(simple, pids), 20, "it is tried again until it succeeds")
        running.wait_for_minutes(1)
        mails = running.mails
        running.wait_for_minutes(2)
        assert running.mails == mails
        kept = load.stop()
    assert kept.failures == 0, kept.summary()
    assert len(pids) == 4


def test_the_same_table_without_synplug_loses(
    lab: ClientServer, simple: SimpleService, tmp_path: Path
) -> None:
    """The control."""
    folder = tmp_path / "cron"
    folder.mkdir()
    script = tmp_path / "restart"
    script.write_text("#!/bin/sh\n" + simple.restart_argv("--delay", "0.2")[2])
    script.chmod(0o755)
    pids = [simple.pid]
    with (
        Load(lab.client, simple.targets(lab), rate_per_s=200) as load,
        cron(lab.server, folder, f"* * * * * root {script}\n", ""),
    ):
        wait_until(lambda: _other(simple, pids), 20, "it restarts")
        lost = load.stop()
    assert lost.failures > 0


def test_runs_that_overlap_restart_once(
    lab: ClientServer, simple: SimpleService, tmp_path: Path
) -> None:
    """Without a cron, whose minutes are too far apart: the second one waits, and finds it done."""
    configuration = tmp_path / "app.conf"
    configuration.write_text("1")
    ran = tmp_path / "ran"
    words = ["wrap", "-q", "-p", "8080", "--lock-timeout", "20s", "--only-if-changed"]
    line = f"echo >>{ran}\n{simple.restart_argv('--delay', '0.5')[2]}"
    prefix = ["unshare", "-m", "--propagation", "private", "sh", "-c"]
    state = f'mount --bind {tmp_path} /var/lib && exec "$@"'
    synplug = [*shell.SYNPLUG, *words, str(configuration), "--", "sh", "-c", line]
    runs = [
        lab.server.popen([*prefix, state, "sh", *synplug], stderr=-1, stdout=-1) for _ in range(3)
    ]
    said = [run.communicate(timeout=40) for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0], said
    assert ran.read_text() == "\n", "one restart"
    assert [words for _, words in said] == ["", "", ""]


def test_files_that_are_put_back_after_a_restart_has_failed_are_a_change(
    lab: ClientServer, simple: SimpleService, tmp_path: Path
) -> None:
    """The service is down then, whatever was there when it last was well."""
    configuration, ran = tmp_path / "app.conf", tmp_path / "ran"
    script = tmp_path / "restart"
    script.write_text(
        f"#!/bin/sh\necho >>{ran}\nkill $(cat {simple.pidfile}) 2>/dev/null\nrm {simple.pidfile}\n"
        f"grep -q broken {configuration} && exit 7\n{simple.start_argv()[2]}\n"
    )
    script.chmod(0o755)
    check = f"--check=sh -c '! grep -q refused {configuration}'"
    words = ["wrap", "-p", "8080", check, "--only-if-changed", str(configuration)]
    state = f'mount --bind {tmp_path} /var/lib && exec "$@"'
    prefix = ["unshare", "-m", "--propagation", "private", "sh", "-c", state, "sh"]

    def restart(text: str) -> tuple[int, int]:
        """The exit code with that configuration, and how many restarts there were so far."""
        configuration.write_text(text)
        argv = [*prefix, *shell.SYNPLUG, *words, "--", str(script)]
        status = shell.run_plainly(lab.server, argv).status
        return status, len(ran.read_text())

    assert restart("A") == (0, 1)
    assert restart("A") == (0, 1), "nothing has changed"
    assert restart("refused") == (125, 1)
    assert restart("A") == (0, 1), "it never was restarted"
    assert restart("broken") == (7, 2)
    assert not simple.listens()
    assert restart("refused") == (125, 2)
    assert restart("A") == (0, 3)
    assert simple.listens()
    assert restart("A") == (0, 3)


def _other(simple: SimpleService, pids: list[int]) -> bool:
    """Whether the service has another pid than before; it is noted."""
    try:
        pid = simple.pid
    except (OSError, ValueError):
        return False
    if pid == pids[-1]:
        return False
    pids.append(pid)
    return True
