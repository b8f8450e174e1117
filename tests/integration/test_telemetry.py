"""A restart as the journal, Prometheus and a hook see it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from netlab.load import Load
from netlab.topology import ClientServer
from tests.integration import shell
from tests.integration.conftest import SimpleService

#: A real journald, with a /run and a /dev of its own.
_JOURNALD = """
set -e
mkdir "$1/dev" && mount -t tmpfs dev "$1/dev"
for node in null zero urandom random full; do
    touch "$1/dev/$node" && mount --bind "/dev/$node" "$1/dev/$node"
done
mount --move "$1/dev" /dev
mkdir -p /run/log/journal /run/systemd/journal
ln -s /run/systemd/journal/dev-log /dev/log
/lib/systemd/systemd-journald >"$1/journald" 2>&1 &
journald=$!
end() { kill $journald; wait $journald || true; }
trap end EXIT
tries=0
until [ -S /run/systemd/journal/dev-log ]; do
    tries=$((tries + 1)); [ $tries -lt 200 ] || exit 99; sleep 0.05
done
shift
status=0
"$@" || status=$?
journalctl --sync 2>/dev/null || true
tries=0
until journalctl -D /run/log/journal/* -o json --no-pager SYSLOG_IDENTIFIER=synplug >"$JOURNAL" \
    && [ "$(wc -l <"$JOURNAL")" -ge 4 ]; do
    tries=$((tries + 1)); [ $tries -lt 100 ] || break; sleep 0.05
done
exit $status
"""


def test_everybody_is_told_of_a_restart(
    lab: ClientServer, simple: SimpleService, tmp_path: Path
) -> None:
    config = tmp_path / "synplug.toml"
    hooked, lines, metrics = (tmp_path / name for name in ("hooked", "lines", "synplug.prom"))
    hook = [sys.executable, "-c", "import sys; open(sys.argv[1], 'w').write(sys.stdin.read())"]
    config.write_text(
        f"[service.web]\nport = 8080\nlog = ['journal', 'syslog', '{lines}']\n"
        f"metrics = '{metrics}'\non-event = {json.dumps([*hook, str(hooked)])}\n"
        f"restart = {json.dumps(simple.restart_argv('--delay', '0.2'))}\n"
    )
    config.chmod(0o600)
    journal = tmp_path / "journal"
    script = ["unshare", "-m", "--propagation", "private", "sh", "-c", _JOURNALD, "sh"]
    words = ["restart", "web", "-q", "--config", str(config), "--json", str(tmp_path / "report")]
    with Load(lab.client, simple.targets(lab), rate_per_s=300) as load:
        done = subprocess.run(
            lab.server.command(
                ["env", f"JOURNAL={journal}", *script, str(tmp_path), *shell.SYNPLUG, *words]
            ),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        kept = load.stop()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done
    assert kept.failures == 0, kept.summary()

    report = json.loads((tmp_path / "report").read_text())
    assert json.loads(hooked.read_text()) == report
    began, ended = map(json.loads, lines.read_text().splitlines())
    assert (began["event"], ended["event"]) == ("started", "finished")
    assert ended["report"] == report

    entries = list(map(json.loads, journal.read_text().splitlines()))
    native = [entry for entry in entries if entry["_TRANSPORT"] == "journal"]
    syslog = [entry for entry in entries if entry["_TRANSPORT"] == "syslog"]
    assert [entry["SYNPLUG_EVENT"] for entry in native] == ["started", "finished"]
    assert native[1]["SYNPLUG_SERVICE"] == "web"
    assert int(native[1]["SYNPLUG_HELD"]) == report["hold"]["held"] > 0
    assert json.loads(native[1]["SYNPLUG_REPORT"]) == report
    assert [entry["MESSAGE"] for entry in syslog] == [entry["MESSAGE"] for entry in native]

    families = text_string_to_metric_families(metrics.read_text())
    values = {
        sample.name: sample.value
        for family in families
        for sample in family.samples
        if sample.labels == {"service": "web"}
    }
    assert values["synplug_held_connections_total"] == report["hold"]["held"]
    assert values["synplug_last_success_timestamp_seconds"] == report["started_at"]


def test_a_log_or_hook_that_is_not_there_restarts_nothing(
    lab: ClientServer, simple: SimpleService, tmp_path: Path
) -> None:
    pid = simple.pid
    for option in (["--log", str(tmp_path / "none" / "x")], ["--on-event", "no-such-program"]):
        done = shell.run(lab.server, "wrap", "-p", "8080", *option, "--", *simple.restart_argv())
        assert done.status in (125, 127), done
        assert simple.pid == pid
    # The control: one that fails later changes nothing of the restart.
    done = shell.run(
        lab.server, "wrap", "-p", "8080", "--on-event", "false", "--", *simple.restart_argv()
    )
    assert done.status == 0, done
    assert "--on-event: ended with status 1" in done.stderr
