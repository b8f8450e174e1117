"""The entry point: finds the verb, and says what went wrong in one line."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Callable, Sequence

from synplug.cli.config_options import DIRECTORY, MAIN_FILE, OTHER_VARIABLES, PREFIX
from synplug.cli.options import WITH_COMMAND, parser
from synplug.cli.render import complain, plain
from synplug.errors import SynplugError, UsageError, unforeseen
from synplug.kernel.procfs import initial_variables

_INTERRUPTED = 130
#: A verb is a module with ``run(options, command) -> exit status``.
_VERBS = {
    "wrap": "synplug.cli.wrap",
    "restart": "synplug.cli.wrap",
    "hold": "synplug.cli.hold",
    "release": "synplug.cli.release",
    "swap": "synplug.cli.swap",
    "supervise": "synplug.cli.supervise",
    "reload": "synplug.cli.reload",
    "doctor": "synplug.cli.doctor",
    "recover": "synplug.cli.recover",
    "status": "synplug.cli.status",
    "config": "synplug.cli.config",
    "systemd": "synplug.cli.systemd",
    "completion": "synplug.cli.completion",
    "demo": "synplug.cli.demo",
}
#: Those that take options from files and variables.
_CONFIGURED = (*WITH_COMMAND, "restart", "hold", "release")


def main(argv: Sequence[str] | None = None) -> int:
    """Run synplug with these arguments; returns the exit status."""
    _occupy_standard_streams()
    _undo_locale_coercion()
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _flushed(_said(words))
    except SynplugError as error:
        complain(f"synplug: {plain(str(error))}")
        return error.exit_code
    except BrokenPipeError:  # of standard output: a list that was read far enough
        sys.stdout = None  # or the interpreter's last flush makes the exit status 120
        return 0
    except KeyboardInterrupt:
        return _INTERRUPTED
    except Exception as error:  # noqa: BLE001 -- no floor foresaw it; what was held is released
        complain(f"synplug: {plain(str(unforeseen(error)))}")
        return SynplugError.exit_code


def _said(words: list[str]) -> int:
    """As :func:`_run`; --help and --version end in the middle of it, when they have said it."""
    try:
        return _run(words)
    except SystemExit as end:
        return int(end.code or 0)


def _run(words: list[str]) -> int:
    """Find the verb and run it; returns the exit status."""
    given, command = _split(words)
    verb = given[0] if given else ""
    if command and verb in _VERBS and verb not in WITH_COMMAND:
        meant = "say 'synplug wrap -- CMD'" if verb == "restart" else ""
        raise UsageError(f"synplug {verb} takes no command", remedy=meant)
    if verb not in _CONFIGURED or not _is_configured(verb, given):
        return _call(given, command)
    from synplug.cli.settings import with_settings

    with_all, whole_command = with_settings(given, command, os.environ)
    try:
        return _call(with_all, whole_command)
    except UsageError as error:
        from synplug.cli.combinations import places_of

        places = places_of(error, given, command, os.environ)
        if not places:
            raise
        raise UsageError(f"{places}: {error.message}", remedy=error.remedy) from error


def _call(words: list[str], command: list[str]) -> int:
    """Run what the words say; returns the exit status."""
    options = parser(words[0] if words else "", has_command=bool(command)).parse_args(words)
    run: Callable[..., int] = importlib.import_module(_VERBS[options.verb]).run
    if not gc.isenabled():  # see synplug.cli.start
        gc.freeze()
        gc.enable()
    return run(options, tuple(command))


def _is_configured(verb: str, words: list[str]) -> bool:
    """Whether there is a configuration at all: reading one costs."""
    return (
        verb == "restart"
        or any(word.startswith(("-s", "--service", "--config")) for word in words)
        or any(name.startswith(PREFIX) for name in os.environ.keys() - OTHER_VARIABLES)
        or f"{PREFIX}CONFIG" in os.environ
        or os.path.lexists(MAIN_FILE)
        or os.path.isdir(DIRECTORY)
    )


def _flushed(status: int) -> int:
    """The status, after standard output has been written: what fails then is said."""
    if sys.stdout is not None:
        sys.stdout.flush()
    return status


def _occupy_standard_streams() -> None:
    """Keep our own descriptors from becoming 0, 1 or 2 where the caller has closed these.

    The command finds them closed, as the caller left them.
    """
    for stream in (0, 1, 2):
        try:
            os.fstat(stream)
        except OSError:
            os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)


def _undo_locale_coercion() -> None:
    """Give the command the caller's environment: Python may have set LC_CTYPE (PEP 538)."""
    given = initial_variables()
    if given is not None and b"LC_CTYPE" not in given:
        os.environ.pop("LC_CTYPE", None)


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Our arguments, and the command behind the first ``--``."""
    if "--" not in words:
        return words, []
    cut = words.index("--")
    return words[:cut], words[cut + 1 :]
