#!/usr/bin/python
# Copyright: The synplug authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Restart a service while its new connections wait: the Ansible module."""

from __future__ import annotations

DOCUMENTATION = r"""
module: restart
short_description: Restart a service without losing a TCP connection
version_added: 0.1.0
author: The synplug authors (@synplug)
description:
  - Runs C(synplug wrap) on the host, so that new connections wait in its kernel while a service is
    restarted, and asks for its report.
  - What is restarted is a service of the host's own configuration (O(service)), a systemd unit
    (O(unit)), or whatever O(command) restarts.
  - An option that is left out has the value of the host's configuration, or synplug's own default.
    Durations are written as V(500ms), V(2s) or V(1m).
options:
  service:
    description: A service of C(/etc/synplug.toml) or C(/etc/synplug.d/*.toml) on the host.
    type: str
  command:
    description:
      - The restart command, as a list of words, or as a string that is split as a shell would. No
        shell runs it.
      - Without it the command of O(service) is run, or C(systemctl) with O(action) and O(unit).
    type: raw
  action:
    description: What C(systemctl) does with O(unit), where there is no O(command).
    type: str
    choices: [restart, reload, reload-or-restart, try-restart]
    default: restart
  unit:
    description:
      - Systemd units; what their processes listen on is held.
      - A unit that is down does not tell its ports; with O(port) it is started all the same.
    type: list
    elements: str
    aliases: [units]
  port:
    description: Endpoints to hold, such as V(80), V(0.0.0.0:80) or V([::1]:80).
    type: list
    elements: str
    aliases: [ports]
  pid:
    description: What these processes and their children listen on is held.
    type: list
    elements: str
  pidfile:
    description: The same, with the pids from files.
    type: list
    elements: path
  netns:
    description: Do everything in this network namespace of the host (name, path or pid).
    type: str
  config:
    description: A file or directory in the place of C(/etc/synplug.toml) and C(/etc/synplug.d).
    type: path
  max_hold:
    description: Release at the latest after this long.
    type: str
  max_held:
    description: Hold at most so many SYNs.
    type: int
  max_held_per_source:
    description: Hold at most so many SYNs of one IPv4 address, or one IPv6 /64.
    type: int
  on_full:
    description: What happens to a SYN beyond these.
    type: str
    choices: [drop, pass]
  backend:
    description: How to hold.
    type: str
    choices: [auto, nfqueue, nfqueue-iptables, plug]
  release:
    description: Let go as the listeners' backlogs allow, or all at once.
    type: str
    choices: [paced, burst]
  dev:
    description: Backend plug, only what these network devices bring.
    type: list
    elements: str
  loopback_egress:
    description: Backend plug, only what local clients send.
    type: bool
  hook:
    description:
      - Hold what is delivered on the host, what it forwards, or what is sent to a port that it
        publishes; but for the first of them, I(ready_http) or I(ready_cmd) is needed.
    type: str
    choices: [input, forward, prerouting]
  drain_netns:
    description: With the other hooks, the network namespace of the old listener; name, path or pid.
    type: str
  drain_timeout:
    description: Wait so long for the old listener's queues.
    type: str
  on_drain_timeout:
    description: Go on all the same, or release and do not restart.
    type: str
    choices: [proceed, abort]
  quiesce:
    description: Wait so long at the most for requests in flight.
    type: str
  ready_http:
    description: This URL, too, must answer 2xx or 3xx before connections are let go.
    type: str
  ready_cmd:
    description: This command, too, must succeed; a list of words or a string.
    type: raw
  ready_timeout:
    description: Wait no longer than this for the service to be ready.
    type: str
  settle:
    description: For reloads that keep their listeners, how long they must be unchanged.
    type: str
  require_new:
    description: Never take unchanged listeners for a finished reload.
    type: bool
  check:
    description:
      - Run this before anything is held; a list of words or a string. If it fails, nothing is
        restarted, and the task fails.
    type: raw
  best_effort:
    description: Restart even where nothing can be held.
    type: bool
  lock_timeout:
    description: Wait so long for another run on the same endpoints.
    type: str
  jitter:
    description: First wait for a random time, so long at the most.
    type: str
  only_if_changed:
    description:
      - Do nothing where these files are what they were at the last successful run.
      - A restart that failed is so tried again by the next play; a handler would not be.
      - An empty list restarts in any case, whatever the host's configuration says.
    type: list
    elements: path
  log:
    description:
      - Tell V(journal), V(syslog), or append JSON lines to files; an empty list tells none.
    type: list
    elements: str
  metrics:
    description: Add the run to this file for Prometheus.
    type: path
  on_event:
    description: Run this at the end, with the report on its standard input; a list or a string.
    type: raw
  fail_on_lost:
    description:
      - Fail, too, if a connection may have been lost although the restart was a success, or if
        nothing was held (O(best_effort)). A rolling play then stops at this host.
    type: bool
    default: false
  executable:
    description: Where synplug is.
    type: path
    default: synplug
attributes:
  check_mode:
    description: Nothing is held or restarted; it is said what would be done.
    support: full
  diff_mode:
    description: The plan of C(synplug wrap --dry-run), with the equivalent commands.
    support: full
requirements:
  - synplug on the host, and the privileges that it needs (become)
notes:
  - RV(ignore:changed) is true if the restart command ran, whatever came of it; in check mode, if it
    would run.
  - The task fails where synplug does, with RV(rc) as of C(timeout), env(1) and nohup(1), 124 for a
    service that was not ready in time, 125 where synplug itself failed, else the command's own.
"""

