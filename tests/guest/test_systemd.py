"""Under a real systemd, as PID 1 of a guest: its restarts and reloads of a unit, and ours of them.

synplug is the wheel, installed as an operator would; the units are restarted under load.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from guest.systemd import SYNPLUG
from netlab.errors import NotReadyError
from netlab.load import Load
from netlab.load_result import LoadResult
from netlab.program import wait_until
from netlab.snapshot import NetworkState
from netlab.topology import Namespace
from tests.document_blocks import block
from tests.guest.services import (
    ADDRESSES,
    UNITS,
    Services,
    client_of,
    configure,
    configure_envoy,
    install,
    shown,
    systemctl,
)

pytestmark = pytest.mark.systemd

SHIPPED = Path(__file__).parents[2] / "integrations" / "systemd"
#: So few that a processor bears them that is emulated, and shared with other tests.
RATE_PER_S = 20
#: How long a restart may take there.
HOLD = "--max-hold 60s"
PATIENCE_S = 180.0
#: A unit's own look at itself after its start; it fails where it is not answered.
CONNECTS = "/usr/bin/timeout 10 /bin/bash -c ': </dev/tcp/127.0.0.1/80'"
#: As docs/nginx.md has it; nginx alone, and in generations.
ALONE = "nginx -c /etc/nginx/web.conf -g 'daemon off; pid /run/web.pid;'"
PAGE = "integrations/systemd/README.md"
#: A service that its own reload restarts.
COLD = """\
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/sbin/nginx -c /etc/nginx/cold.conf -g 'pid /run/cold.pid;'
ExecReload=/bin/sh /etc/nginx/restart-cold
"""
_SERVER = Path(__file__).parents[2] / "netns-fixtures" / "servers" / "fd_service.py"
#: A service that takes its listeners by descriptor, where it is told that there are some.
BY_DESCRIPTOR = f"/usr/bin/python3 -S {_SERVER} --backlog 128 0.0.0.0 8082 :: 8082"
HANDED_ON = "Environment=SERVER_STARTER_PORT=0.0.0.0:8082=3;[::]:8082=4\n"
ACTIVATING = """\
[Socket]
ListenStream=0.0.0.0:8082
ListenStream=[::]:8082
BindIPv6Only=ipv6-only
Backlog=128
"""
RESTART_COLD = """\
pid=$(cat /run/cold.pid)
kill "$pid"
while [ -e "/proc/$pid" ]; do sleep 0.05; done
exec /usr/sbin/nginx -c /etc/nginx/cold.conf -g 'pid /run/cold.pid;'
"""


#: As the unit says: this kernel has no queue statement for nft.
BY_IPTABLES = "[Service]\nCapabilityBoundingSet=CAP_NET_RAW\n"


@pytest.fixture(scope="module")
def client() -> Iterator[Namespace]:
    with client_of(Services()) as made:
        yield made


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Afterwards nothing of synplug may be there; a guest is slow: it gets a moment to end."""
    services = Services()
    before = NetworkState.capture(services)
    yield

    def left() -> list[str]:
        return before.difference(NetworkState.capture(services))

    with suppress(NotReadyError):
        wait_until(lambda: not left(), 15, "all is as before")
    assert not left(), f"not as before: {left()}"


@pytest.fixture(scope="module")
def nginx() -> None:
    """Debian's own unit, with a configuration of ours."""
    configure("/etc/nginx/nginx.conf", 80)
    with Path("/etc/nginx/nginx.conf").open("a", encoding="utf-8") as file:
        file.write("pid /run/nginx.pid;\n")
    systemctl("start", "nginx")


@pytest.fixture
def drop_in(nginx: None) -> Iterator[str]:
    """What ``synplug systemd drop-in`` prints, put where it says."""
    place = UNITS / "nginx.service.d" / "synplug.conf"
    # Debian gives nginx five seconds to stop; a guest on a busy machine may need more for a Python
    own = f"[Service]\nTimeoutStopSec=60\nExecStartPost={CONNECTS}\n"
    install(place.with_name("guest.conf"), own)
    put(block(PAGE, "synplug systemd drop-in"), "nginx", HOLD)
    text = place.read_text()
    assert str(place) in text
    yield text
    shutil.rmtree(place.parent)
    systemctl("daemon-reload")


