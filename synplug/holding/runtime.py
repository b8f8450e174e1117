"""The folder /run/synplug: one folder a network namespace, root's alone; at rest they are gone."""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from synplug.errors import PrivilegeError, SynplugError
from synplug.kernel.namespaces import network_inode

ROOT = "/run/synplug"
#: Whoever ends removes the folder, if it is empty, while somebody else begins.
_TRIES = 100
_CREATE = os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_WRONLY


def _folder(path: str) -> None:
    """Make the folder, or check that it is ours alone.

    :raises SynplugError: it is a link, another's, or writable by others.
    """
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except PermissionError as error:
        raise PrivilegeError(
            f"cannot make {path}",
            capability="CAP_DAC_OVERRIDE",
            remedy="run it as root, or have the folder made for your user (tmpfiles.d)",
        ) from error
    except FileNotFoundError:
        raise  # its parent has gone just now: the caller tries again
    except OSError as error:
        raise SynplugError(f"cannot make {path}: {error.strerror}") from error
    _check(path, (os.geteuid(),))
    if os.lstat(path).st_mode & 0o700 != 0o700:  # a umask of ours, or of somebody's before
        os.chmod(path, 0o700)


def _check(path: str, owners: tuple[int, ...]) -> None:
    """Whether one of these, and nobody else, can have put there what is found in it.

    :raises SynplugError: it is a link, somebody else's, or writable by others.
    """
    found = os.lstat(path)
    remedy = f"look who made it, and remove it: rm -r {path}"
    if not stat.S_ISDIR(found.st_mode):
        what = "is no folder"
    elif found.st_mode & 0o022:
        what = f"can be written to by others (mode {stat.S_IMODE(found.st_mode):04o})"
    elif found.st_uid not in owners:
        what = f"belongs to user {found.st_uid}"
        remedy = (
            "ask as that user; or, if 'synplug status' shows that user nothing in any network "
            f"namespace, remove it: rm -r {path}"
        )
    else:
        return
    raise SynplugError(
        f"{path} {what}; it is used as a folder of user {owners[-1]} that only its owner can "
        "write to",
        remedy=remedy,
    )


def check_root() -> None:
    """Make sure that /run/synplug can be used; leaves it as it was.

    :raises SynplugError: it cannot.
    """
    for _ in range(_TRIES):
        try:
            _folder(ROOT)
        except FileNotFoundError:
            continue
        tidy(ROOT)
        return
    raise SynplugError(f"cannot make {ROOT}: it keeps vanishing")


def here() -> str:
    """The folder of the calling thread's network namespace; it need not exist.

    What is there has been looked at, so that nothing is read, or removed, below a link or in
    somebody else's folder. Root's may be read by whoever can.

    :raises SynplugError: it is a link, somebody else's, or writable by others.
    """
    folder = f"{ROOT}/{network_inode()}"
    for path in (ROOT, folder):
        with suppress(FileNotFoundError, PermissionError):  # who reads it meets that, too
            _check(path, (0, os.geteuid()))
    return folder


def names_in(folder: str, ending: str) -> list[str]:
    """The files of such names, sorted; none in a place that no run could have written to.

    :raises PermissionError: the folder is another user's.
    :raises SynplugError: it cannot be listed, which is not "nothing is there".
    """
    try:
        return sorted(name for name in os.listdir(folder) if name.endswith(ending))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError:
        raise
    except OSError as error:
        raise SynplugError(f"cannot list {folder}: {error.strerror}") from error


def tidy(folder: str) -> None:
    """Remove the folders if nothing is in them any more."""
    for path in (folder, ROOT):
        with suppress(OSError):
            os.rmdir(path)


def create(path: str, flags: int) -> int:
    """Open a file below a folder that another run may be removing just now."""
    for _ in range(_TRIES):
        try:
            _folder(ROOT)
            _folder(os.path.dirname(path))
            descriptor = os.open(path, flags | _CREATE, 0o600)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise SynplugError(f"cannot create {path}: {error.strerror}") from error
        with suppress(OSError):  # whatever the umask
            os.fchmod(descriptor, 0o600)
        return descriptor
    raise SynplugError(f"cannot create {path}: its folder keeps vanishing")
