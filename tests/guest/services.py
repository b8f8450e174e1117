"""nginx as units of a real systemd, and clients beside it: what test_systemd.py works with."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from string import Template

from netlab.topology import Namespace, VethPair

UNITS = Path("/etc/systemd/system")
_ENVOY_LISTENER = Path(__file__).parents[2] / "netns-fixtures/servers/envoy-listener.yaml"
ADDRESSES = ("10.231.0.2", "fd23:1::2")
_OF_THE_CLIENT = ("10.231.0.1", "fd23:1::1")
_NGINX = """\
user root;
worker_processes 1;
events {{}}
http {{
    access_log off;
    default_type text/plain;
    server {{
        listen {port} {options};
        listen [::]:{port} {options};
        return 200 "ok";
    }}
}}
"""


class Services(Namespace):
    """The network namespace of PID 1 and its units: nobody's here to make or to delete."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "1"  # ip(8) takes a pid, too
        self.path = Path("/proc/1/ns/net")
        self.inode = self.path.stat().st_ino

    def __enter__(self) -> Services:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave it as it is."""


@contextmanager
def client_of(services: Services) -> Iterator[Namespace]:
    """A client on a wire to them."""
    with Namespace("client") as client, VethPair(client, services):
        for namespace, addresses in ((client, _OF_THE_CLIENT), (services, ADDRESSES)):
            for address, length in zip(addresses, ("24", "64"), strict=True):
                words = ["dev", "veth0", *(["nodad"] if ":" in address else [])]
                namespace.run(["ip", "address", "add", f"{address}/{length}", *words])
        yield client


def systemctl(*words: str, timeout_s: float = 180) -> str:
    """Ask the manager; what it says.

    :raises AssertionError: it failed; with its words, and the end of the journal.
    """
    done = _run(["systemctl", "--no-pager", *words], timeout_s)
    if done.returncode:
        journal = _run(["journalctl", "--no-pager", "--lines=30"], timeout_s).stdout
        raise AssertionError(f"systemctl {' '.join(words)}: {done.stderr}{done.stdout}\n{journal}")
    return done.stdout.strip()


def shown(unit: str, name: str) -> str:
    """A property of a unit."""
    return systemctl("show", f"--property={name}", "--value", unit)


def install(path: Path, text: str) -> None:
    """Write a unit or a drop-in, and have the manager read it."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    systemctl("daemon-reload")


def configure(path: str, port: int, options: str = "") -> None:
    """Write a configuration of nginx; its pid file and its manner stand on the command line."""
    Path(path).write_text(_NGINX.format(port=port, options=options), encoding="utf-8")


def configure_envoy(port: int) -> None:
    """Put what stands in for Envoy, and its configuration, where its unit has them."""
    shutil.copy(Path(__file__).with_name("envoy.py"), "/usr/bin/envoy")
    Path("/usr/bin/envoy").chmod(0o755)
    template = Template(_ENVOY_LISTENER.read_text(encoding="utf-8"))
    listeners = [
        template.substitute(number=number, address=address, port=port, backlog=128)
        for number, address in enumerate(("0.0.0.0", "::"))
    ]
    place = Path("/etc/envoy/envoy.yaml")
    place.parent.mkdir(exist_ok=True)
    text = "static_resources:\n  listeners:\n" + "".join(listeners)
    place.write_text(text, encoding="utf-8")


def _run(argv: list[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, check=False)
