"""A small Debian with a real systemd, as the root of a guest, and this synplug installed in it.

Its packages are unpacked, and not configured: what their scripts would have made, and is needed
here, is made by :func:`_complete`. So no root is needed. synplug is built as a wheel, as for a
release, and installed by pip into a virtual environment, `/opt/synplug` in the guest.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from guest.suites import CACHE, REPOSITORY, apt_of, locked, run

#: The first Debian whose systemd (257) knows Type=notify-reload, which came with 253.
SUITE = "trixie"
#: Where synplug is in the guest.
SYNPLUG = Path("/opt/synplug")

_PACKAGES = (
    *(
        "base-files",
        "base-passwd",
        "bash",
        "coreutils",
        "dash",
        "grep",
        "hostname",
        "libc-bin",
        "sed",
    ),
    *("mount", "util-linux", "kmod", "procps", "systemd-sysv"),
    *("iproute2", "iptables", "nftables", "nginx"),
    *("python3", "python3-venv", "python3-pytest", "python3-tenacity", "python3-iptables"),
)
_ENVIRONMENT = "PATH=/usr/sbin:/usr/bin LC_ALL=C.UTF-8"  # nothing of the machine's own pip
_STAMP = "complete"
_SOURCES = ("synplug/**/*", "man/*.1", "pyproject.toml", "README.md")
_STALE_AFTER_S = 24 * 3600


@dataclass(frozen=True, kw_only=True)
class System:
    """A root with systemd, and the folder of the synplug to be mounted there."""

    root: Path
    synplug: Path


def fetch_system() -> System:
    """Return the root and the synplug of this checkout, made if they are not in the cache.

    Only the root needs the network.

    Raises:
        FetchError: apt, dpkg or pip failed; with its words.

    """
    root = CACHE / "systemd"
    CACHE.mkdir(exist_ok=True)
    with locked(CACHE / "systemd.lock"):
        wanted = _digest(Path(__file__).read_bytes())
        if not (root / _STAMP).exists() or (root / _STAMP).read_text() != wanted:
            _build_root(root, wanted)
        return System(root=root, synplug=_install(root, wanted))


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


def _build_root(root: Path, stamp: str) -> None:
    """Build aside, publish by rename."""
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="systemd.new-") as directory:
        fresh, state = Path(directory, "root"), Path(directory, "apt")
        fresh.mkdir(mode=0o755)
        apt = apt_of(SUITE, state)
        run([*apt, "--yes", "--no-install-recommends", "--download-only", "install", *_PACKAGES])
        for file in sorted((state / "cache/archives").glob("*.deb")):
            run(["dpkg", "-x", str(file), str(fresh)])
        _complete(fresh)
        (fresh / _STAMP).write_text(stamp, encoding="ascii")
        shutil.rmtree(root, ignore_errors=True)
        fresh.rename(root)


def _complete(root: Path) -> None:
    """Do what the packages' scripts would, as far as it is needed."""
    for name in ("passwd", "group"):
        shutil.copy(root / "usr/share/base-passwd" / f"{name}.master", root / "etc" / name)
    for folder in (SYNPLUG, Path("/usr/lib/modules"), Path("/var/lib/nginx")):
        root.joinpath(*folder.parts[1:]).mkdir(parents=True, exist_ok=True)
    (root / "usr/bin/synplug").symlink_to(SYNPLUG / "bin/synplug")
    authorities = (root / "usr/share/ca-certificates").rglob("*.crt")  # pip looks for them
    bundle = b"".join(path.read_bytes() for path in sorted(authorities))
    (root / "etc/ssl/certs/ca-certificates.crt").write_bytes(bundle)
    # none that systemd has to make: this boot is no first boot, on which it would enable all units
    (root / "etc/machine-id").write_text(f"{_digest() * 2}\n", encoding="ascii")
    _run_in(root, ["systemd-sysusers"])
    _run_in(root, ["ldconfig"])
    # without them a guest, which cannot keep them, would compile all that it imports
    _run_in(root, ["python3", "-m", "compileall", "-q", "-j", "0", "/usr/lib/python3"])
    _run_in(root, ["python3", "-m", "compileall", "-q", "-j", "0", "/usr/lib/python3.13"])


def _install(root: Path, stamp: str) -> Path:
    """Install synplug as it is now, if it is not; without network, so also before a test."""
    files = sorted(path for glob in _SOURCES for path in REPOSITORY.glob(glob) if path.is_file())
    files = [path for path in files if path.suffix != ".pyc"]
    name = f"{SYNPLUG.name}-{_digest(stamp.encode(), *(path.read_bytes() for path in files))}"
    installed = CACHE / name
    if installed.exists():
        os.utime(installed)
        return installed
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=f"{name}.new-") as directory:
        fresh, place = Path(directory, "synplug"), str(SYNPLUG)
        for path in files:
            copy = fresh / "source" / path.relative_to(REPOSITORY)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
        pip = [f"{place}/bin/pip", "--quiet", "--no-cache-dir"]
        offline = ["--no-index", "--find-links=/usr/share/python-wheels"]  # has setuptools
        _run_in(root, ["python3", "-m", "venv", "--system-site-packages", place], synplug=fresh)
        wheel = ["wheel", *offline, "--no-deps", f"--wheel-dir={place}", f"{place}/source"]
        _run_in(root, [*pip, *wheel], synplug=fresh)
        (built,) = fresh.glob("*.whl")
        _run_in(root, [*pip, "install", *offline, f"{place}/{built.name}[iptables]"], synplug=fresh)
        shutil.rmtree(fresh / "source")
        fresh.rename(installed)
    for other in CACHE.glob(f"{SYNPLUG.name}-*"):
        if other.stat().st_mtime < time.time() - _STALE_AFTER_S:
            shutil.rmtree(other, ignore_errors=True)
    return installed


def _run_in(root: Path, argv: list[str], *, synplug: Path | None = None) -> None:
    """Run it with `root` for its root, as root of it, in a mount namespace of its own."""
    lines = [f'mount --rbind /dev "{root}/dev"', f'exec chroot "{root}" env -i {_ENVIRONMENT} "$@"']
    if synplug is not None:
        lines.insert(0, f'mount --bind "{synplug}" "{root}{SYNPLUG}"')
    mapped = [] if os.geteuid() == 0 else ["--map-root-user"]
    script = " && ".join(lines)
    run(["unshare", "--mount", *mapped, "sh", "-c", script, "sh", *argv])
