"""Which restarts are compared: not every service at every rate, backlog and outage.

HAProxy at 3,000 new connections/s is where all begins; from there one thing varies at a time. The
other services stand for the programs that have a reload of their own to compare with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bench.contenders import (
    BARE_HOLD,
    DROPPED,
    NOTHING,
    SYNPLUG_IPTABLES,
    SYNPLUG_NFQUEUE,
    SYNPLUG_PLUG,
    SYNPLUG_SWAP,
    YELP,
    Contender,
    reload,
)
from netlab.servers import Envoy, FdService, Gunicorn, HAProxy, Nginx, Service
from netlab.topology import Namespace

_HANDS_ON = "the listening sockets are handed on, so there is no outage to bridge"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One service under one load, and the ways in which it is restarted.

    *outage_s* comes on top of what the restart itself takes. Who of *contenders* is named in
    *often* plays each round, the others every second one. *loopback*: the clients are the
    server's own. *in_guest*: it needs a kernel that the machine may not have. With *reference* the
    others are compared.
    """

    key: str
    service: str
    make: Callable[[Namespace], Service]
    rate_per_s: int
    backlog: int
    contenders: Sequence[Contender]
    outage_s: float = 0.0
    rounds: int = 4
    often: Sequence[str] = ()
    pictured: Sequence[str] = ()
    loopback: bool = False
    in_guest: bool = False
    reference: str = SYNPLUG_NFQUEUE.name

    @property
    def title(self) -> str:
        """What it is, for the heading of its table."""
        outage = f"its own + {self.outage_s:g} s" if self.outage_s else "its own"
        return (
            f"{self.service}, {self.rate_per_s:,} new connections/s, backlog {self.backlog:,}, "
            f"outage {outage}" + (", in the guest" if self.in_guest else "")
        )

    def players(self, number: int) -> list[Contender]:
        """Who plays round *number*; each round begins with another of them."""
        chosen = [
            contender
            for contender in self.contenders
            if not self.often or contender.name in self.often or number % 2 == 0
        ]
        # The same ones play in every second round, where some play seldom.
        first = (number // 2 if self.often else number) % len(chosen)
        return chosen[first:] + chosen[:first]


def _haproxy(backlog: int) -> Callable[[Namespace], Service]:
    return lambda namespace: HAProxy(namespace, backlog=backlog, seamless=True)


_HAPROXY_X = reload(
    "HAProxy -x",
    "`haproxy -x SOCKET -sf PID`, HAProxy's own seamless reload",
    f"{_HANDS_ON}; HAProxy only, and only while the old process still answers on its socket",
    programs=("haproxy",),
)
_NGINX_HUP = reload(
    "nginx HUP",
    "`nginx -s reload`",
    f"{_HANDS_ON} to new workers; it loads no other binary, and with `reuseport` and fewer workers "
    "it loses connections",
    programs=("nginx",),
)
_GUNICORN_HUP = reload(
    "gunicorn HUP",
    "SIGHUP to the master",
    f"{_HANDS_ON} to new workers; the master stays what it was, its version and sockets included",
)
_START_SERVER = reload(
    "start_server",
    "`start_server --restart` (Server::Starter), which keeps the listeners for a service that "
    "takes them by descriptor",
    f"{_HANDS_ON}; the service must be written for it, and started below it from the beginning",
    programs=("start_server",),
    make=lambda namespace: FdService(namespace, superdaemon=True),
)
_ENVOY_HOT = reload(
    "Envoy hot restart",
    "`--restart-epoch`, to the same version",
    f"{_HANDS_ON}; it needs the same hot restart version, one parent process for all epochs, and "
    "memory for two until the old one has drained",
    make=lambda namespace: Envoy(namespace, backlog=511, hot_restart=True),
)

_BASE = Case(
    key="haproxy",
    service="HAProxy",
    make=_haproxy(511),
    rate_per_s=3000,
    backlog=511,
    contenders=(NOTHING, DROPPED, SYNPLUG_NFQUEUE, SYNPLUG_IPTABLES, BARE_HOLD, _HAPROXY_X),
    rounds=20,
    often=(SYNPLUG_NFQUEUE.name, BARE_HOLD.name),
    pictured=(
        NOTHING.name,
        DROPPED.name,
        SYNPLUG_NFQUEUE.name,
        SYNPLUG_IPTABLES.name,
        _HAPROXY_X.name,
    ),
)
_NO_RELOAD = (NOTHING, DROPPED, SYNPLUG_NFQUEUE)


def _at_rate(rate_per_s: int) -> Case:
    return replace(
        _BASE,
        key=f"haproxy-{rate_per_s}",
        rate_per_s=rate_per_s,
        contenders=(*_NO_RELOAD, _HAPROXY_X),
        rounds=3,
        often=(),
        pictured=(),
    )


def _with(backlog: int, outage_s: float, rounds: int) -> Case:
    return replace(
        _BASE,
        key=f"haproxy-backlog-{backlog}-outage-{outage_s:g}",
        make=_haproxy(backlog),
        backlog=backlog,
        outage_s=outage_s,
        contenders=_NO_RELOAD,
        rounds=rounds,
        often=(),
        pictured=(),
    )


CASES: tuple[Case, ...] = (
    _BASE,
    Case(
        key="nginx",
        service="nginx",
        make=lambda namespace: Nginx(namespace, backlog=511),
        rate_per_s=3000,
        backlog=511,
        contenders=(*_NO_RELOAD, BARE_HOLD, _NGINX_HUP),
        rounds=20,
        often=(SYNPLUG_NFQUEUE.name, BARE_HOLD.name),
        pictured=(_NGINX_HUP.name,),
    ),
    Case(
        key="gunicorn",
        service="gunicorn",
        make=lambda namespace: Gunicorn(namespace, backlog=2048),
        rate_per_s=300,
        backlog=2048,
        contenders=(*_NO_RELOAD, _GUNICORN_HUP),
        rounds=6,
        pictured=(_GUNICORN_HUP.name,),
    ),
    Case(
        key="fd-service",
        service="a service that takes descriptors",
        make=lambda namespace: FdService(namespace, backlog=128),
        rate_per_s=1000,
        backlog=128,
        contenders=(*_NO_RELOAD, _START_SERVER),
        rounds=6,
        pictured=(_START_SERVER.name,),
    ),
    Case(
        key="envoy",
        service="Envoy",
        make=lambda namespace: Envoy(namespace, backlog=511),
        rate_per_s=2000,
        backlog=511,
        contenders=(*_NO_RELOAD, SYNPLUG_SWAP, _ENVOY_HOT),
        rounds=12,
        often=(SYNPLUG_SWAP.name,),
        pictured=(SYNPLUG_SWAP.name, _ENVOY_HOT.name),
    ),
    _at_rate(300),
    _at_rate(1000),
    _at_rate(8000),
    _with(128, 0.45, 3),
    _with(511, 0.45, 3),
    _with(4096, 0.45, 3),
    _with(128, 3.45, 2),
    _with(4096, 3.45, 2),
    replace(
        _BASE,
        key="guest",
        rate_per_s=100,
        contenders=(NOTHING, YELP, SYNPLUG_PLUG),
        rounds=3,
        often=(),
        pictured=(YELP.name, SYNPLUG_PLUG.name),
        loopback=True,
        in_guest=True,
        reference=SYNPLUG_PLUG.name,
    ),
)


def case_of(key: str) -> Case:
    """The case of that key."""
    return next(case for case in CASES if case.key == key)
