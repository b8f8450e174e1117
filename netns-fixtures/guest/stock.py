"""Fetch a distribution's ordinary kernel, and an emulator for it, into `.guest/stock-SUITE`.

`linux-image-amd64` is what Debian's users run: it has what User Mode Linux is built without, above
all nf_tables for IP. QEMU runs it, in software, so that no KVM is needed. The host's files come by
9p; what that takes is in an initramfs. As with `guest.suites` nothing is installed.
"""

from __future__ import annotations

import hashlib
import lzma
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from guest.errors import FetchError
from guest.suites import (
    CACHE,
    MEMORY_MIB,
    Kernel,
    apt_of,
    check_tools,
    list_modules,
    locked,
    make_places,
    run,
)

#: What such a kernel is called, and the suite that it comes from.
STOCK = {
    "stock-bookworm": "bookworm",
    "stock-trixie": "trixie",
    "stock-sid": "sid",
}
DEFAULT_STOCK = "stock-bookworm"

_PACKAGES = ("linux-image-amd64", "qemu-system-x86", "busybox-static")
_INIT = Path(__file__).with_name("stock.sh")
#: Until the host's files are there; all others are loaded from these.
_MODULES = ("virtio_pci", "9pnet_virtio", "9p")
#: Three quarters of the modules: those of hardware that no guest has.
_NO_HARDWARE = (
    *("sound", "drivers/gpu", "drivers/media", "drivers/scsi", "drivers/infiniband"),
    *("drivers/net/ethernet", "drivers/net/wireless", "drivers/usb", "drivers/iio"),
)
_STAMP = "complete"


@dataclass(frozen=True, kw_only=True)
class StockKernel(Kernel):
    """An unpacked kernel: `root` has the emulator, its libraries, the kernel, and its modules."""

    def argv(self, shared: Path, parameters: Sequence[str]) -> list[str]:
        """The command of the emulator, for a chroot to `root`."""
        files = "security_model=none,multidevs=remap"
        words = ("console=ttyS0", "quiet", "panic=-1", "mitigations=off", *parameters)
        return [
            "/usr/bin/qemu-system-x86_64",
            # The host's own programs may need more than the least of all processors has
            *("-machine", "pc", "-accel", "tcg", "-cpu", "max", "-m", f"{MEMORY_MIB}M"),
            *("-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"),
            "-no-reboot",
            *("-virtfs", f"local,path=/host,mount_tag=host,readonly=on,{files}"),
            *("-virtfs", f"local,path=/host{shared},mount_tag=shared,{files}"),
            *("-kernel", "/vmlinuz", "-initrd", "/initramfs"),
            *("-append", " ".join(words)),
        ]


def fetch_stock(name: str) -> StockKernel:
    """Return the kernel of that name, downloaded if it is not in the cache.

    Raises:
        FetchError: no such kernel, a tool is missing, or apt failed; with its words.

    """
    root = CACHE / name
    contents = repr((_PACKAGES, _MODULES, _NO_HARDWARE, _INIT.read_text(encoding="ascii")))
    wanted = hashlib.sha256(contents.encode()).hexdigest()[:16]
    release = _release(root, wanted)
    if not release:
        CACHE.mkdir(exist_ok=True)
        with locked(CACHE / f"{name}.lock"):
            release = _release(root, wanted) or _build(STOCK[name], root, wanted)
    return StockKernel(suite=name, root=root, release=release)


def _release(root: Path, wanted: str) -> str:
    """The release of the kernel that is there; empty: none, or not as it is wanted."""
    path = root / _STAMP
    stamp, _, release = path.read_text().strip().partition(" ") if path.exists() else ("", "", "")
    return release if stamp == wanted else ""


def _build(suite: str, root: Path, stamp: str) -> str:
    """Build aside, publish by rename; the kernel's release."""
    check_tools()
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=f"{root.name}.new-") as directory:
        fresh, state = Path(directory, "root"), Path(directory, "apt")
        fresh.mkdir(mode=0o755)
        apt = apt_of(suite, state)
        run([*apt, "--yes", "--no-install-recommends", "--download-only", "install", *_PACKAGES])
        for file in sorted((state / "cache/archives").glob("*.deb")):
            run(["dpkg", "-x", str(file), str(fresh)])
        make_places(fresh)
        for folder in _NO_HARDWARE:
            for path in fresh.glob(f"lib/modules/*/kernel/{folder}"):
                shutil.rmtree(path)
        release = list_modules(fresh, "lib/modules")
        (fresh / "vmlinuz").symlink_to(_image(fresh, release))
        _make_initramfs(fresh, release, Path(directory, "initramfs"))
        (fresh / _STAMP).write_text(f"{stamp} {release}\n", encoding="ascii")
        shutil.rmtree(root, ignore_errors=True)
        fresh.rename(root)
    return release


def _image(root: Path, release: str) -> str:
    """Where the kernel itself is, below *root*."""
    places = (f"boot/vmlinuz-{release}", f"usr/lib/modules/{release}/vmlinuz")
    for place in places:
        if (root / place).exists():
            return place
    raise FetchError(f"linux-image-amd64 has no kernel at {' or '.join(places)}")


def _make_initramfs(root: Path, release: str, tree: Path) -> None:
    """busybox, stock.sh and the modules, in the order in which they are to be loaded."""
    for folder in ("bin", "dev", "host", "modules", "proc"):
        (tree / folder).mkdir(parents=True)
    shutil.copy(root / "bin/busybox", tree / "bin")
    shutil.copy(_INIT, tree / "init")
    files: dict[str, None] = {}
    for module in _MODULES:
        argv = ["modprobe", "--dirname", str(root / "modules"), "--set-version", release]
        for line in run([*argv, "--show-depends", module]).splitlines():
            word, _, file = line.strip().partition(" ")
            if word == "insmod":  # the other word is builtin
                files[file.split()[0]] = None
    for number, file in enumerate(files):
        data = Path(file).read_bytes()
        target = tree / "modules" / f"{number:02}-{Path(file).name.removesuffix('.xz')}"
        target.write_bytes(lzma.decompress(data) if file.endswith(".xz") else data)
    names = "".join(f"{path.relative_to(tree)}\n" for path in sorted(tree.rglob("*")))
    packed = subprocess.run(
        [str(tree / "bin/busybox"), "cpio", "-o", "-H", "newc"],
        cwd=tree,
        input=names.encode(),
        capture_output=True,
        check=False,
    )
    if packed.returncode:
        raise FetchError(f"cpio failed:\n{packed.stderr.decode().strip()}")
    (root / "initramfs").write_bytes(packed.stdout)
