"""The unit of docs/envoy.md, as it is written, with real Envoys of two versions under load."""

from __future__ import annotations

import re
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from string import Template

import pytest

from netlab.load import Load
from netlab.program import Program, wait_until
from netlab.servers.envoy import VERSIONS, envoy_binary
from netlab.topology import ClientServer
from tests.document_blocks import block
from tests.integration import shell
from tests.integration.connect import connects_within
from tests.integration.supervised import Manager

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "integrations" / "systemd" / "envoy.service"
PAGE = ROOT / "docs" / "envoy.md"
TEMPLATES = ROOT / "netns-fixtures" / "servers"
RATE_PER_S = 1000
#: Where nobody else's Envoys have their shared memory: base ids, each ten of these names.
BASE_ID, OTHER_BASE_ID = "4711", "4712"
SHARED_MEMORY = Path("/dev/shm")


class Installed:
    """Envoy as an operator has it: a program that upgrades replace, and a configuration."""

    def __init__(
        self,
        lab: ClientServer,
        folder: Path,
        *,
        name: str = "envoy",
        port: int = 8080,
        base_id: str = BASE_ID,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.lab = lab
        self.folder = folder
        self.name = name
        self.port = port
        self.base_id = base_id
        self.program = folder / "envoy"
        self.configuration = folder / "envoy.yaml"
        self.good = "static_resources:\n  listeners:\n" + "".join(
            _listener(number, address, port) for number, address in enumerate(("0.0.0.0", "::"))
        )
        self.install(VERSIONS[0])
        self.configuration.write_text(self.good)

    def install(self, version: str) -> None:
        """From now on the program is of this version."""
        draft = self.folder / "envoy.new"
        draft.symlink_to(envoy_binary(version))
        draft.rename(self.program)

    def argv(self) -> list[str]:
        """What the unit starts, with this folder in the place of the system's."""
        (line,) = re.findall(r"^ExecStart=((?:.*\\\n)*.*)$", UNIT.read_text(), re.MULTILINE)
        synplug, *words = self.here(
            line, {"/usr/bin/envoy": str(self.program), "--base-id 17{": "--base-id {"}
        )
        assert synplug == "/usr/local/bin/synplug"
        return [*_with_capabilities(), *shell.SYNPLUG, *words]

    def here(self, line: str, replaced: dict[str, str]) -> list[str]:
        """The words of a line, with what stands here for what it names."""
        for there, own in (
            *replaced.items(),
            ("/etc/envoy/envoy.yaml", str(self.configuration)),
            ("/run/envoy", str(self.folder)),
            ("--name envoy", f"--name {self.name}"),
            ("--base-id {generation}", f"--base-id {self.base_id}{{generation}} --log-level error"),
        ):
            assert there in line, there
            line = line.replace(there, own)
        return shlex.split(line.replace("\\\n", " ").replace("--linger 60s", "--linger 5s"))

    def supervisor(self, manager: Manager) -> Program:
        """The unit's main process, to be started."""
        return Program(
            self.lab.server,
            self.argv(),
            env={"NOTIFY_SOCKET": str(manager.path), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            ready=lambda: "READY" in manager.states(),
            deadline_s=20,
        )

    def versions(self) -> list[str]:
        """Those of the Envoys that run in the namespace."""
        links = []
        for pid in self.lab.server.pids():
            try:
                links.append(Path(f"/proc/{pid}/exe").readlink())
            except OSError:
                continue
        return [version for link in links for version in VERSIONS if f"/{version}/" in str(link)]

    def wait_for(self, version: str) -> None:
        """Wait until the only one that runs is of this version."""
        wait_until(lambda: self.versions() == [version], 15, f"only {version} runs")


def _listener(number: int, address: str, port: int) -> str:
    template = Template((TEMPLATES / "envoy-listener.yaml").read_text())
    return template.substitute(number=number, address=address, port=port, backlog=1024)


def _with_capabilities() -> list[str]:
    """No more than the unit gives."""
    (line,) = re.findall(r"^CapabilityBoundingSet=(.*)$", UNIT.read_text(), re.MULTILINE)
    kept = "".join(f",+{name.removeprefix('CAP_').lower()}" for name in line.split())
    return ["setpriv", f"--bounding-set=-all{kept}", "--inh-caps=-all", "--no-new-privs", "--"]


@pytest.fixture
def envoy(lab: ClientServer, tmp_path: Path) -> Iterator[Installed]:
    yield Installed(lab, tmp_path)
    for base_id in (BASE_ID, OTHER_BASE_ID):
        for left in SHARED_MEMORY.glob(f"envoy_shared_memory_{base_id}*"):
            left.unlink()


def test_the_unit_swaps_versions_and_refuses_bad_ones(envoy: Installed, tmp_path: Path) -> None:
    lab, manager = envoy.lab, Manager(tmp_path / "notify")
    targets = [(address, 8080) for address in lab.server_addresses]
    supervisor = envoy.supervisor(manager)
    with supervisor:
        with Load(lab.client, targets, rate_per_s=RATE_PER_S) as load:
            for number in range(2, 6):
                version = VERSIONS[(number - 1) % 2]
                envoy.install(version)
                assert shell.run(lab.server, "reload", "envoy").status == 0, supervisor.output
                envoy.wait_for(version)
            envoy.configuration.write_text("static_resources: no such thing\n")
            failed = shell.run(lab.server, "reload", "envoy")
            assert failed.status == 125
            assert "--check ended with status" in failed.stderr
            envoy.configuration.write_text(envoy.good)
            assert shell.run(lab.server, "reload", "envoy").status == 0, supervisor.output
            result = load.stop()
        assert supervisor.end(signal.SIGTERM, deadline_s=15) == 0, supervisor.output
        print(result.summary(), re.findall(r"for (\d+ ms) by", supervisor.output))
    manager.close()
    assert result.failures == 0, result.summary()
    assert envoy.versions() == []
    assert manager.states() == ["READY", *["RELOADING", "READY"] * 6, "STOPPING"]


def test_the_readme_s_lines_swap_an_envoy(envoy: Installed) -> None:
    lab = envoy.lab
    text = block("README.md", "synplug supervise --name envoy")
    line, _, reload = text.rpartition("synplug reload ")
    words = envoy.here(line, {"    envoy -c": f"    {envoy.program} -c"})
    targets = [(address, 8080) for address in lab.server_addresses]
    supervisor = Program(
        lab.server,
        [*shell.SYNPLUG, *words[1:]],
        ready=lambda: connects_within(lab.client, (lab.server_ipv4, 8080), 1.0),
        deadline_s=20,
    )
    with supervisor:
        with Load(lab.client, targets, rate_per_s=RATE_PER_S) as load:
            envoy.install(VERSIONS[1])
            done = shell.run(lab.server, "reload", *shlex.split(reload, comments=True))
            result = load.stop()
        assert done.status == 0, (done, supervisor.output)
        assert VERSIONS[1] in envoy.versions()
        assert supervisor.end(signal.SIGTERM, deadline_s=15) == 0, supervisor.output
    assert result.failures == 0, result.summary()


def test_two_such_units_run_side_by_side(envoy: Installed, tmp_path: Path) -> None:
    """With base ids of their own; one that has the other's does not come up: the control."""
    lab = envoy.lab
    other = Installed(lab, tmp_path / "b", name="other", port=8081, base_id=OTHER_BASE_ID)
    same = Installed(lab, tmp_path / "c", name="same", port=8082)
    managers = [Manager(tmp_path / name) for name in ("notify", "other-notify")]
    with envoy.supervisor(managers[0]) as one, other.supervisor(managers[1]) as two:
        refused = shell.run_plainly(lab.server, same.argv(), timeout_s=20)
        assert refused.status == 1
        assert "base-id" in refused.stderr, refused
        for unit in (envoy, other, envoy):
            assert shell.run(lab.server, "reload", unit.name).status == 0, one.output + two.output
            for each in (envoy, other):
                assert connects_within(lab.client, (lab.server_ipv4, each.port), 2.0)
        for supervisor in (one, two):
            assert supervisor.end(signal.SIGTERM, deadline_s=15) == 0, supervisor.output
    for manager in managers:
        manager.close()
    assert envoy.versions() == []


def test_the_page_shows_the_unit_as_it_is() -> None:
    text = "\n".join(line for line in UNIT.read_text().splitlines() if not line.startswith("#"))
    command = text[text.index("ExecStart=") : text.index("KillMode=")]
    for line in command.strip().splitlines():
        assert line.strip() in PAGE.read_text(), line
