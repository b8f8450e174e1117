"""The commands of docs/envoy.md, haproxy.md, nginx.md and gunicorn.md, with the real programs.

As they stand there, but for paths and ports. Under a light load, so that a recipe that loses
somebody does it here; how they bear a heavy one is for test_swap_load.py.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from netlab.load import Load
from netlab.program import Program, wait_until
from netlab.servers import Envoy, Gunicorn, HAProxy, Nginx, Service
from netlab.servers.envoy import VERSIONS, envoy_binary
from netlab.topology import ClientServer, Namespace
from tests.integration import shell
from tests.integration.conftest import SERVER

DOCS = Path(__file__).parents[2] / "docs"
RATE_PER_S = 100


@dataclass(frozen=True, kw_only=True)
class Page:
    """A program's page, and what stands here for what stands there."""

    name: str
    make: Callable[[Namespace], Service]
    replaced: Callable[[Service], dict[str, str]]

    def command(self, verb: str, service: Service) -> list[str]:
        """The one command of this verb."""
        text = (DOCS / f"{self.name}.md").read_text()
        (line,) = re.findall(rf"^synplug {verb} ((?:.*\\\n)*.*)$", text, re.MULTILINE)
        for there, here in self.replaced(service).items():
            line = line.replace(there, here)
        return [verb, *shlex.split(line.replace("\\\n", " "))]


def of_haproxy(service: Service) -> dict[str, str]:
    return {
        "/etc/haproxy/haproxy.cfg": str(service.directory / "haproxy.cfg"),
        "/run/haproxy.pid": str(service.pidfile),
    }


def of_nginx(service: Service) -> dict[str, str]:
    """The same configuration, without what the recipe has on its command line."""
    folder, text = service.directory, (service.directory / "nginx.conf").read_text()
    kept = [line for line in text.splitlines() if not line.startswith(("daemon ", "pid "))]
    (folder / "recipe.conf").write_text("\n".join(kept))
    return {
        "nginx -t": f"nginx -e {service.log} -t",
        "nginx -c": f"nginx -e {service.log} -c",
        "/etc/nginx/new.conf": str(folder / "recipe.conf"),
        "/etc/nginx/nginx.conf": str(folder / "recipe.conf"),
        "/run/nginx.pid": str(service.pidfile),
        "/run/nginx-": f"{folder}/own-",
    }


def of_gunicorn(service: Service) -> dict[str, str]:
    gunicorn = f"{sys.executable} -m gunicorn --chdir {service.directory}"
    return {
        "/srv/app-2/venv/bin/gunicorn": gunicorn,
        "/srv/app/venv/bin/gunicorn": gunicorn,
        "/run/app.pid": str(service.pidfile),
        "--bind 0.0.0.0:8000": "--bind 0.0.0.0:8080 --bind [::]:8080",
        "-p 8000": "-p 8080",
    }


def of_envoy(service: Service) -> dict[str, str]:
    text = (service.directory / "envoy-0.yaml").read_text()
    (service.directory / "recipe.yaml").write_text(text[text.index("static_resources:") :])
    return {
        "/usr/bin/envoy": str(envoy_binary(VERSIONS[1])),
        "/etc/envoy/envoy.yaml": str(service.directory / "recipe.yaml"),
        "/run/envoy/admin-old.sock": str(service.directory / "admin-0.sock"),
        "/run/envoy/": f"{service.directory}/",
        "/run/envoy.pid": str(service.pidfile),
    }


HAPROXY = Page(name="haproxy", make=HAProxy, replaced=of_haproxy)
NGINX = Page(name="nginx", make=lambda lab: Nginx(lab, reuseport=True), replaced=of_nginx)
GUNICORN = Page(
    name="gunicorn", make=lambda lab: Gunicorn(lab, reuseport=True), replaced=of_gunicorn
)
ENVOY = Page(name="envoy", make=Envoy, replaced=of_envoy)


@pytest.mark.parametrize("page", [ENVOY, HAPROXY, NGINX, GUNICORN], ids=lambda page: page.name)
def test_the_swap_of_the_page(lab: ClientServer, page: Page) -> None:
    with page.make(lab.server) as service:
        before = set(service.pids)
        argv = page.command("swap", service)
        with Load(lab.client, service.targets(lab.server_addresses), rate_per_s=RATE_PER_S) as load:
            status = shell.run_detached(lab.server, *argv, output=service.log)
            result = load.stop()
        assert status == 0, service.log.read_text()[-2000:]
        new = int(service.pidfile.read_text())
        assert new not in before
        wait_until(lambda: not before & set(lab.server.pids()), 10, "the old one has ended")
        assert result.failures == 0, result.summary()
        _end(lab, new)


