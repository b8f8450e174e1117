"""What a restart command tells about its service.

The unit of ``systemctl restart UNIT``, the pidfile of ``nginx -s``, of ``haproxy -p``, the pid
of ``kill``. A wrong guess would hold somebody else's connections, so only forms that are
understood completely count, and shell scripts are not read.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Sequence

from synplug.record import Record

_WRAPPERS = frozenset({"sudo", "env", "nice", "ionice", "nohup", "setsid", "doas"})
_SYSTEMCTL_VERBS = frozenset(
    {
        "restart",
        "reload",
        "try-restart",
        "reload-or-restart",
        "try-reload-or-restart",
        "start",
        "stop",
        "kill",
        "condrestart",
        "force-reload",
    }
)
_SYSTEMCTL_FLAGS = frozenset(
    {
        "--system",
        "--no-block",
        "--no-ask-password",
        "--quiet",
        "-q",
        "--now",
        "--wait",
        "--show-transaction",
        "--no-wall",
        "--force",
        "-f",
    }
)
_ENDING_SIGNALS = frozenset({"TERM", "INT", "QUIT", "KILL", "ABRT", "15", "2", "3", "9", "6"})
_PIDFILE_FLAGS = ("--pidfile", "--pid-file")
_PIDFILE_FLAGS_OF = {
    "haproxy": ("-p",),
    "start-stop-daemon": ("-p",),
    "gunicorn": ("-p", "--pid"),
    "uwsgi": ("--reload", "--stop"),
}
#: The tokens of nginx's configuration: ``ngx_conf_read_token`` in ``src/core/ngx_conf_file.c``.
_NGINX_PIECE = r"""(?s)\s+|\#[^\n]*|[;{}]|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^\s;{}"'][^\s;{}]*"""
_NGINX_CONF_BYTES = 1 << 20
#: As many digits as the largest process id has (proc(5), pid_max).
_PID = r"[0-9]{1,7}"
_NGINX_BUILT_IN = r"--pid-path=(\S+)"
_NGINX_PREFIX_BUILT_IN = r"--prefix=(\S+)"
_NGINX_PREFIX = "/usr/local/nginx"
_NGINX_CONF_BUILT_IN = r"--conf-path=(\S+)"


class Clue(Record):
    """What a command tells about its service.

    :param returns_early: it ends before the old listener does, which must not be taken for a
        reload that keeps its sockets.
    """

    units: tuple[str, ...] = ()
    pids: tuple[int, ...] = ()
    pidfiles: tuple[str, ...] = ()
    returns_early: bool = False


def clue_of(argv: Sequence[str]) -> Clue:
    """What a command tells; an empty clue where it is not understood."""
    words = _unwrapped(list(argv))
    if not words:
        return Clue()
    name, rest = os.path.basename(words[0]), words[1:]
    reader = _READERS.get(name)
    clue = reader(words) if reader else Clue()
    if clue == Clue():
        pidfiles = _values_of(rest, _PIDFILE_FLAGS + _PIDFILE_FLAGS_OF.get(name, ()))
        clue = Clue(pidfiles=tuple(path for path in pidfiles if os.path.exists(path)))
    return clue


def _unwrapped(words: list[str]) -> list[str]:
    """The command behind sudo, env and their like, where they are used without options."""
    while words and os.path.basename(words[0]) in _WRAPPERS:
        words = words[1:]
        while words and "=" in words[0] and not words[0].startswith(("-", "/")):
            words = words[1:]
    return words


def _values_of(words: Sequence[str], flags: Sequence[str]) -> list[str]:
    """The values of these flags: ``--flag VALUE`` and ``--flag=VALUE``."""
    found = []
    for index, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag in flags and equals:
            found.append(value)
        elif word in flags and index + 1 < len(words):
            found.append(words[index + 1])
    return found


def _systemctl(argv: list[str]) -> Clue:
    """Only options that take no value, or are understood: -H and -M mean another machine."""
    words = [word for word in argv[1:] if word not in _SYSTEMCTL_FLAGS]
    for flag in ("-s", "--signal"):
        if flag in words:
            del words[words.index(flag) : words.index(flag) + 2]
    words = [word for word in words if not word.startswith(("--signal=", "--kill-who="))]
    if len(words) < 2 or words[0] not in _SYSTEMCTL_VERBS:
        return Clue()
    if any(word.startswith("-") for word in words):
        return Clue()
    # kill sends a signal, and waits for nothing that comes of it.
    returns_early = "--no-block" in argv or words[0] == "kill"
    return Clue(units=tuple(words[1:]), returns_early=returns_early)


def _service(argv: list[str]) -> Clue:
    plain = [word for word in argv[1:] if not word.startswith("-")]
    return Clue(units=(plain[0],)) if len(plain) >= 2 else Clue()


