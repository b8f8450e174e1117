"""Compile the lab's C programs on demand, outside the repository, once a version."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from netlab.errors import BuildError

_SOURCES = Path(__file__).parent
_FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror")


def compiled(name: str) -> Path:
    """Return the binary of `NAME.c` beside this module, compiled if it is not in the cache.

    The cache is $XDG_CACHE_HOME/netlab, or a directory of the user's below the
    temporary one. It is keyed by the hash of the sources and flags.

    Raises:
        BuildError: there is no `cc`, or it reports an error.

    """
    source = _SOURCES / f"{name}.c"
    digest = hashlib.sha256(" ".join(_FLAGS).encode())
    for part in sorted(_SOURCES.glob(f"{name}*.[ch]")):
        digest.update(part.read_bytes())
    binary = _cache_directory() / f"{name}-{digest.hexdigest()[:16]}"
    if not os.access(binary, os.X_OK):
        _compile(source, binary)
    return binary


def _compile(source: Path, binary: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        raise BuildError("no C compiler: run netns-fixtures/setup.sh as root")
    with tempfile.TemporaryDirectory(dir=binary.parent) as directory:
        fresh = Path(directory, binary.name)
        argv = [compiler, *_FLAGS, "-o", str(fresh), str(source)]
        result = subprocess.run(argv, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise BuildError(f"{source.name} does not compile:\n{result.stderr}")
        fresh.replace(binary)


@functools.cache
def _cache_directory() -> Path:
    home = os.environ.get("HOME", "")
    cache = os.environ.get("XDG_CACHE_HOME") or (f"{home}/.cache" if home else "")
    candidates = [Path(cache, "netlab")] if cache.startswith("/") else []
    candidates.append(Path(tempfile.gettempdir(), f"netlab-{os.geteuid()}"))
    for directory in candidates:
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        # Never run what somebody else could have put there.
        if directory.stat().st_uid == os.geteuid() and os.access(directory, os.W_OK):
            return directory
    return Path(tempfile.mkdtemp(prefix="netlab-"))
