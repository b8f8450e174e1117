"""A published port of a real podman: its container is replaced by another one under load.

The engine runs in the server's network namespace, with storage and control groups of its own. The
image has busybox, and a PID 1 that ignores SIGTERM. It is pulled from a file.
"""

from __future__ import annotations

import json
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
IMAGE = "registry.example.com/web"
PAGE = "docs/containers.md"
#: Starts slowly, and has no handler for SIGTERM.
_SERVER = "sleep 0.3; exec httpd -f -p 80 -h /srv"
#: As long as the hold, nearly: podman takes its second, and seconds of its own.
_PATIENCE_S = 9.0


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
    configuration, storage = tmp_path / "containers.conf", tmp_path / "storage.conf"
    configuration.write_text(_CONFIGURATION)
    storage.write_text(_STORAGE.format(tmp_path))
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
        make_image(made)
        made.run(block(PAGE, "podman rm -f"))
        made.run("./replace-web")  # there is none so far; podman says so, and it is no error
        stack.callback(made.run, "podman rm -f -t 0 web")
        wait_until(made.answers, 20, "the container answers")
        yield made


def make_image(podman: Podman) -> None:
    """A file to pull it from, and the first that there is."""
    root = podman.folder / "root"
    for name in ("bin", "srv"):
        (root / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox, "netns-fixtures/setup.sh installs it"
    shutil.copy(busybox, root / "bin" / "busybox")
    for name in ("sh", "sleep", "httpd"):
        (root / "bin" / name).symlink_to("busybox")
    for name in ("index.html", "health"):
        (root / "srv" / name).write_text("ok")
    command = json.dumps(["/bin/sh", "-c", _SERVER])
    podman.run(f"tar -C root -c . | podman import -c 'CMD {command}' - {IMAGE}")
    podman.run(f"podman save -q --format oci-archive -o web.tar {IMAGE}")


def under_load(podman: Podman, text: str, path: str) -> LoadResult:
    """What clients see of it, from outside or on the host itself."""
    client = podman.lab.client if path == "outside" else podman.lab.server
    targets = [(podman.lab.server_ipv4, PUBLISHED)]
    with Load(client, targets, rate_per_s=RATE_PER_S, timeout_s=_PATIENCE_S) as load:
        podman.run(text)
        wait_until(podman.answers, 20, "the new container answers")
        return load.stop()


@pytest.mark.parametrize(("page", "path"), [(PAGE, "outside"), ("docs/recipes.md", "host")])
def test_nobody_notices_that_podman_has_made_another_one(
    podman: Podman, page: str, path: str
) -> None:
    """As the page has it."""
    text = block(page, "podman inspect")
    assert "http://192.0.2.10:8080/" in text
    text = text.replace("192.0.2.10", podman.lab.server_ipv4)
    text = text.replace(f"podman pull {IMAGE}", "podman pull oci-archive:web.tar")
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
