"""Fetch the kernel of a Debian suite, `user-mode-linux`, into `.guest/SUITE` of the checkout.

Nothing is installed, and the machine's own apt keeps its lists: apt gets a source list, state
and cache of its own, the machine's mirror, and Debian's archive keys. No root is needed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from guest.errors import FetchError

REPOSITORY = Path(__file__).parents[2]
CACHE = REPOSITORY / ".guest"
#: Debian's suites, oldest kernel first.
SUITES = ("bullseye", "bookworm", "trixie", "sid")
DEFAULT_SUITE = "bookworm"

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# The kernel is a program; it goes with its own C library, which loads libgcc_s when it ends.
_PACKAGES = ("user-mode-linux", "libc6", "libgcc-s1")
TOOLS = {"apt-get": "apt", "dpkg": "dpkg", "depmod": "kmod"}
_STAMP = "complete"
MEMORY_MIB = 1024
_COMMAND_TIMEOUT_S = 300


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """An unpacked kernel: `root` has the program that is it, its C library and its modules."""

    suite: str
    root: Path
    release: str

    @property
    def modules(self) -> Path:
        """What `modprobe --dirname` takes."""
        return self.root / "modules"

    def argv(self, shared: Path, parameters: Sequence[str]) -> list[str]:  # noqa: ARG002
        """Boot it by this command, chrooted into `root`, with the host's files below /host.

        `shared` is among them, for hostfs to find it.
        """
        return [
            "/usr/bin/linux.uml",
            f"mem={MEMORY_MIB}M",
            *("root=/dev/root", "rootfstype=hostfs", "rootflags=/host", "ro"),
            *("quiet", "panic=-1", "con=null", "con0=null,fd:1"),  # a panic ends the program
            *parameters,
        ]


def fetch(suite: str) -> Kernel:
    """Return the kernel of `suite`, downloaded if it is not in the cache.

    Raises:
        FetchError: no such suite, a tool is missing, or apt failed; with its words.

    """
    if suite not in SUITES:
        raise FetchError(f"no suite {suite!r}: there are {', '.join(SUITES)}")
    root = CACHE / suite
    if not (root / _STAMP).exists():
        CACHE.mkdir(exist_ok=True)
        with locked(CACHE / f"{suite}.lock"):
            if not (root / _STAMP).exists():
                _build(suite, root)
    return Kernel(suite=suite, root=root, release=(root / _STAMP).read_text().strip())


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Two at once would download twice; the lock goes with the process."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(suite: str, root: Path) -> None:
    """Build aside, publish by rename."""
    check_tools()
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=f"{suite}.new-") as directory:
        fresh = Path(directory, "root")
        fresh.mkdir(mode=0o755)
        for file in _download(suite, Path(directory, "apt")):
            run(["dpkg", "-x", str(file), str(fresh)])
        release = _complete(fresh)
        (fresh / _STAMP).write_text(f"{release}\n", encoding="ascii")
        shutil.rmtree(root, ignore_errors=True)
        fresh.rename(root)


def check_tools() -> None:
    """See that there is what fetching a kernel takes."""
    for tool, package in TOOLS.items():
        if shutil.which(tool, path=search_path()) is None:
            raise FetchError(f"no {tool}: install the package {package}")


def _download(suite: str, state: Path) -> list[Path]:
    """Download the packages, verified by apt; their files."""
    (state / "packages").mkdir(parents=True)
    run([*apt_of(suite, state), "download", *_PACKAGES], cwd=state / "packages")
    return sorted((state / "packages").glob("*.deb"))


def apt_of(suite: str, state: Path) -> list[str]:
    """Begin an apt of our own for `suite`, with everything in `state`; how it is called.

    It takes nothing for installed, and has the lists of now.
    """
    for folder in ("lists/partial", "cache/archives/partial"):
        (state / folder).mkdir(parents=True)
    source = f"deb [signed-by={_KEYRING}] {_mirror()} {suite} main\n"
    (state / "sources.list").write_text(source, encoding="utf-8")
    (state / "status").touch()
    options: dict[str, object] = {
        "Dir::Etc::sourcelist": state / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State": state,
        "Dir::State::lists": state / "lists",
        "Dir::State::status": state / "status",  # beside it apt makes its locks
        "Dir::Cache": state / "cache",
        "Acquire::Languages": "none",
        "Acquire::Retries": 3,
        "APT::Update::Error-Mode": "any",  # a list that is missing is no success
        # apt's own user could not write here, and as somebody else we cannot become it
        "APT::Sandbox::User": "root",
    }
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
    try:
        run([*apt, "update"])
    except FetchError as error:
        raise FetchError(
            f"{error}\nWithout network? Fetch it before, with the same --suite and --systemd: "
            "python -m guest --fetch"
        ) from error
    return apt


def _mirror() -> str:
    """Where this machine gets Debian from: the first source that has a `main` of Debian's."""
    wanted = ["Created-By: Packages", "Component: main"]
    listed = run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(LABEL)", *wanted])
    targets = [line.partition(" ")[::2] for line in listed.splitlines()]
    # Without downloaded lists apt does not know the label
    for is_debian in (lambda _, label: label == "Debian", lambda uri, _: "/debian" in uri):
        for uri, label in targets:
            if is_debian(uri, label):
                return uri
    raise FetchError("apt has no source of Debian packages here")


def _complete(root: Path) -> str:
    """Make the root bootable; the kernel's release."""
    make_places(root)
    return list_modules(root, "usr/lib/uml/modules")


def make_places(root: Path) -> None:
    """Merge /usr where a package took that for granted, and make the mount points."""
    for name in ("bin", "lib", "lib64"):
        if not (root / name).exists():
            (root / name).symlink_to(f"usr/{name}")
    for name in ("dev", "host", "proc"):
        (root / name).mkdir(exist_ok=True)


def list_modules(root: Path, folder: str) -> str:
    """Make the module lists of the one kernel there, where `modules` has them; its release."""
    (release,) = (path.name for path in (root / folder).iterdir())
    # depmod and modprobe look below BASEDIR/lib/modules
    (root / "modules/lib").mkdir(parents=True)
    (root / "modules/lib/modules").symlink_to(Path("../..", folder))
    run(["depmod", "--basedir", str(root / "modules"), release])
    return release


def run(argv: Sequence[str], *, cwd: Path | None = None) -> str:
    """Run it; what it prints.

    Raises:
        FetchError: it failed; with its words.

    """
    result = subprocess.run(
        argv,
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C.UTF-8", "PATH": search_path()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_COMMAND_TIMEOUT_S,
        check=False,
    )
    if result.returncode != 0:
        raise FetchError(f"`{' '.join(argv[:2])} …` failed:\n{result.stderr.strip()}")
    return result.stdout


def search_path() -> str:
    """Users have no sbin in their PATH, where depmod is."""
    return os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
