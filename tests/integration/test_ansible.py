"""The Ansible collection, as it is built and installed, with network namespaces as its hosts.

Each host has a HAProxy of its own, under load. ansible-core runs in .venv-ansible; a host's Python
is a script that enters its namespace.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest

from netlab.load import Load
from netlab.load_result import LoadResult
from netlab.servers import HAProxy
from netlab.snapshot import NetworkState
from netlab.topology import ClientServer
from synplug.cli.options import parser
from tests.document_blocks import block

ROOT = Path(__file__).parents[2]
COLLECTION = ROOT / "integrations" / "ansible"
BIN = ROOT / ".venv-ansible" / "bin"
SYNPLUG = str(Path(sys.executable).with_name("synplug"))
#: Checks that need nothing from the network.
SANITY = ["shebang", "line-endings", "no-assert", "no-smart-quotes", "symlinks"]
#: A play that means the machine's own files after all shall fail. What synplug keeps of changes
#: goes to a folder that is named.
READ_ONLY = [
    *("unshare", "-m", "--propagation", "private", "sh", "-c"),
    'mount --bind "$0" /var/lib\n'
    "for d in /etc /usr /opt; do mount --bind $d $d && mount -o remount,bind,ro $d || exit; done\n"
    'exec "$@"',
]


@dataclass(frozen=True, kw_only=True)
class Ansible:
    """ansible-core with the built collection, and a directory for its files."""

    folder: Path
    state: Path
    environ: dict[str, str]

    @property
    def collection(self) -> Path:
        """Where the collection is installed."""
        return self.folder / "collections" / "ansible_collections" / "synplug" / "ops"

    def run(self, *argv: str, timeout_s: float = 120, cwd: Path | None = None) -> str:
        """Run a command of Ansible's; what it says."""
        done = self.attempt(*argv, timeout_s=timeout_s, cwd=cwd)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def attempt(
        self, *argv: str, timeout_s: float = 120, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """The same, whatever comes of it."""
        return subprocess.run(
            [*READ_ONLY, str(self.state), str(BIN / argv[0]), *argv[1:]],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            env=self.environ,
            cwd=cwd or self.folder,
            stdin=subprocess.DEVNULL,
        )

    def play(self, *argv: str) -> tuple[int, dict[str, Any]]:
        """Run a playbook; its status, and what its JSON callback says."""
        done = self.attempt("ansible-playbook", *argv)
        assert done.stdout.lstrip().startswith("{"), done.stdout + done.stderr
        said: dict[str, Any] = json.loads(done.stdout)
        return done.returncode, said


@pytest.fixture(scope="module")
def ansible(tmp_path_factory: pytest.TempPathFactory) -> Ansible:
    """The collection, built by ansible-galaxy and installed from its archive."""
    folder = tmp_path_factory.mktemp("ansible")
    environ = {name: text for name, text in os.environ.items() if "ANSIBLE" not in name}
    state = folder / "state"
    state.mkdir()
    made = Ansible(
        folder=folder,
        state=state,
        environ=environ
        | {
            "PATH": f"{BIN}:{folder}:{Path(SYNPLUG).parent}:{environ['PATH']}",
            "HOME": str(folder),
            "ANSIBLE_COLLECTIONS_PATH": str(folder / "collections"),
            "ANSIBLE_STDOUT_CALLBACK": "json_results",
            "ANSIBLE_CALLBACK_PLUGINS": str(
                Path(__file__).parent / "programs" / "ansible_callbacks"
            ),
            "ANSIBLE_LOCALHOST_WARNING": "false",
            "ANSIBLE_FORKS": "3",
            "LC_ALL": "C.UTF-8",
        },
    )
    (folder / "integrations").symlink_to(COLLECTION.parent)
    for line in block("integrations/ansible/README.md", "ansible-galaxy").splitlines():
        made.run(*shlex.split(line))
    return made


@dataclass(frozen=True, kw_only=True)
class Host:
    """A network namespace with a HAProxy, and a client of its own."""

    name: str
    lab: ClientServer
    haproxy: HAProxy

    @property
    def configuration(self) -> Path:
        """What its HAProxy reads."""
        return self.haproxy.directory / "haproxy.cfg"


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    """Three hosts, that must be left as they were found."""
    with ExitStack() as stack:
        made, before = [], []
        for name in ("web1", "web2", "web3"):
            lab = stack.enter_context(ClientServer())
            before.append(NetworkState.capture(lab.server))
            haproxy = stack.enter_context(HAProxy(lab.server))
            made.append(Host(name=name, lab=lab, haproxy=haproxy))
        yield made
        for host in made:
            host.haproxy.stop()
        for host, state in zip(made, before, strict=True):
            left = state.difference(NetworkState.capture(host.lab.server))
            assert not left, f"{host.name} is not as before: {left}"


@pytest.fixture
def inventory(hosts: list[Host], tmp_path: Path) -> Path:
    """The hosts, for Ansible."""
    found = {}
    for host in hosts:
        python = tmp_path / f"python-{host.name}"
        enter = " ".join(host.lab.server.command([sys.executable]))
        python.write_text(f'#!/bin/sh\nexec {enter} "$@"\n')
        python.chmod(0o755)
        found[host.name] = {
            "ansible_connection": "local",
            "ansible_python_interpreter": str(python),
            "ansible_remote_tmp": str(tmp_path / f"tmp-{host.name}"),
            "haproxy_configuration": str(host.configuration),
            "haproxy_restart": host.haproxy.restart_argv,
            "haproxy_ports": list(host.haproxy.ports),
            "haproxy_become": False,
            "haproxy_source": str(tmp_path / "new.cfg"),
            "synplug_executable": SYNPLUG,
        }
    path = tmp_path / "inventory.json"
    path.write_text(json.dumps({"web": {"hosts": found}}))
    return path


def new_configuration(hosts: list[Host], tmp_path: Path, addition: str) -> Path:
    """A configuration for all hosts: what the first one has, and some more. Paths are shared."""
    path = tmp_path / "new.cfg"
    path.write_text(hosts[0].configuration.read_text() + addition)
    return path


def example(tmp_path: Path) -> Path:
    """examples/haproxy.yml, as it stands but for where synplug is."""
    text = (COLLECTION / "examples" / "haproxy.yml").read_text()
    marker = "      synplug.ops.restart:\n"
    assert text.count(marker) == 1
    path = tmp_path / "play.yml"
    path.write_text(text.replace(marker, f"{marker}        executable: {SYNPLUG}\n"))
    return path


def under_load(hosts: list[Host], play: Any) -> tuple[Any, dict[str, LoadResult]]:
    """Clients of every host, while a play runs."""
    with ExitStack() as stack:
        loads = {
            host.name: stack.enter_context(
                Load(
                    host.lab.client,
                    host.haproxy.targets(host.lab.server_addresses),
                    rate_per_s=200,
                )
            )
            for host in hosts
        }
        outcome = play()
        return outcome, {name: load.stop() for name, load in loads.items()}


def results_of(said: dict[str, Any], task: str) -> dict[str, dict[str, Any]]:
    """What a task came to on each host."""
    return {
        host: result
        for play in said["plays"]
        for found in play["tasks"]
        if found["name"] == task
        for host, result in found["hosts"].items()
    }


def test_a_new_configuration_rolls_over_all_hosts_and_nobody_notices(
    ansible: Ansible, hosts: list[Host], inventory: Path, tmp_path: Path
) -> None:
    play = example(tmp_path)
    source = new_configuration(hosts, tmp_path, "\n# the second one\n")
    words = ("-i", str(inventory), str(play))
    pids = {host.name: host.haproxy.pids for host in hosts}

    (status, said), loads = under_load(hosts, lambda: ansible.play(*words))
    assert status == 0, json.dumps(said)
    restarted = results_of(said, "Restart HAProxy")
    for host in hosts:
        assert loads[host.name].failures == 0, loads[host.name].summary()
        assert host.haproxy.pids != pids[host.name], json.dumps(said)
        assert host.configuration.read_text() == source.read_text()
        result = restarted[host.name]
        assert (result["changed"], result["rc"], result["lost"]) == (True, 0, 0)
        assert result["report"]["hold"]["held"] > 0
    starts = [restarted[host.name]["report"]["started_at"] for host in hosts]
    assert starts == sorted(starts), "one after the other"

    # The same play again: nothing has changed, nothing is restarted.
    pids = {host.name: host.haproxy.pids for host in hosts}
    status, said = ansible.play(*words)
    assert status == 0, json.dumps(said)
    assert not any(result["changed"] for result in results_of(said, "Restart HAProxy").values())
    assert {host.name: host.haproxy.pids for host in hosts} == pids


def test_the_same_roll_without_synplug_loses(
    ansible: Ansible, hosts: list[Host], inventory: Path, tmp_path: Path
) -> None:
    """The control: the handler calls the restart command itself."""
    play = example(tmp_path)
    text = play.read_text()
    start = text.index("      synplug.ops.restart:")
    play.write_text(
        text[:start] + "      ansible.builtin.command:\n        argv: '{{ haproxy_restart }}'\n"
    )
    new_configuration(hosts, tmp_path, "\n# the second one\n")
    words = ("-i", str(inventory), "--limit", "web1", str(play))
    (status, _), loads = under_load(hosts[:1], lambda: ansible.play(*words))
    assert status == 0
    assert all(load.failures > 0 for load in loads.values())


def test_a_broken_configuration_stops_the_roll_at_the_first_host_again_and_again(
    ansible: Ansible, hosts: list[Host], inventory: Path, tmp_path: Path
) -> None:
    """It is put in place nowhere: a second play does not find it there, and go on."""
    new_configuration(hosts, tmp_path, "\nnonsense\n")
    words = ("-i", str(inventory), str(example(tmp_path)))
    pids = {host.name: host.haproxy.pids for host in hosts}
    texts = {host.name: host.configuration.read_text() for host in hosts}

    def twice() -> list[tuple[int, dict[str, Any]]]:
        return [ansible.play(*words) for _ in range(2)]

    plays, loads = under_load(hosts, twice)
    for status, said in plays:
        assert status != 0
        (host,) = results_of(said, "Configuration").items()
        assert host[0] == "web1"
        assert "failed to validate" in host[1]["msg"]
    assert {host.name: host.haproxy.pids for host in hosts} == pids, "nobody was restarted"
    assert {host.name: host.configuration.read_text() for host in hosts} == texts
    assert all(load.failures == 0 for load in loads.values())


def test_a_configuration_that_only_the_restart_s_check_refuses(
    ansible: Ansible, hosts: list[Host], inventory: Path, tmp_path: Path
) -> None:
    """Its --check fails: that host serves on by the old process, the others are untouched."""
    new_configuration(hosts, tmp_path, "\nnonsense\n")
    play = example(tmp_path)
    validate = "        validate: haproxy -c -q -f %s\n"
    assert play.read_text().count(validate) == 1
    play.write_text(play.read_text().replace(validate, ""))
    pids = {host.name: host.haproxy.pids for host in hosts}
    texts = {host.name: host.configuration.read_text() for host in hosts}
    (status, said), loads = under_load(hosts, lambda: ansible.play("-i", str(inventory), str(play)))
    assert status != 0
    (host,) = results_of(said, "Restart HAProxy").items()
    assert host[0] == "web1"
    assert "--check ended with status 1" in host[1]["msg"]
    assert (host[1]["rc"], host[1]["changed"]) == (125, False)
    assert {host.name: host.haproxy.pids for host in hosts} == pids, "nobody was restarted"
    for other in hosts[1:]:
        assert other.configuration.read_text() == texts[other.name], "nor written to"
    assert all(load.failures == 0 for load in loads.values())


def test_a_version_that_does_not_start_stops_the_roll_too(
    ansible: Ansible, hosts: list[Host], inventory: Path, tmp_path: Path
) -> None:
    """No check sees it: the first host is down, as it would be without synplug; no other one is."""
    broken = tmp_path / "restart"
    broken.write_text(f"#!/bin/sh\n{hosts[0].haproxy.directory}/stop\nexit 7\n")
    broken.chmod(0o755)
    new_configuration(hosts, tmp_path, "\n# the second one\n")
    pids = {host.name: host.haproxy.pids for host in hosts[1:]}
    status, said = ansible.play(
        "-i", str(inventory),
        "-e", json.dumps({"haproxy_restart": [str(broken)]}), str(example(tmp_path)),
    )  # fmt: skip
    assert status != 0
    restarted = results_of(said, "Restart HAProxy")
    assert restarted.keys() == {"web1"}
    assert (restarted["web1"]["rc"], restarted["web1"]["changed"]) == (7, True)
    assert restarted["web1"]["report"]["outcome"] == "command-failed"
    assert {host.name: host.haproxy.pids for host in hosts[1:]} == pids


def test_a_restart_that_failed_is_tried_again_by_the_next_play(
    ansible: Ansible, hosts: list[Host], inventory: Path, tmp_path: Path
) -> None:
    """Although the configuration is in place by then; and once it has succeeded, no more."""
    told = _restarts_of_three_plays(ansible, hosts[0], inventory, tmp_path, example(tmp_path))
    assert [(one["rc"], one["changed"]) for one in told] == [(7, True), (0, True), (0, False)]


def test_a_configuration_that_is_put_back_after_a_failed_restart_is_restarted(
    ansible: Ansible, hosts: list[Host], inventory: Path, tmp_path: Path
) -> None:
    """The host may be down since, although the file is what it was at the last success."""
    host, command = hosts[0], tmp_path / "restart"
    words = shlex.join(host.haproxy.restart_argv)
    command.write_text(f"#!/bin/sh\ngrep -q worse {host.configuration} && exit 7\nexec {words}\n")
    command.chmod(0o755)
    source = new_configuration([host], tmp_path, "\n# the second one\n")
    better = source.read_text()
    variables = json.dumps({"haproxy_restart": [str(command)]})
    told = []
    for text in (better, f"{better}# worse\n", better, better):
        source.write_text(text)
        _, said = ansible.play(
            "-i", str(inventory), "--limit", host.name, "-e", variables, str(example(tmp_path))
        )
        told.append(results_of(said, "Restart HAProxy")[host.name])
    came = [(one["rc"], one["changed"]) for one in told]
    assert came == [(0, True), (7, True), (0, True), (0, False)]


def test_a_handler_is_not_notified_again(
    ansible: Ansible, hosts: list[Host], inventory: Path, tmp_path: Path
) -> None:
    """The control: what the example and its README warn of."""
    play = example(tmp_path)
    lines = play.read_text().splitlines(keepends=True)
    (at,) = [number for number, line in enumerate(lines) if "- name: Restart HAProxy" in line]
    lines[at:at] = ["      notify: Restart HAProxy\n", "  handlers:\n"]
    play.write_text("".join(line for line in lines if "only_if_changed" not in line))
    told = _restarts_of_three_plays(ansible, hosts[0], inventory, tmp_path, play)
    assert [one.get("rc") for one in told] == [7, None, None]


def _restarts_of_three_plays(
    ansible: Ansible, host: Host, inventory: Path, folder: Path, play: Path
) -> list[dict[str, Any]]:
    """What the restart of a new configuration comes to; it works from the second play on."""
    command, works = folder / "restart", folder / "works"
    words = shlex.join(host.haproxy.restart_argv)
    command.write_text(f"#!/bin/sh\n[ -e {works} ] || exit 7\nexec {words}\n")
    command.chmod(0o755)
    new_configuration([host], folder, "\n# the second one\n")
    variables = json.dumps({"haproxy_restart": [str(command)]})
    told = []
    for expected in (False, True, True):
        status, said = ansible.play(
            "-i", str(inventory), "--limit", host.name, "-e", variables, str(play)
        )
        assert (status == 0) == expected, json.dumps(said)
        told.append(results_of(said, "Restart HAProxy").get(host.name, {}))
        works.touch()
    return told


@pytest.fixture
def unit(ansible: Ansible, hosts: list[Host]) -> Iterator[HAProxy]:
    """The unit of the pages, on the first host; systemctl is a stand-in, which knows no other one.

    With ``broken`` in Ansible's folder it is stopped, and does not come up.
    """
    stand_in, pidfile = ansible.folder / "systemctl", Path("/run/haproxy.pid")
    with HAProxy(hosts[0].lab.server, ports=(80, 443)) as haproxy, ExitStack() as stack:
        stop, start = shlex.join(haproxy.stop_argv), shlex.join(haproxy.start_argv)
        stand_in.write_text(
            f'#!/bin/sh\n[ "$*" = "restart haproxy" ] || exit 5\n{stop}\n'
            f"[ ! -e {ansible.folder}/broken ] || exit 1\nexec {start}\n"
        )
        stand_in.chmod(0o755)
        stack.callback(stand_in.unlink)
        pidfile.symlink_to(haproxy.pidfile)
        stack.callback(pidfile.unlink)
        stack.callback(shutil.rmtree, ansible.state / "synplug", ignore_errors=True)
        yield haproxy


def page_s_play(page: str, part: str, folder: Path, head: str = "") -> Path:
    """A play with the block of a page, as it stands there."""
    text = block(page, part)
    if not re.match(r"\w+:\n", text):
        text = "tasks:\n" + indent(text, "  ")
    path = folder / "page.yml"
    path.write_text(f"- hosts: web1\n  gather_facts: false\n{head}" + indent(text, "  "))
    return path


def played(ansible: Ansible, inventory: Path, play: Path) -> dict[str, Any]:
    """What the one restart of a play came to; empty where there was none."""
    words = ("-i", str(inventory), "-e", "ansible_become=false", str(play))
    status, said = ansible.play(*words)
    (name,) = re.findall(r"- name: (Restart .*)", play.read_text())
    told = results_of(said, name).get("web1", {})
    assert bool(status) == bool(told.get("rc")), json.dumps(said)
    return told


PAGES_WITH_TASKS = pytest.mark.parametrize(
    ("page", "part"),
    [
        ("docs/recipes.md", "synplug.ops.restart"),
        ("integrations/ansible/README.md", "only_if_changed:"),
    ],
    ids=["recipes", "readme"],
)


@PAGES_WITH_TASKS
def test_the_tasks_of_the_pages_restart_a_unit(
    ansible: Ansible,
    hosts: list[Host],
    unit: HAProxy,
    inventory: Path,
    tmp_path: Path,
    page: str,
    part: str,
) -> None:
    play, pids, host = page_s_play(page, part, tmp_path), unit.pids, hosts[0]
    with Load(host.lab.client, unit.targets(host.lab.server_addresses), rate_per_s=200) as load:
        told = [played(ansible, inventory, play) for _ in range(2)]
        result = load.stop()
    assert [one["changed"] for one in told] == [True, False], "the second finds it done"
    assert told[0]["report"]["endpoints"] == ["*:80", "*:443"]
    assert unit.pids != pids
    assert result.failures == 0, result.summary()


@PAGES_WITH_TASKS
def test_the_tasks_of_the_pages_start_a_unit_that_did_not_come_up(
    ansible: Ansible, unit: HAProxy, inventory: Path, tmp_path: Path, page: str, part: str
) -> None:
    """Once what was wrong is mended, the next play finds nobody on its ports, and starts it."""
    play, broken = page_s_play(page, part, tmp_path), ansible.folder / "broken"
    broken.touch()
    try:
        told = played(ansible, inventory, play)
    finally:
        broken.unlink()
    assert (told["rc"], told["changed"]) == (1, True)
    assert not unit.running

    # The control: nothing tells which ports those of a unit without processes are.
    text = play.read_text()
    play.write_text("".join(re.split(r" +port: .*\n", text)))
    told = played(ansible, inventory, play)
    assert (told["rc"], told["changed"]) == (125, False)
    assert "unit haproxy has no running process" in told["msg"]

    play.write_text(text)
    told = played(ansible, inventory, play)
    assert (told["rc"], told["changed"]) == (0, True)
    assert unit.running


def test_the_handler_of_the_page_restarts_a_unit_when_it_is_notified_and_never_again(
    ansible: Ansible, unit: HAProxy, inventory: Path, tmp_path: Path
) -> None:
    """As the page says of it: its restart fails once, and the next play notifies nobody."""
    copy = f"ansible.builtin.copy: {{content: new, dest: {tmp_path}/file}}"
    play = page_s_play(
        "integrations/ansible/README.md",
        "handlers:",
        tmp_path,
        f"  tasks:\n    - {copy}\n      notify: Restart haproxy\n",
    )
    broken = ansible.folder / "broken"
    broken.touch()
    try:
        told = played(ansible, inventory, play)
    finally:
        broken.unlink()
    assert (told["rc"], told["changed"]) == (1, True)
    assert played(ansible, inventory, play) == {}, "nobody is notified"
    assert not unit.running
    (tmp_path / "file").write_text("somebody's")
    told = played(ansible, inventory, play)
    assert (told["rc"], told["changed"]) == (0, True)
    assert unit.running


def test_check_mode_and_diff(
    ansible: Ansible, hosts: list[Host], inventory: Path, tmp_path: Path
) -> None:
    new_configuration(hosts, tmp_path, "\n# the second one\n")
    pids = {host.name: host.haproxy.pids for host in hosts}
    status, said = ansible.play(
        "--check", "--diff", "--limit", "web1", "-i", str(inventory),
        str(example(tmp_path)),
    )  # fmt: skip
    assert status == 0, json.dumps(said)
    for result in results_of(said, "Restart HAProxy").values():
        assert result["changed"] is True
        assert "hold new connections to *:8080" in result["plan"]
        assert result["diff"]["prepared"] == result["plan"]
    assert {host.name: host.haproxy.pids for host in hosts} == pids


def test_the_role_installs_and_the_rolling_play_restarts_what_it_configured(
    ansible: Ansible, hosts: list[Host], unit: HAProxy, inventory: Path, tmp_path: Path
) -> None:
    """By the wheel of this very tree, without a network; the page's play, but for its places."""
    ansible.run(
        "python", "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
        "--no-index", "--wheel-dir", str(tmp_path), str(ROOT),
    )  # fmt: skip
    (wheel,) = tmp_path.glob("synplug-*.whl")
    # pip would take a tree on Python's path for synplug installed
    plain = {name: text for name, text in ansible.environ.items() if name != "PYTHONPATH"}
    ansible = replace(ansible, environ=plain)
    there, text = tmp_path / "host", block("integrations/ansible/README.md", "synplug.ops.install")
    there.mkdir()
    assert f"src: {wheel.name}\n" in text
    assert f"synplug_package: /usr/local/src/{wheel.name}\n" in text
    play = tmp_path / "install.yml"
    play.write_text(text.replace("/usr/local/src", str(there)))
    variables = {
        "ansible_become": False,
        "synplug_pip_arguments": f"--no-index --find-links {ROOT}/.venv-ansible/wheels",
        "synplug_venv": str(there / "venv"),
        "synplug_venv_command": f"{sys.executable} -m venv",
        "synplug_link": str(there / "synplug"),
        "synplug_config_dir": str(there / "synplug.d"),
    }
    words = ("-i", str(inventory), "-l", "web1", "-e", json.dumps(variables), str(play))
    status, said = ansible.play("--check", *words)
    assert status == 0, json.dumps(said)
    assert said["stats"]["web1"]["changed"] == 5, "the wheel, and what the role makes"
    assert not list(there.iterdir()), "nothing was made"
    for changed in (5, 0):
        status, said = ansible.play(*words)
        assert status == 0, json.dumps(said)
        assert said["stats"]["web1"]["changed"] == changed, "the role is idempotent"

    rolling = {
        "synplug_hosts": "web1",
        "synplug_service": "haproxy",
        "synplug_become": False,
        "synplug_executable": str(there / "synplug"),
        "synplug_config": str(there / "synplug.d"),
    }
    lab, pids = hosts[0].lab, unit.pids
    with Load(lab.client, unit.targets(lab.server_addresses), rate_per_s=200) as load:
        status, said = ansible.play(
            "-i", str(inventory), "-e", json.dumps(rolling), "synplug.ops.rolling"
        )
        result = load.stop()
    assert status == 0, json.dumps(said)
    assert results_of(said, "Restart")["web1"]["report"]["hold"]["held"] > 0
    assert unit.pids != pids
    assert result.failures == 0, result.summary()


def test_the_role_installs_nothing_that_nobody_has_named(
    ansible: Ansible, inventory: Path, tmp_path: Path
) -> None:
    """The bare name would be what somebody else has registered."""
    play = tmp_path / "install.yml"
    play.write_text("- hosts: web1\n  gather_facts: false\n  roles:\n    - synplug.ops.install\n")
    done = ansible.attempt("ansible-playbook", "-i", str(inventory), str(play))
    assert done.returncode != 0
    assert "missing required arguments: synplug_package" in done.stdout + done.stderr


def test_its_documentation_and_sanity(ansible: Ansible) -> None:
    text = ansible.run("ansible-doc", "synplug.ops.restart")
    assert "Restart a service without losing a TCP connection" in text or "synplug wrap" in text
    tests = [word for name in SANITY for word in ("--test", name)]
    ansible.run("ansible-test", "sanity", *tests, cwd=ansible.collection)


#: What ``ansible-test sanity`` runs in environments of its own, which it would fetch.
CHECKERS = "lib/python3*/site-packages/ansible_test/_util/controller/sanity"


def checked(ansible: Ansible, collection: Path, tool: str, *words: str, text: str = "") -> Any:
    """What one of its tools says of a collection, as JSON."""
    (checkers,) = BIN.parent.glob(CHECKERS)
    done = subprocess.run(
        [BIN / "python", checkers / tool, *words],
        input=text, capture_output=True, text=True, check=False, timeout=60, cwd=collection,
        env=ansible.environ | {"ANSIBLE_COLLECTIONS_PATH": str(collection.parents[2])},
    )  # fmt: skip
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("there", "slip", "code"),
    [
        ("", "", ""),
        ("  max_held:\n", "  max_hold_packets:\n", "undocumented-parameter"),
        ("    choices: [drop, pass]\n", "    choices: [drop]\n", "doc-choices-do-not-match-spec"),
        ("(O(service)), a", "(O(servise)), a", "invalid-documentation-markup"),
        ("returned: in check mode", "returns: in check mode", "return-syntax-error"),
    ],
)
def test_its_documentation_is_of_the_arguments_that_it_has(
    ansible: Ansible, tmp_path: Path, there: str, slip: str, code: str
) -> None:
    """validate-modules; what it says without a slip is in tests/sanity, with the reason."""
    collection = tmp_path / "ansible_collections" / "synplug" / "ops"
    shutil.copytree(ansible.collection, collection)
    module = collection / "plugins" / "modules" / "restart.py"
    text = module.read_text()
    assert there in text, "the slip can be made"
    module.write_text(text.replace(there, slip, 1))
    words = ["--format=json", "--arg-spec", "--collection", "ansible_collections/synplug/ops"]
    name = "plugins/modules/restart.py"
    said = checked(ansible, collection, "validate-modules/validate.py", *words, name)[name]
    found = {error["code"] for error in said["errors"]} - {"missing-gplv3-license"}
    assert code in found if code else not found, said


