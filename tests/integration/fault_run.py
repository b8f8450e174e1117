"""One case of the fault matrix, from a served port to a system as it was."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from netlab.program import wait_until
from netlab.snapshot import NetworkState
from netlab.topology import ClientServer
from synplug.model import BackendName
from tests.integration import shell
from tests.integration.conftest import SimpleService
from tests.integration.connect import connect_argv
from tests.integration.fault_cases import Case, CommandPoint
from tests.integration.fault_clients import Attempt, Clients
from tests.integration.fault_machine import Machine
from tests.integration.fault_points import (
    HEALTH_CHECK,
    POINTS,
    Fault,
    Party,
)

#: On a busy machine a run may not get to the fault before the deadline; then it gets more time.
_ATTEMPTS, _MORE = 3, 2.0
#: What a slow machine may need more to end a hold; one that stood still meanwhile tells nothing.
_ENDING_AT_MOST_S = 3.0
#: New connections work at the latest so long after the deadline, whatever has happened.
FREE_AFTER_S = 1.0
#: A process that is stopped stays so for so much longer, in which clients come.
STOPPED_ON_S = 0.4
_GOES_WITH_A_PROCESS = ("+ synplug process", "+ nft ruleset", "+ nfnetlink_queue")


@dataclass(kw_only=True)
class Observation:
    """What a case has shown."""

    status: int
    stderr: str
    report: dict[str, Any] | None
    #: When the fault struck, monotonic seconds; None: it did not come to that.
    fault_s: float | None
    #: The call that was refused; empty where none was.
    refused: str
    max_hold_s: float
    #: What it takes the machine longer than this one to answer, and to end a hold.
    slow_s: float = 0.0
    ending_s: float = 0.0
    began_s: float
    #: When nothing of it ran any more.
    ended_s: float
    command_began: bool
    command_done: bool
    serves: bool
    attempts: list[Attempt] = field(default_factory=list)
    #: What was not as before, before and after ``synplug recover``.
    left: list[str] = field(default_factory=list)
    left_after_recover: list[str] = field(default_factory=list)


def has_struck(case: Case, seen: Observation) -> bool:
    """Whether the fault came to pass."""
    return bool(seen.refused) if case.fault.errno else seen.fault_s is not None


class FaultLab:
    """A lab in which one case after the other runs; it must be as before after each."""

    def __init__(self, directory: Path, machine: Machine) -> None:
        self._lab = ClientServer()
        self._directory = directory
        self._machine = machine

    def __enter__(self) -> FaultLab:
        self._lab.__enter__()
        self._run_dir = f"/run/synplug/{self._lab.server.inode}"
        self._before = self._state()
        self._number = 0
        return self

    def __exit__(self, *_: object) -> None:
        self._lab.__exit__()

    def _state(self) -> NetworkState:
        return NetworkState.capture(self._lab.server, [self._run_dir])

    def observe(self, case: Case) -> Observation:
        """Run one case; again, with more time, where it has not come to the fault.

        The deadline was before it; or so few clients had come that all of them fitted.
        """
        point = POINTS.get(case.point)
        is_checked = point is not None and HEALTH_CHECK in point.options
        machine = self._machine
        max_hold_s = machine.max_hold_checked_s if is_checked else machine.max_hold_s
        for _ in range(_ATTEMPTS):
            seen = self._observe(case, max_hold_s)
            outcome = seen.report["outcome"] if seen.report else ""
            is_late = outcome == "deadline"
            have_fitted = outcome == "ready" and point is not None and point.service_options
            if has_struck(case, seen) or not (is_late or have_fitted):
                break
            max_hold_s *= _MORE
        return seen

    def _observe(self, case: Case, max_hold_s: float) -> Observation:
        self._number += 1
        folder = self._directory / str(self._number)
        folder.mkdir(parents=True)
        service = SimpleService(namespace=self._lab.server, directory=folder)
        self._lab.server.run(service.start_argv())
        service.wait()
        machine = self._as_slow_as_now(case, folder / "alone")
        targets, every_s = service.targets(self._lab), machine.every_s
        with Clients(self._lab.client, targets, every_s) as clients:
            run = _FaultyRun(case, max_hold_s, self._lab, service, machine)
            run.see_to_its_end()
            left = self._left_when_still()
            still_s = time.monotonic()
            time.sleep(8 * every_s)  # of connections that are begun when all is over
        seen = run.observation()
        seen.attempts = clients.attempts()
        seen.ended_s = still_s if seen.status == -signal.SIGKILL else seen.ended_s
        seen.left = left
        if left:
            shell.run(self._lab.server, "recover")
            seen.left_after_recover = self._before.difference(self._state())
        # Also a server that a command started which did not live to wait for it: one that binds
        # only now would keep the next case's from its port.
        self._lab.server.end_everything()
        return seen

    def _as_slow_as_now(self, case: Case, report: Path) -> Machine:
        """The machine; a slow one as slow as it is, since others may run beside it.

        Whoever ends a hold gets the time that a run without an accident takes to put up and take
        down the same.
        """
        machine = self._machine
        if not machine.slow_s:
            return machine
        words = ["wrap", "--backend", case.backend.value, "-p", "8080", "--json", str(report)]
        argv = [*machine.synplug, *words, "--", "true"]
        self._lab.server.run(argv, timeout_s=machine.patience_s)
        phases = json.loads(report.read_text())["phases"]
        taken_s = sum(one["duration_s"] for one in phases if one["name"] in ("arm", "clean-up"))
        return replace(machine, ending_s=min(max(machine.slow_s, taken_s), _ENDING_AT_MOST_S))

    def _left_when_still(self) -> list[str]:
        """What differs once the processes of the run, and what goes with them, had a moment."""
        end_s = time.monotonic() + self._machine.still_s
        while True:
            left = self._before.difference(self._state())
            if (
                not any(line.startswith(_GOES_WITH_A_PROCESS) for line in left)
                or time.monotonic() > end_s
            ):
                return left


class _FaultyRun:
    """A run of synplug that has an accident."""

    def __init__(
        self,
        case: Case,
        max_hold_s: float,
        lab: ClientServer,
        service: SimpleService,
        machine: Machine,
    ) -> None:
        self._case = case
        self._max_hold_s = max_hold_s
        self._machine = machine
        #: New connections work so long after the deadline.
        self._free_after_s = FREE_AFTER_S + machine.ending_s
        self._lab = lab
        self._folder = service.directory
        self._service = service
        self._facts = self._folder / "facts"
        self._report = self._folder / "report"
        self._began_s = time.monotonic()
        with (self._folder / "stderr").open("a") as stderr:
            self._process = lab.server.popen(
                self._argv(), stderr=stderr, stdout=subprocess.DEVNULL, start_new_session=True
            )

    def _argv(self) -> list[str]:
        case = self._case
        options = [
            "--max-hold",
            f"{self._max_hold_s:g}s",
            "--backend",
            case.backend.value,
            "-p",
            "8080",
        ]
        point = POINTS.get(case.point)
        for option in point.options if point else ():
            options += [option] if option != HEALTH_CHECK else self._health_check()
        accident = [case.point, case.party.value, case.fault.value, str(self._facts)]
        synplug = [*self._own_xtables_lock(), *self._machine.launcher, *accident]
        if point is None or not point.is_detached:
            told = ["--json", str(self._report), "--", "sh", "-c", self._command()]
            return [*synplug, "wrap", *options, *told]
        # Of a hold that nobody has any more, the release says so.
        hold = shlex.join([*synplug, "hold", "--name", "it", *options])
        release = shlex.join(
            [*self._machine.synplug, "release", "--name", "it", "--json", str(self._report)]
        )
        return ["sh", "-c", f"{hold} || exit\n{self._command()}\n{release}"]

    def _own_xtables_lock(self) -> list[str]:
        """A prefix: other cases run at the same time, and one may be stopped while it has it."""
        if self._case.backend is BackendName.PLUG:  # which never asks for it
            return []
        mine = self._folder / "xtables.lock"
        for path in (mine, Path("/run/xtables.lock")):
            path.touch(mode=0o600)
        line = f'mount --bind {shlex.quote(str(mine))} /run/xtables.lock && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", line, "sh"]

    def _health_check(self) -> list[str]:
        return ["--ready-cmd", shlex.join(connect_argv((self._lab.server_ipv4, 8080), 1.0))]

    def _command(self) -> str:
        """Stop and start the service, in lines between which the command has its own accidents."""
        facts = shlex.quote(str(self._facts))
        faults = {
            Fault.SIGKILL: "kill -KILL $$",
            Fault.SIGTERM: "kill -TERM $$",
            Fault.SIGSTOP: "kill -STOP $$",
            Fault.EXCEPTION: "exit 3",
        }
        point = POINTS.get(self._case.point)
        options = point.service_options if point else ()
        now = f'echo "fault $(cut -d" " -f1 /proc/uptime) $$ 0" >>{facts}'
        accident = {self._case.point: f"{now}; {faults.get(self._case.fault, '')}"}
        return "\n".join(
            (
                f"echo $$ >{self._mark('began')}",
                accident.get(CommandPoint.BEFORE_STOP.value, ":"),
                self._service.stop_line(),
                accident.get(CommandPoint.STOPPED.value, ":"),
                "sleep 0.15",
                self._service.start_argv(*options)[2],
                accident.get(CommandPoint.STARTED.value, ":"),
                f"touch {self._mark('done')}",
            )
        )

    def _mark(self, name: str) -> str:
        return shlex.quote(str(self._folder / name))

    # --- what happens

    def see_to_its_end(self) -> None:
        """Wait until the fault has struck, let what was stopped go on, and wait for the end."""
        wait_until(
            lambda: self._fault() is not None or self._process.poll() is not None,
            self._machine.patience_s,
            "the fault, or the end",
        )
        if self._case.fault is Fault.SIGSTOP and self._fault() is not None:
            self._go_on_after_the_deadline()
        try:
            self._process.wait(self._machine.patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        began = self._folder / "began"
        fault = self._fault()
        point = POINTS.get(self._case.point)
        if fault and point and point.is_detached and not began.exists():
            # Killed at its last word: nobody knows whether the hold was left to its keeper.
            time.sleep(
                max(0.0, fault[0] + self._max_hold_s + self._free_after_s - time.monotonic())
            )
        self._ended_s = time.monotonic()
        if began.exists() and began.read_text().strip():
            pid = int(began.read_text())
            wait_until(lambda: not _runs(pid), self._machine.patience_s, "the command has ended")
        if (self._folder / "done").exists():
            wait_until(self._service_is_new, self._machine.patience_s, "the new service listens")

    def _service_is_new(self) -> bool:
        with suppress(OSError, ValueError):
            return self._service.listens() and _runs(self._service.pid)
        return False

    def _go_on_after_the_deadline(self) -> None:
        at_s, run, keeper = self._fault() or (0.0, 0, 0)
        struck = {
            Party.ORCHESTRATOR: [run],
            Party.KEEPER: [keeper],
            Party.BOTH: [keeper, run],
            Party.COMMAND: [run],
        }[self._case.party]
        handles = []
        for pid in filter(None, struck):
            with suppress(ProcessLookupError):
                handles.append(os.pidfd_open(pid))
        time.sleep(
            max(0.0, at_s + self._max_hold_s + self._free_after_s + STOPPED_ON_S - time.monotonic())
        )
        for handle in handles:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGCONT)
            os.close(handle)

    def _fault(self) -> tuple[float, int, int] | None:
        """When it struck, and the pids of the run (or the command) and the keeper."""
        for line in self._fact_lines():
            word, *fields = line.split()
            if word == "fault" and len(fields) == 3:
                return float(fields[0]), int(fields[1]), int(fields[2])
        return None

    def _fact_lines(self) -> list[str]:
        return self._facts.read_text().splitlines() if self._facts.exists() else []

    def observation(self) -> Observation:
        """What was seen of the run itself."""
        fault = self._fault()
        text = self._report.read_text() if self._report.exists() else ""
        refused = [line.split()[1] for line in self._fact_lines() if line.startswith("refused")]
        return Observation(
            status=self._process.returncode,
            stderr=(self._folder / "stderr").read_text(),
            report=json.loads(text) if text else None,
            fault_s=fault[0] if fault else None,
            refused=refused[0] if refused else "",
            max_hold_s=self._max_hold_s,
            slow_s=self._machine.slow_s,
            ending_s=self._machine.ending_s,
            began_s=self._began_s,
            ended_s=self._ended_s,
            command_began=(self._folder / "began").exists(),
            command_done=(self._folder / "done").exists(),
            serves=self._service.listens(),
        )


def _runs(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"