def _kill(argv: list[str]) -> Clue:
    rest = argv[1:]
    number = "TERM"
    if rest and rest[0] in ("-s", "--signal", "-n"):
        number, rest = "".join(rest[1:2]), rest[2:]
    elif rest and rest[0].startswith("--signal="):
        number, rest = rest[0].partition("=")[2], rest[1:]
    elif rest and rest[0].startswith("-") and rest[0] != "--":
        number, rest = rest[0][1:], rest[1:]
    if rest and rest[0] == "--":
        rest = rest[1:]
    if not rest or not all(re.fullmatch(_PID, word) and int(word) > 1 for word in rest):
        return Clue()
    ends_it = number.upper().removeprefix("SIG") in _ENDING_SIGNALS
    return Clue(pids=tuple(map(int, rest)), returns_early=ends_it)


def _haproxy(argv: list[str]) -> Clue:
    pids: list[int] = []
    for index, word in enumerate(argv):
        if word in ("-sf", "-st"):
            for value in argv[index + 1 :]:
                if not re.fullmatch(_PID, value):
                    break
                pids.append(int(value))
    pidfiles = tuple(path for path in _values_of(argv, ("-p",)) if os.path.exists(path))
    return Clue(pids=tuple(pids), pidfiles=() if pids else pidfiles)


def _nginx(argv: list[str]) -> Clue:
    """The pidfile that nginx itself would use: -g, then the configuration, then built in.

    What is relative is so to its prefix, not to where we are (ngx_conf_full_name).
    """
    built_in = output_of([argv[0], "-V"])
    prefixes = _values_of(argv, ("-p",)) or re.findall(_NGINX_PREFIX_BUILT_IN, built_in)
    prefix = prefixes[-1] if prefixes else _NGINX_PREFIX
    path = _nginx_pidfile("\n".join(_values_of(argv, ("-g",))))
    if path == "":
        paths = _values_of(argv, ("-c",)) or re.findall(_NGINX_CONF_BUILT_IN, built_in)
        try:
            configuration = beginning_of(os.path.join(prefix, paths[0]), _NGINX_CONF_BYTES)
        except (OSError, IndexError):  # then nginx itself will fail, and nobody's is meant
            return Clue()
        if len(configuration) == _NGINX_CONF_BYTES:  # there is more, and it was not read
            return Clue()
        path = _nginx_pidfile(configuration.decode(errors="replace"))
        if path == "":
            path = "".join(re.findall(_NGINX_BUILT_IN, built_in)[:1])
    path = os.path.join(prefix, path) if path else ""
    return Clue(pidfiles=(path,)) if path and os.path.exists(path) else Clue()


def _nginx_pidfile(configuration: str) -> str | None:
    """The value of the directive ``pid``, which stands outside of all blocks.

    Empty without one; None where a quote stays open, so what follows is not understood.
    """
    statement: list[str] = []
    depth = offset = 0
    piece_of = re.compile(_NGINX_PIECE)
    while match := piece_of.match(configuration, offset):
        piece, offset = match.group(), match.end()
        if piece == ";" and depth == 0 and len(statement) == 2 and statement[0] == "pid":
            return statement[1].strip("\"'")
        if piece in (";", "{", "}"):
            depth += (piece == "{") - (piece == "}")
            statement.clear()
        elif not piece.isspace() and not piece.startswith("#"):
            statement.append(piece)
    return "" if offset == len(configuration) else None


_READERS: dict[str, Callable[[list[str]], Clue]] = {
    "systemctl": _systemctl,
    "service": _service,
    "kill": _kill,
    "haproxy": _haproxy,
    "nginx": _nginx,
}


def beginning_of(path: str, limit_bytes: int) -> bytes:
    """What a plain file begins with. Anything else could make its reader wait for ever.

    :raises OSError: it cannot be read, or is no plain file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a plain file", path)
        return os.read(descriptor, limit_bytes)
    finally:
        os.close(descriptor)


def output_of(argv: list[str]) -> str:
    """What a short, harmless command says; empty when it cannot be run."""
    import subprocess

    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=5, stdin=subprocess.DEVNULL, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (done.stdout + done.stderr).strip()


def remedy_of_quotes(name: str) -> str:
    """What to do about a whole command in one word, which no shell splits; empty: it is none."""
    is_whole = any(map(str.isspace, name)) and not os.path.lexists(name)
    return "leave out the quotes around the command, or use sh -c" if is_whole else ""


def remedy_of_absence(name: str) -> str:
    """What to do about a command that is not found; empty: who knows."""
    return f"it is ./{name} here" if os.path.isfile(name) else remedy_of_quotes(name)


def remedy_of_mode(paths: Sequence[str]) -> str:
    """What helps where a file lacks no more than the permission to be executed; empty: not that."""
    import shlex

    for path in paths:
        try:
            mode = os.stat(path).st_mode
        except OSError:
            continue
        if not mode & 0o111:
            return f"chmod +x {shlex.quote(path)}, if it is meant to be"
    return ""