def test_an_envoy_that_is_told_to_quit(lab: ClientServer) -> None:
    """What docs/envoy.md says of ``/quitquitquit``: it ends at once, like by SIGTERM."""
    with Envoy(lab.server) as service:
        (old,) = service.pids
        stop = ["--stop-post", f"unix:{service.admin_socket(0)}:/quitquitquit", "--quiesce", "1s"]
        argv = ["swap", "--pidfile", str(service.pidfile), "--new-pidfile", str(service.pidfile)]
        with Load(lab.client, service.targets(lab.server_addresses), rate_per_s=RATE_PER_S) as load:
            words = [*argv, *stop, "--", *service.generation_argv(1)]
            status = shell.run_detached(lab.server, *words, output=service.log)
            wait_until(lambda: old not in lab.server.pids(), 10, "the old one has ended")
            result = load.stop()
        assert status == 0, service.log.read_text()[-2000:]
        assert result.failures == 0, result.summary()
        _end(lab, int(service.pidfile.read_text()))


def test_a_plain_daemon(lab: ClientServer, tmp_path: Path) -> None:
    """What docs/recipes.md has for a daemon that knows SO_REUSEPORT and SIGTERM, and no more."""
    pidfile, server = tmp_path / "app.pid", f"{sys.executable} {SERVER} 8080 --reuseport"
    text = (DOCS / "recipes.md").read_text()
    (line,) = re.findall(r"^synplug (swap .*)$", text, re.MULTILINE)
    line = line.replace("/run/app.pid", str(pidfile)).replace("./app", server)
    with Program(lab.server, shlex.split(server), listens_on=[("::", 8080)]) as old:
        pidfile.write_text(f"{old.pid}\n")
        targets = [(address, 8080) for address in lab.server_addresses]
        with Load(lab.client, targets, rate_per_s=RATE_PER_S) as load:
            log = tmp_path / "log"
            status = shell.run_detached(lab.server, *shlex.split(line), output=log)
            assert old.wait() == 0
            result = load.stop()
    assert status == 0, log.read_text()[-2000:]
    assert result.failures == 0, result.summary()
    _end(lab, int(pidfile.read_text()))


def test_a_plain_daemon_s_supervisor(lab: ClientServer) -> None:
    """The line behind it, and the one that stands in its comment."""
    lines = re.search(r"^synplug (supervise .*-- )\./app +# then: synplug (.*)$",
                      (DOCS / "recipes.md").read_text(), re.MULTILINE)  # fmt: skip
    assert lines is not None
    supervise, reload = lines.groups()
    server = [sys.executable, str(SERVER), "8080", "--reuseport"]
    argv = [*shell.SYNPLUG, *shlex.split(supervise), *server]
    targets = [(address, 8080) for address in lab.server_addresses]
    with Program(lab.server, argv, ready=lambda: _serves(lab, [("::", 8080)])) as supervisor:
        with Load(lab.client, targets, rate_per_s=RATE_PER_S) as load:
            done = shell.run(lab.server, *shlex.split(reload))
            result = load.stop()
        assert done.status == 0, (done, supervisor.output)
        assert supervisor.end(signal.SIGTERM, deadline_s=15) == 0, supervisor.output
    assert result.failures == 0, result.summary()


#: Envoy's is the unit: test_supervise_envoy.py.
@pytest.mark.parametrize("page", [HAPROXY, NGINX, GUNICORN], ids=lambda page: page.name)
def test_the_supervisor_of_the_page(lab: ClientServer, page: Page) -> None:
    service = page.make(lab.server)
    argv = page.command("supervise", service)
    name = argv[argv.index("--name") + 1]
    targets = service.targets(lab.server_addresses)
    endpoints = [("0.0.0.0", 8080), ("::", 8080)]
    supervisor = Program(
        lab.server, [*shell.SYNPLUG, *argv], ready=lambda: _serves(lab, endpoints), deadline_s=20
    )
    with closing(service), supervisor:
        with Load(lab.client, targets, rate_per_s=RATE_PER_S) as load:
            done = shell.run(lab.server, "reload", name)
            assert done.status == 0, (done, supervisor.output)
            result = load.stop()
        assert supervisor.end(signal.SIGTERM, deadline_s=15) == 0, supervisor.output
    assert result.failures == 0, result.summary()


#: An application that its workers cannot load, when gunicorn listens already.
BROKEN = "import time\ntime.sleep(0.25)\nraise ImportError('no such module')\n"


def _broken(argv: list[str], service: Service) -> list[str]:
    """The same command, for another folder, whose application is broken."""
    folder = service.directory / "broken"
    folder.mkdir()
    (folder / "application.py").write_text(BROKEN)
    there, here = f"--chdir {service.directory}", f"--chdir {folder}"
    words = [word.replace(there, here) for word in argv]
    return [
        str(folder) if before == "--chdir" else word
        for before, word in zip(["", *words], words, strict=False)
    ]