EXAMPLES = r"""
- name: Restart a systemd unit whose configuration has changed, be it up or down
  synplug.ops.restart:
    unit: haproxy
    port: [80, 443]
    check: haproxy -c -q -f /etc/haproxy/haproxy.cfg
    only_if_changed: /etc/haproxy/haproxy.cfg
  become: true

- name: Restart a service as the host is configured for it
  synplug.ops.restart:
    service: app
    fail_on_lost: true
  become: true

- name: Restart by a script
  synplug.ops.restart:
    port: [8000]
    command: [/srv/app/bin/restart, --fast]
    max_hold: 20s
    ready_http: http://127.0.0.1:8000/health
  become: true
"""

RETURN = r"""
report:
  description: synplug's report, as docs/report.md describes it. Absent where the run did not begin.
  returned: when the run began
  type: dict
  sample: {"outcome": "ready", "exit_code": 0, "hold": {"held": 891, "released": 891}}
lost:
  description:
    - SYNs and queued connections that may have been lost.
    - Where nothing was held, RV(ignore:report.hold) is null, and nobody counted.
  returned: when the run began
  type: int
rc:
  description: synplug's exit code.
  returned: where synplug was found
  type: int
plan:
  description: What would be done.
  returned: in check mode
  type: str
command:
  description: What was called.
  returned: where synplug was found
  type: list
  elements: str
"""

import json
import os
import shlex
import tempfile

from ansible.module_utils.basic import AnsibleModule

#: How synplug begins to say so, with only_if_changed.
_UNCHANGED = "nothing has changed since the last successful run"
_COMMANDS = ("check", "ready_cmd", "on_event")
_LISTS = ("unit", "port", "pid", "pidfile", "dev", "only_if_changed", "log")
#: Those of them of which an empty list switches off what the host's configuration says.
_EMPTIED = ("only_if_changed", "log")
_SWITCHES = ("loopback_egress", "require_new", "best_effort")
_TEXTS = (
    "netns", "config", "max_hold", "max_held", "max_held_per_source", "on_full", "backend",
    "release", "drain_timeout", "on_drain_timeout", "quiesce", "ready_http", "ready_timeout",
    "settle", "lock_timeout", "jitter", "metrics", "hook", "drain_netns",
)  # fmt: skip


def argument_spec():
    """The module's arguments; those without a default are left to synplug."""
    spec = {name: {"type": "str"} for name in (*_TEXTS, "service")}
    spec.update({name: {"type": "list", "elements": "str"} for name in _LISTS})
    spec.update({name: {"type": "bool"} for name in _SWITCHES})
    spec.update({name: {"type": "raw"} for name in (*_COMMANDS, "command")})
    spec["config"] = spec["metrics"] = {"type": "path"}
    for name in ("pidfile", "only_if_changed"):
        spec[name] = {"type": "list", "elements": "path"}
    for name in ("unit", "port"):
        spec[name]["aliases"] = [name + "s"]
    for name in ("max_held", "max_held_per_source"):
        spec[name] = {"type": "int"}
    spec["on_full"]["choices"] = ["drop", "pass"]
    spec["backend"]["choices"] = ["auto", "nfqueue", "nfqueue-iptables", "plug"]
    spec["hook"]["choices"] = ["input", "forward", "prerouting"]
    spec["release"]["choices"] = ["paced", "burst"]
    spec["on_drain_timeout"]["choices"] = ["proceed", "abort"]
    spec["action"] = {
        "type": "str",
        "choices": ["restart", "reload", "reload-or-restart", "try-restart"],
        "default": "restart",
    }
    spec["fail_on_lost"] = {"type": "bool", "default": False}
    spec["executable"] = {"type": "path", "default": "synplug"}
    return spec


