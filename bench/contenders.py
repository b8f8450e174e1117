"""Who takes part: ways to restart a service that serves."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bench.errors import BenchError
from netlab.servers import Envoy, Service
from netlab.topology import Namespace

SYNPLUG = [sys.executable, "-m", "synplug"]
#: No command of a contender takes longer, whatever it waits for.
TIMEOUT_S = 60.0
#: What the recipe waits between its rule and the stop, so that the old accept queue runs empty.
DROP_SETTLE_S = 0.1
_PLUG_BYTES = 4 << 20
Report = dict[str, Any]


class Reloads(Protocol):
    """A service that has a reload of its own."""

    reload_argv: list[str]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to restart.

    *restart* does it, given the service and for how long more nobody shall listen, and returns
    synplug's report if there is one. *make* is for a way that needs the service set up in another
    manner. *programs* are those it needs; *fresh* starts the service anew before each round.
    *how* is what the page says of it, *better* why it may lose or delay less than synplug.
    """

    name: str
    how: str
    restart: Callable[[Service, float], Report | None]
    better: str = ""
    programs: Sequence[str] = ()
    make: Callable[[Namespace], Service] | None = None
    fresh: bool = False

    def require(self) -> None:
        """See that its programs are there.

        Raises:
            BenchError: one is not.

        """
        missing = [program for program in self.programs if shutil.which(program) is None]
        if missing:
            raise BenchError(f"contender '{self.name}' cannot run: no {', '.join(missing)}")


def cold_restart_line(service: Service, outage_s: float) -> str:
    """Stop it, leave the port alone for so long, start it: a line for a shell."""
    pause = f"sleep {outage_s:g} && " if outage_s else ""
    return f"{shlex.join(service.stop_argv)} && {pause}{shlex.join(service.start_argv)}"


def _shell(service: Service, line: str) -> None:
    service.namespace.run(["sh", "-c", line], timeout_s=TIMEOUT_S)


def _nothing(service: Service, outage_s: float) -> None:
    _shell(service, cold_restart_line(service, outage_s))


def _dropped(service: Service, outage_s: float) -> None:
    """Drop SYNs while it restarts, and no longer than until it listens."""
    port = service.ports[0]
    rule = f"INPUT -p tcp --syn --dport {port} -j DROP"
    listens = f'until [ "$(ss -Htln sport = :{port} | wc -l)" -ge {len(service.endpoints)} ]'
    lines = [
        f"iptables -w -I {rule} && ip6tables -w -I {rule} || exit",
        f"sleep {DROP_SETTLE_S:g}",
        f"{cold_restart_line(service, outage_s)}; status=$?",
        f"{listens}; do sleep 0.002; done",
        f"iptables -w -D {rule} && ip6tables -w -D {rule} || exit",
        "exit $status",
    ]
    _shell(service, "\n".join(lines))


def _plugged(service: Service, outage_s: float) -> None:
    """Yelp's: SYNs that leave over lo are marked, and the mark leads them into a plug qdisc.

    Its set-up, which stays where it is used, is made and taken away here each time.
    """
    port = service.ports[0]
    rule = f"OUTPUT -t mangle -p tcp -d 127.0.0.1 --dport {port} --syn -j MARK --set-mark 1"
    plug = "tc qdisc change dev lo parent 1:4 handle 40: plug"
    lines = [
        "set -e",
        "tc qdisc add dev lo root handle 1: prio bands 4",
        f"tc qdisc add dev lo parent 1:4 handle 40: plug limit {_PLUG_BYTES}",
        f"{plug} release_indefinite",
        "tc filter add dev lo protocol ip parent 1:0 prio 1 handle 1 fw classid 1:4",
        f"iptables-legacy -w -I {rule}",
        f"{plug} block",
        cold_restart_line(service, outage_s),
        f"{plug} release_indefinite",
        f"iptables-legacy -w -D {rule}",
        "tc qdisc del dev lo root",
    ]
    _shell(service, "\n".join(lines))


def _wrapped(*options: str) -> Callable[[Service, float], Report]:
    def restart(service: Service, outage_s: float) -> Report:
        argv = [*SYNPLUG, "wrap", "-q", "-p", str(service.ports[0]), "--json", "-", *options]
        argv += ["--", "sh", "-c", cold_restart_line(service, outage_s)]
        return _report(service, argv)

    return restart


