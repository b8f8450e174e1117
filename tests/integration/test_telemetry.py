"""A restart as the journal, Prometheus and a hook see it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from netlab.load import Load
from netlab.topology import ClientServer
from tests.document_blocks import block
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
mkdir -p /run/log && mount -t tmpfs log /run/log
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


#: One restart that goes well and one that does not, with what docs/observability.md has, at the
#: paths that it names; then the journal is asked as it says.
_PAGE = """
for folder in /var/log /var/lib /usr/local/bin; do mount -t tmpfs own "$folder"; done
mkdir -p /var/lib/prometheus/node-exporter
cp "$FOLDER/tell-the-team" "$FOLDER/mail" /usr/local/bin
chmod 755 /usr/local/bin/*
PATH=/usr/local/bin:$PATH
"$@" restart app -q
"$@" wrap -s app -q --require-new --max-hold 300ms -- true && exit 98
tries=0
until [ "$(journalctl -q -t synplug -o cat | wc -l)" -ge 4 ]; do
    tries=$((tries + 1)); [ $tries -lt 100 ] || exit 97; sleep 0.05
done
(@journalctl@) >"$FOLDER/asked"
cp /var/log/synplug.jsonl /var/lib/prometheus/node-exporter/synplug.prom "$FOLDER"
"""


def in_journald(
    lab: ClientServer, folder: Path, argv: list[str], environ: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run it beside a journald of its own, on the server."""
    script = ["unshare", "-m", "--propagation", "private", "sh", "-c", _JOURNALD, "sh"]
    variables = [f"{name}={value}" for name, value in environ.items()]
    return subprocess.run(
        lab.server.command(["env", *variables, *script, str(folder), *argv]),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_page_s_configuration_and_hook(
    lab: ClientServer, simple: SimpleService, tmp_path: Path
) -> None:
    page = "docs/observability.md"
    (tmp_path / "tell-the-team").write_text(block(page, "exec mail"))
    mails = tmp_path / "mails"
    (tmp_path / "mail").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{mails}; cat >{mails}.text\n')
    config = tmp_path / "synplug.toml"
    restart = json.dumps(simple.restart_argv("--delay", "0.2"))
    service = f"[service.app]\nport = 8080\nrestart = {restart}\n"
    config.write_text(block(page, "on-event =") + service)
    config.chmod(0o600)
    environ = {
        "JOURNAL": str(tmp_path / "journal"),
        "FOLDER": str(tmp_path),
        "SYNPLUG_CONFIG": str(config),
    }
    script = _PAGE.replace("@journalctl@", block(page, "journalctl"))
    done = in_journald(lab, tmp_path, ["sh", "-e", "-c", script, "sh", *shell.SYNPLUG], environ)
    assert done.returncode == 0, done
    lines = (tmp_path / "asked").read_text().splitlines()
    assert [": app: " in line for line in lines] == [True] * 5, "all of the service, and one"
    assert "app: deadline, exit 124" in lines[-1]
    assert mails.read_text().startswith("-s\nsynplug: deadline on "), "of the other one no mail"
    assert mails.read_text().endswith("\nteam@example.com\n")
    assert json.loads(Path(f"{mails}.text").read_text())["outcome"] == "deadline"
    assert len((tmp_path / "synplug.jsonl").read_text().splitlines()) == 4
    assert 'synplug_last_exit_code{service="app"} 124.0' in (tmp_path / "synplug.prom").read_text()


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
    words = ["restart", "web", "-q", "--config", str(config), "--json", str(tmp_path / "report")]
    with Load(lab.client, simple.targets(lab), rate_per_s=300) as load:
        environ = {"JOURNAL": str(journal)}
        done = in_journald(lab, tmp_path, [*shell.SYNPLUG, *words], environ)
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


def test_metrics_of_a_call_without_a_name_that_fails_succeeds_and_has_nothing_to_do(
    lab: ClientServer, simple: SimpleService, tmp_path: Path
) -> None:
    """All of them are the same service's, also where its endpoints could not be found."""
    metrics, configuration = tmp_path / "synplug.prom", tmp_path / "app.conf"
    state = f'mount --bind {tmp_path} /var/lib && exec "$@"'
    prefix = ["unshare", "-m", "--propagation", "private", "sh", "-c", state, "sh"]
    words = ["--metrics", str(metrics), "--only-if-changed", str(configuration)]
    words += ["--pidfile", str(simple.pidfile), "--", *simple.restart_argv()]

    def run() -> tuple[int, dict[str, float]]:
        done = shell.run_plainly(lab.server, [*prefix, *shell.SYNPLUG, "wrap", *words])
        families = text_string_to_metric_families(metrics.read_text())
        samples = [sample for family in families for sample in family.samples]
        assert {sample.labels["service"] for sample in samples} == {str(simple.pidfile)}
        return done.status, {
            sample.name.removeprefix("synplug_"): sample.value
            for sample in samples
            if sample.labels.keys() == {"service"}
        }

    configuration.write_text("1")
    away = simple.pidfile.rename(tmp_path / "away")
    status, values = run()
    assert status == values["last_exit_code"] == 125
    assert "last_check_timestamp_seconds" not in values
    away.rename(simple.pidfile)
    status, success = run()
    assert status == success["last_exit_code"] == 0
    began_s = success["last_success_timestamp_seconds"]
    assert success["last_check_timestamp_seconds"] == began_s
    configuration.unlink()
    status, values = run()
    assert status == values["last_exit_code"] == 125
    assert values["last_check_timestamp_seconds"] == began_s
    configuration.write_text("1")
    status, values = run()
    assert status == values["last_exit_code"] == 0, "nothing to do: all is as it was left"
    assert values["last_success_timestamp_seconds"] == began_s
    assert values["last_check_timestamp_seconds"] > began_s


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