#: A module's examples, as Ansible reads them: what is wrong with each, and its words for synplug.
EXAMPLES = """
import json, runpy, sys, yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
module = runpy.run_path(sys.argv[1])
validator = ArgumentSpecValidator(module["argument_spec"]())
for task in yaml.safe_load(module["EXAMPLES"]):
    result = validator.validate(task["synplug.ops.restart"])
    wrong = list(result.error_messages)
    words = [] if wrong else module["arguments_of"](result.validated_parameters)
    print(json.dumps([wrong, words]))
"""


@pytest.mark.parametrize("slip", ["", "only_if_changes"])
def test_its_examples_are_lines_that_synplug_takes(
    ansible: Ansible, tmp_path: Path, slip: str
) -> None:
    module = tmp_path / "restart.py"
    text = (ansible.collection / "plugins" / "modules" / "restart.py").read_text()
    option = "    only_if_changed: /etc"
    assert option in text
    module.write_text(text.replace(option, f"    {slip}: /etc" if slip else option))
    said = ansible.run("python", "-c", EXAMPLES, str(module)).splitlines()
    examples = list(map(json.loads, said))
    assert len(examples) > 2
    assert any(wrong for wrong, _ in examples) == bool(slip), examples
    for _, words in examples:
        given = words[: words.index("--")] if "--" in words else words
        assert parser().parse_args(["wrap", *given]).verb == "wrap"


def test_its_yaml_is_as_it_should_be(ansible: Ansible) -> None:
    """yamllint, with the rules of ``ansible-test``; the module's texts included."""
    module = ansible.collection / "plugins" / "modules" / "restart.py"
    paths = [*ansible.collection.rglob("*.yml"), module]
    text = "\n".join(str(path.relative_to(ansible.collection)) for path in paths)
    said = checked(ansible, ansible.collection, "yamllint/yamllinter.py", text=text)
    assert said == {"messages": []}