def put(text: str, unit: str, options: str) -> None:
    """Run the page's lines that put a drop-in in place, for this unit."""
    for there, here in (
        ("drop-in app ", f"drop-in {unit} {options} "),
        ("/app.service.d", f"/{unit}.service.d"),
    ):
        assert there in text
        text = text.replace(there, here)
    shell(text)


def shell(text: str, folder: Path = Path("/")) -> None:
    """Lines of a page, as they are typed."""
    argv = ["sh", "-e", "-c", text]
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=PATIENCE_S, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stdout + done.stderr


def under_load(client: Namespace, port: int, change: Callable[[], object]) -> LoadResult:
    """What clients see of a change."""
    targets = [(address, port) for address in ADDRESSES]
    with Load(client, targets, rate_per_s=RATE_PER_S, timeout_s=60) as load:
        change()
        result = load.stop()
    print(result.summary())
    return result


def synplug(*words: str) -> subprocess.CompletedProcess[str]:
    argv = ["synplug", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_its_own_restart_loses_connections(client: Namespace, nginx: None) -> None:
    """The control of the next two."""
    lost = under_load(client, 80, lambda: systemctl("restart", "nginx"))
    assert lost.failures > 0, "the control lost nothing: the test shows nothing"


def test_wrap_finds_the_units_ports_and_loses_nobody(
    client: Namespace, nginx: None, nothing_left: None
) -> None:
    python = subprocess.run([SYNPLUG / "bin/python", "--version"], capture_output=True, check=True)
    assert python.stdout.startswith(b"Python 3.13."), "trixie's"
    main = shown("nginx", "MainPID")
    restart = ["systemctl", "restart", "nginx"]
    said = []
    kept = under_load(
        client,
        80,
        lambda: said.append(synplug("wrap", "--json", "-", *HOLD.split(), "--", *restart)),
    )
    assert said[0].returncode == 0, said[0].stderr
    report = json.loads(said[0].stdout)
    assert report["endpoints"] == ["0.0.0.0:80", "[::]:80"]
    assert report["hold"]["held"] > 0
    assert kept.failures == 0, kept.summary()
    assert shown("nginx", "MainPID") != main


def test_with_the_drop_in_its_own_restart_loses_nobody(
    client: Namespace, drop_in: str, nothing_left: None
) -> None:
    main = shown("nginx", "MainPID")
    kept = under_load(client, 80, lambda: systemctl("restart", "nginx"))
    assert kept.failures == 0, kept.summary()
    assert shown("nginx", "MainPID") != main
    stops, posts = shown("nginx", "ExecStop"), shown("nginx", "ExecStartPost")
    assert stops.count("status=0") == 2, stops
    assert posts.count("status=0") == 2, posts


def test_with_the_drop_in_its_own_reload_loses_nobody(
    client: Namespace, nothing_left: None
) -> None:
    configure("/etc/nginx/cold.conf", 8081)
    Path("/etc/nginx/restart-cold").write_text(RESTART_COLD, encoding="utf-8")
    install(UNITS / "cold.service", COLD)
    systemctl("start", "cold")
    lost = under_load(client, 8081, lambda: systemctl("reload", "cold"))
    assert lost.failures > 0, "the control lost nothing: the test shows nothing"

    put(block(PAGE, "synplug systemd drop-in"), "cold", f"--reload {HOLD}")
    pid = Path("/run/cold.pid").read_text()
    kept = under_load(client, 8081, lambda: systemctl("reload", "cold"))
    assert kept.failures == 0, kept.summary()
    assert Path("/run/cold.pid").read_text() != pid
    reload = shown("cold", "ExecReload")
    assert "synplug wrap" in reload, reload
    assert reload.count("status=0") == 1, reload
    systemctl("stop", "cold")


def test_a_reload_of_generations_loses_nobody(client: Namespace, nothing_left: None) -> None:
    configure("/etc/nginx/web.conf", 8080, "reuseport")
    install(UNITS / "alone.service", f"[Service]\nExecStart={ALONE}\n")
    systemctl("start", "alone")
    lost = under_load(client, 8080, lambda: systemctl("restart", "alone"))
    systemctl("stop", "alone")
    assert lost.failures > 0, "the control lost nothing: the test shows nothing"

    install(UNITS / "web.service", block(PAGE, "Type=notify-reload"))
    systemctl("start", "web")
    assert shown("web", "StatusText") == "generation 1 serves"
    kept = under_load(client, 8080, lambda: systemctl("reload", "web"))
    assert shown("web", "StatusText") == "generation 2 serves"
    assert kept.failures == 0, kept.summary()
    systemctl("stop", "web")
    assert shown("web", "Result") == "success"


def test_a_reload_of_envoy_loses_nobody(client: Namespace, nothing_left: None) -> None:
    """The page's line, of the unit that it is about; test_supervise_envoy.py has a real Envoy."""
    configure_envoy(8083)
    shutil.copy(SHIPPED / "envoy.service", UNITS)
    install(UNITS / "envoy.service.d" / "guest.conf", BY_IPTABLES)
    for tool in ("iptables-legacy-save", "ip6tables-legacy-save"):
        Services().run([tool, "-t", "mangle"])  # loads the modules, which the unit may not
    systemctl("start", "envoy")
    lost = under_load(client, 8083, lambda: systemctl("restart", "envoy"))
    assert lost.failures > 0, "the control lost nothing: the test shows nothing"

    kept = under_load(client, 8083, lambda: shell(block("docs/envoy.md", "systemctl reload")))
    assert shown("envoy", "StatusText") == "generation 2 serves"
    assert kept.failures == 0, kept.summary()
    systemctl("stop", "envoy")
    assert shown("envoy", "Result") == "success"


def test_socket_activation_loses_nobody_without_synplug(client: Namespace) -> None:
    """What docs/comparison.md says of it; the same service with listeners of its own does."""
    install(UNITS / "own.service", f"[Service]\nExecStart={BY_DESCRIPTOR}\n")
    systemctl("start", "own")
    lost = under_load(client, 8082, lambda: systemctl("restart", "own"))
    systemctl("stop", "own")
    assert lost.failures > 0, "the control lost nothing: the test shows nothing"

    install(UNITS / "activated.socket", ACTIVATING)
    install(UNITS / "activated.service", f"[Service]\nExecStart={BY_DESCRIPTOR}\n{HANDED_ON}")
    systemctl("start", "activated.socket")
    kept = under_load(client, 8082, lambda: systemctl("restart", "activated"))
    assert kept.failures == 0, kept.summary()
    systemctl("stop", "activated.socket", "activated")


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.service")), ids=lambda path: path.stem)
def test_the_shipped_unit_is_verified(path: Path) -> None:
    shutil.copy(path, UNITS)
    argv = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", path.name]
    said = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (said.returncode, said.stderr) == (0, "")


def test_the_shipped_unit_recovers_with_the_privileges_that_it_has(nothing_left: None) -> None:
    shell(block(PAGE, "systemctl enable"), SHIPPED)
    assert (UNITS / "sysinit.target.wants" / "synplug-recover.service").is_symlink()
    assert synplug("hold", "--name", "killed", "-p", "9", "--max-hold", "60s").returncode == 0
    lines = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in Services().pids()}
    left = [pid for pid, line in lines.items() if b"/synplug\0hold\0" in line]
    for number in (signal.SIGSTOP, signal.SIGKILL):  # no one is to clean up after another
        for pid in left:
            os.kill(pid, number)
    save = ["iptables-legacy-save", "-t", "mangle"]
    assert "NFQUEUE" in Services().run(save).stdout
    systemctl("start", "synplug-recover")
    assert "NFQUEUE" not in Services().run(save).stdout