def _without_check(argv: list[str]) -> list[str]:
    at = argv.index("--check")
    return argv[:at] + argv[at + 2 :]


@pytest.mark.parametrize("checked", [True, False], ids=["with --check", "without"])
def test_a_gunicorn_whose_workers_fail_takes_over_nothing(lab: ClientServer, checked: bool) -> None:
    """By swap: the recipe finds it before it starts, and the settle time would do it, too."""
    with GUNICORN.make(lab.server) as service:
        (old,) = service.pids
        argv = GUNICORN.command("swap", service)
        argv = _broken(argv if checked else _without_check(argv), service)
        with Load(lab.client, service.targets(lab.server_addresses), rate_per_s=RATE_PER_S) as load:
            status = shell.run_detached(lab.server, *argv, output=service.log)
            result = load.stop()
        said = service.log.read_text()
        assert status == (125 if checked else 3), said[-2000:]
        assert "ImportError" in said
        assert service.pids == (old,), "the old one serves, and no other is left"
        # without a check some have met the broken one, while it listened, and nobody else
        assert result.failures == 0 or not checked, result.summary()
        with Load(lab.client, service.targets(lab.server_addresses), rate_per_s=RATE_PER_S) as load:
            shell.run(lab.server, "status")
            result = load.stop()
        assert result.failures == 0, result.summary()


@pytest.mark.parametrize("checked", [True, False], ids=["with --check", "without"])
def test_a_supervised_gunicorn_whose_workers_fail_takes_over_nothing(
    lab: ClientServer, checked: bool
) -> None:
    service = GUNICORN.make(lab.server)
    argv = GUNICORN.command("supervise", service)
    argv = argv if checked else _without_check(argv)
    endpoints = [("0.0.0.0", 8080), ("::", 8080)]
    supervisor = Program(
        lab.server, [*shell.SYNPLUG, *argv], ready=lambda: _serves(lab, endpoints), deadline_s=20
    )
    application = service.directory / "application.py"
    with closing(service), supervisor:
        good = application.read_text()
        assert shell.run(lab.server, "reload", "app").status == 0, supervisor.output
        with Load(lab.client, service.targets(lab.server_addresses), rate_per_s=RATE_PER_S) as load:
            application.write_text(BROKEN)
            failed = shell.run(lab.server, "reload", "app")
            assert failed.status == 125, (failed, supervisor.output)
            assert "generation 2 serves on" in failed.stderr
            during = load.stop()
        assert during.failures == 0 or not checked, during.summary()
        application.write_text(good)
        with Load(lab.client, service.targets(lab.server_addresses), rate_per_s=RATE_PER_S) as load:
            done = shell.run(lab.server, "reload", "app")
            assert done.status == 0, (done, supervisor.output)
            result = load.stop()
        assert supervisor.end(signal.SIGTERM, deadline_s=15) == 0, supervisor.output
    assert result.failures == 0, result.summary()


def test_the_control_takes_who_listens_for_ready(lab: ClientServer) -> None:
    """Without check and settle time the broken one takes over, and nobody is served."""
    with GUNICORN.make(lab.server) as service:
        argv = _broken(_without_check(GUNICORN.command("swap", service)), service)
        argv[1:1] = ["--settle", "0", "--quiesce", "0"]
        with Load(lab.client, service.targets(lab.server_addresses), rate_per_s=RATE_PER_S) as load:
            shell.run_detached(lab.server, *argv, output=service.log)
            wait_until(lambda: _serves(lab, []), 10, "nobody listens")
            result = load.stop()
        assert result.failures > 0, "the control lost nobody: the tests show nothing"


def test_nginx_upgrades_itself_without_synplug(lab: ClientServer) -> None:
    """What docs/nginx.md recommends before a swap."""
    service = Nginx(lab.server)
    options = service.reload_argv[1:-2]
    with closing(service):
        lab.server.run([shutil.which("nginx") or "nginx", *options])  # it executes argv[0] again
        service.wait_until_listening()
        (old,) = service.pids
        with Load(lab.client, service.targets(lab.server_addresses), rate_per_s=1000) as load:
            os.kill(old, signal.SIGUSR2)
            wait_until(lambda: service.pids not in ((), (old,)), 10, "there is a new master")
            os.kill(old, signal.SIGWINCH)
            os.kill(old, signal.SIGQUIT)
            wait_until(lambda: old not in lab.server.pids(), 15, "the old one has ended")
            result = load.stop()
        service.stop()
    assert result.failures == 0, result.summary()


def _serves(lab: ClientServer, endpoints: list[tuple[str, int]]) -> bool:
    lines = lab.server.run(["ss", "-Htln", "sport = :8080"]).stdout.splitlines()
    return len({line.split()[3] for line in lines}) == len(endpoints)


def _end(lab: ClientServer, pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: pid not in lab.server.pids(), 15, "the new one has ended")