def _barely_held(service: Service, outage_s: float) -> Report:
    line = cold_restart_line(service, outage_s)
    argv = [sys.executable, "-m", "bench.bare_hold", str(service.ports[0]), "sh", "-c", line]
    return _report(service, argv)


def _swapped(service: Service, _outage_s: float) -> Report:
    """To the other version of Envoy, beside the one that serves."""
    if not isinstance(service, Envoy):
        raise BenchError(f"no swap is set up for {type(service).__name__}")
    pidfile = str(service.pidfile)
    argv = [*SYNPLUG, "swap", "-q", "-p", str(service.ports[0]), "--json", "-"]
    argv += ["--pidfile", pidfile, "--new-pidfile", pidfile]
    argv += ["--stop-post", f"unix:{service.admin_socket(0)}:/drain_listeners"]
    return _report(service, [*argv, "--", *service.generation_argv(1)])


def _report(service: Service, argv: Sequence[str]) -> Report:
    said = service.namespace.run(argv, timeout_s=TIMEOUT_S).stdout
    report: Report = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    if report["outcome"] != "ready":
        raise BenchError(f"synplug: {report['outcome']}: {report['error']} {report['warnings']}")
    return report


def _reloaded(service: Service, _outage_s: float) -> None:
    argv: list[str] = service.reload_argv  # type: ignore[attr-defined]
    service.namespace.run(argv, timeout_s=TIMEOUT_S)


NOTHING = Contender(
    name="nothing",
    how="stop, start",
    restart=_nothing,
    better="nobody is held up, and nobody happened to be refused",
)
DROPPED = Contender(
    name="SYN dropped",
    how=f"iptables drops SYNs, {1000 * DROP_SETTLE_S:.0f} ms for the old accept queue, stop, start,"
    " the rule is removed as soon as the new listener is there",
    restart=_dropped,
    programs=("iptables", "ip6tables", "ss"),
    better="whose SYN was dropped comes back a second later, however many there are; a hold lets "
    "all of them go within what the backlog bears, so that its debt can take longer to pay off "
    "where the service is near saturation",
)
SYNPLUG_NFQUEUE = Contender(
    name="synplug",
    how="`synplug wrap -p 8080 -- …` around stop, start; backend nfqueue, the default",
    restart=_wrapped("--backend", "nfqueue"),
)
SYNPLUG_IPTABLES = Contender(
    name="synplug, iptables",
    how="`synplug wrap` likewise, backend nfqueue-iptables",
    restart=_wrapped("--backend", "nfqueue-iptables"),
    better="it is the same hold behind another rule; differences are the machine's noise",
)
BARE_HOLD = Contender(
    name="bare hold",
    how="the least that holds: synplug's own messages to the kernel, from one loop that looks for "
    "a listener each millisecond and lets all go at once (`bench/bare_hold.py`)",
    restart=_barely_held,
    better="it does not ask whose the new listener is, or how many it can take, keeps nothing in "
    "order behind those that it lets go, and would hold for ever where it stands still",
)
YELP = Contender(
    name="Yelp's recipe",
    how="on loopback, IPv4: iptables marks SYNs on their way out, and tc leads them into a plug "
    "qdisc below prio; plugged, stop, start, unplugged",
    restart=_plugged,
    programs=("tc", "iptables-legacy"),
    better="what it sets up is set up for good where it is used, so a restart costs two messages "
    "to the kernel; what is in the old accept queue is lost, and nothing unplugs it if the script "
    "dies",
)
SYNPLUG_PLUG = Contender(
    name="synplug, plug",
    how="`synplug wrap` likewise, backend plug with `--loopback-egress`",
    restart=_wrapped("--backend", "plug", "--loopback-egress", "--max-hold", "60s"),
    better="it is another place to hold in; differences are the machine's noise",
)
SYNPLUG_SWAP = Contender(
    name="synplug swap",
    how="`synplug swap`: the other version of Envoy beside the one that serves, `--stop-post "
    "/drain_listeners`",
    restart=_swapped,
    fresh=True,
    better="the new generation listens before anybody is held, so the hold is as short as the "
    "drain of the old one; it needs SO_REUSEPORT, and memory for two",
)


def reload(
    name: str,
    how: str,
    better: str,
    *,
    programs: Sequence[str] = (),
    make: Callable[[Namespace], Service] | None = None,
) -> Contender:
    """A service's own reload, which hands its listeners on."""
    return Contender(
        name=name, how=how, restart=_reloaded, better=better, programs=programs, make=make
    )
