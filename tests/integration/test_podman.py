"""A published port of a real podman: its container is replaced by another one under load.

The engine runs in the server's network namespace, with storage and control groups of its own. The
image is a folder with busybox.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from netlab.load import Load
from netlab.load_result import LoadResult
from netlab.program import wait_until
from netlab.snapshot import NetworkState
from netlab.topology import ClientServer
from tests.document_blocks import block
from tests.integration.connect import connects_within

BIN = Path(sys.executable).parent
RATE_PER_S = 100
PUBLISHED = 8080
#: crun refuses a hybrid of both versions of control groups; hard limits may be lower than podman's.
_CONFIGURATION = """\
[containers]
cgroups = "disabled"
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
"""
_STORAGE = '[storage]\ndriver = "vfs"\nrunroot = "{0}/run"\ngraphroot = "{0}/graph"\n'
#: Starts slowly; ends at once.
_SERVER = "trap exit TERM; sleep 0.3; httpd -p 8081 -h /srv; while :; do sleep 1 & wait; done"


@dataclass(frozen=True, kw_only=True)
class Podman:
    """The engine, on the server; and the folder in which the operator stands."""

    lab: ClientServer
    folder: Path
    environ: dict[str, str]

    def run(self, text: str) -> subprocess.CompletedProcess[str]:
        """What the operator types."""
        return self.lab.server.run(
            ["sh", "-e", "-c", text], timeout_s=60, env=self.environ, cwd=self.folder
        )

    @property
    def address(self) -> str:
        """Of the container."""
        show = "podman inspect -f '{{.NetworkSettings.IPAddress}}' web"
        return self.run(show).stdout.strip()

    def answers(self) -> bool:
        """Whether the published port does."""
        return connects_within(self.lab.client, (self.lab.server_ipv4, PUBLISHED), 1.0)


@contextmanager
def mounted(*argv: str) -> Iterator[None]:
    """Something above what is there; the mount namespace is pytest's."""
    subprocess.run(["mount", *argv], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", argv[-1]], check=True)


@pytest.fixture
def podman(tmp_path: Path) -> Iterator[Podman]:
    if Path("/proc/self/uid_map").read_text().split()[2] == "1":
        pytest.skip("podman is run by root, outside of a user namespace")
    root = tmp_path / "root"
    for name in ("bin", "dev", "etc", "proc", "srv", "sys"):
        (root / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox, "netns-fixtures/setup.sh installs it"
    for name in ("sh", "sleep", "httpd"):
        shutil.copy(busybox, root / "bin" / name)
    for name in ("index.html", "health"):
        (root / "srv" / name).write_text("ok")
    configuration, storage = tmp_path / "containers.conf", tmp_path / "storage.conf"
    configuration.write_text(_CONFIGURATION)
    storage.write_text(_STORAGE.format(tmp_path))
    command = f"podman run -d --name web -p {PUBLISHED}:8081 --rootfs {root} /bin/sh -c '{_SERVER}'"
    (tmp_path / "start-web").write_text(f"#!/bin/sh\nexec {command}\n")
    (tmp_path / "replace-web").write_text(f"#!/bin/sh\npodman rm -f -t 1 web && exec {command}\n")
    for name in ("start-web", "replace-web"):
        (tmp_path / name).chmod(0o755)
    with ExitStack() as stack:
        stack.enter_context(mounted("-t", "tmpfs", "state", "/var/lib"))
        stack.enter_context(mounted("-t", "cgroup2", "groups", "/sys/fs/cgroup"))
        made = Podman(
            lab=stack.enter_context(ClientServer()),
            folder=tmp_path,
            environ=os.environ
            | {
                "PATH": f"{BIN}:{os.environ['PATH']}",
                "CONTAINERS_CONF": str(configuration),
                "CONTAINERS_STORAGE_CONF": str(storage),
            },
        )
        made.run("./start-web")
        stack.callback(made.run, "podman rm -f -t 1 web")
        wait_until(made.answers, 20, "the container answers")
        yield made


def under_load(podman: Podman, text: str, path: str) -> LoadResult:
    """What clients see of it, from outside or on the host itself."""
    client = podman.lab.client if path == "outside" else podman.lab.server
    targets = [(podman.lab.server_ipv4, PUBLISHED)]
    with Load(client, targets, rate_per_s=RATE_PER_S) as load:
        podman.run(text)
        wait_until(podman.answers, 20, "the new container answers")
        return load.stop()


@pytest.mark.parametrize(
    ("page", "path"), [("docs/containers.md", "outside"), ("docs/recipes.md", "host")]
)
def test_nobody_notices_that_podman_has_made_another_one(
    podman: Podman, page: str, path: str
) -> None:
    """As the page has it."""
    text = block(page, "podman inspect")
    assert "http://192.0.2.10:8080/" in text
    text = text.replace("192.0.2.10", podman.lab.server_ipv4)
    before, address = NetworkState.capture(podman.lab.server), podman.address
    result = under_load(podman, text, path)
    assert result.failures == 0, result.summary()
    assert podman.address != address, "it is another one, elsewhere"
    left = before.difference(NetworkState.capture(podman.lab.server))
    assert [line for line in left if "synplug" in line] == []


@pytest.mark.parametrize("path", ["outside", "host"])
def test_without_synplug_connections_are_lost(podman: Podman, path: str) -> None:
    """The control."""
    result = under_load(podman, "./replace-web", path)
    assert result.failures > RATE_PER_S * 0.3 / 2, result.summary()