def words_of(value):
    """A command as a list of words.

    :raises ValueError: it is none.
    """
    words = shlex.split(value) if isinstance(value, str) else value
    if not isinstance(words, list) or not words:
        raise ValueError("a command is a list of words, or a string")
    return [str(word) for word in words]


def arguments_of(params):
    """The arguments of synplug: options, and the command behind ``--``.

    :raises ValueError: they make no sense.
    """
    options = []
    for name in (*_TEXTS, *_LISTS, *_COMMANDS):
        value = params[name]
        if value is None:
            continue
        if name in _COMMANDS:
            value = shlex.join(words_of(value))
        flag = "--" + name.replace("_", "-")
        if name in _EMPTIED and not value:
            options.append("--no-" + flag[2:])
        options += [f"{flag}={text}" for text in (value if name in _LISTS else [value])]
    for name in _SWITCHES:
        if params[name] is not None:
            options.append(("--" if params[name] else "--no-") + name.replace("_", "-"))
    command = []
    if params["service"] is not None:
        options.append("--service=" + params["service"])
    if params["command"] is not None:
        command = words_of(params["command"])
    elif params["service"] is None and params["unit"]:
        command = ["systemctl", params["action"], *params["unit"]]
    return options + (["--", *command] if command else [])


def lost_in(report):
    """SYNs and queued connections that may have been lost."""
    hold = report["hold"] or {}
    drain = report["drain"] or {}
    lost = sum(hold.get(name, 0) for name in ("lost", "overflowed", "over_source"))
    return lost + drain.get("left", 0)


def _report_in(path):
    """The report, or None where the run did not begin."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    return json.loads(text) if text.strip() else None


def _plan(module, argv):
    """Say what would be done."""
    status, out, err = module.run_command(argv)
    if status:
        module.fail_json(msg=err.strip() or "synplug failed", rc=status, command=argv)
    result = {"rc": 0, "plan": out, "command": argv, "diff": {"prepared": out}}
    if out.startswith(_UNCHANGED):
        module.exit_json(changed=False, msg=_UNCHANGED, **result)
    module.exit_json(changed=True, **result)


def _restart(module, argv, path):
    """Restart, and say what came of it."""
    status, out, err = module.run_command(argv)
    report = _report_in(path)
    result = {"rc": status, "command": argv, "stdout": out, "stderr": err, "changed": False}
    if report is None:
        if status:
            module.fail_json(msg=err.strip() or "synplug failed", **result)
        module.exit_json(msg=_UNCHANGED, **result)
    lost = lost_in(report)
    result.update(report=report, lost=lost, changed=report["command"]["ran"])
    for warning in report["warnings"]:
        module.warn(warning)
    if status:
        words = f"{report['outcome']}, exit {status}"
        if report["error"]:
            words += ": " + report["error"]
        module.fail_json(msg=words, **result)
    if module.params["fail_on_lost"] and result["changed"] and report["hold"] is None:
        words = "restarted, but nothing was held: connections may have been lost"
        module.fail_json(msg=words, **result)
    if lost and module.params["fail_on_lost"]:
        module.fail_json(msg=f"restarted, but {lost} connections may have been lost", **result)
    module.exit_json(**result)


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec=argument_spec(),
        required_one_of=[("service", "command", "unit")],
        supports_check_mode=True,
    )
    executable = module.get_bin_path(module.params["executable"], required=True)
    try:
        arguments = arguments_of(module.params)
    except ValueError as error:
        module.fail_json(msg=str(error), rc=125, command=[])
    if module.check_mode:
        _plan(module, [executable, "wrap", "--dry-run", *arguments])
    handle, path = tempfile.mkstemp(dir=module.tmpdir, suffix=".json")
    os.close(handle)
    _restart(module, [executable, "wrap", "--quiet", "--json=" + path, *arguments], path)


if __name__ == "__main__":
    main()
