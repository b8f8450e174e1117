"""The public names as a user would use them: type-checked by a test, never run."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import synplug
from synplug import (
    CheckError,
    CommandError,
    CommandNotFoundError,
    DrainError,
    Endpoint,
    Held,
    HoldCounts,
    HoldResult,
    KeeperError,
    KernelError,
    LockError,
    Outcome,
    PrivilegeError,
    ReleaseError,
    Report,
    SynplugError,
    TargetError,
    UnsupportedError,
    UsageError,
)

if TYPE_CHECKING:
    from typing_extensions import assert_type  # in typing from Python 3.11 on


def hold_ports() -> int:
    """The context manager, with numbers and with endpoints."""
    with synplug.hold([80, 443]):
        pass
    endpoint = Endpoint(port=80, address=IPv4Address("10.0.0.1"))
    with synplug.hold(
        (80, endpoint), max_hold=5.0, max_held=1000, on_full="pass", release="burst"
    ) as held:
        assert_type(held, Held)
        assert_type(held.release(), HoldResult)
    assert_type(held.result, HoldResult | None)
    if held.result is None:
        return 0
    assert_type(held.result.counts, HoldCounts)
    return held.result.counts.released


def wrap_command() -> bool:
    """A restart, and what its report says."""
    report = synplug.wrap(
        ["systemctl", "restart", "app"],
        ports=[80],
        unit="app",
        pid=None,
        pidfile="/run/app.pid",
        max_hold=5,
        lock_timeout=1.0,
        drain_timeout=0.5,
        on_drain_timeout="abort",
        quiesce=0,
        ready_http="http://127.0.0.1/",
        ready_cmd=["curl", "-f", "http://127.0.0.1/"],
        ready_timeout=3.0,
        settle=0.1,
        require_new=True,
        check=("app", "--check"),
        best_effort=True,
    )
    assert_type(report, Report)
    assert_type(report.ok, bool)
    assert_type(report.outcome, Outcome)
    assert_type(report.gap_s, float | None)
    assert_type(report.command.status, int | None)
    assert_type(report.warnings, tuple[str, ...])
    assert_type(report.endpoints, tuple[Endpoint, ...])
    names = [owner.name for owned in report.new_listeners for owner in owned.owners]
    assert_type(names, list[str])
    return report.ok and report.outcome is Outcome.READY


def handle_errors() -> str:
    """Every error is a SynplugError, and says what to do."""
    try:
        wrap_command()
    except PrivilegeError as error:
        return error.capability
    except KernelError as error:
        return f"{error.errno:d}"
    except (TargetError, UsageError, UnsupportedError, LockError) as error:
        return error.remedy
    except (CheckError, DrainError, KeeperError, ReleaseError, CommandNotFoundError) as error:
        return error.message
    except CommandError as error:
        return str(error.exit_code)
    except SynplugError as error:
        assert_type(error.exit_code, int)
        return error.message
    assert_type(synplug.__version__, str)
    return synplug.__version__


def mistakes(report: Report, endpoint: Endpoint) -> None:
    """What a type checker must refuse: an ignore that is not needed is an error itself."""
    synplug.wrap("systemctl restart app", port=80)  # type: ignore[call-arg]
    synplug.hold(["80"])  # type: ignore[list-item]
    synplug.hold([80], 5.0)  # type: ignore[call-arg]
    Endpoint(80)  # type: ignore[call-arg]
    endpoint.port = 81  # type: ignore[misc]
    report.exit_code = 0  # type: ignore[misc]
    report.gap_s + 1  # type: ignore[operator]
