"""A pidfile that is replaced whole: its readers see the old pid or the new one."""

from __future__ import annotations

import os
from contextlib import suppress

from synplug.errors import SynplugError, UsageError


class Pidfile:
    """The draft of a pidfile, beside it: what can fail fails before anything is started.

    :raises UsageError: the file cannot be made.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._draft = f"{path}.synplug-{os.getpid()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._descriptor = os.open(self._draft, flags, 0o644)
        except OSError as error:
            raise UsageError(f"--new-pidfile {path}: {error.strerror}") from error

    def publish(self, pid: int) -> None:
        """Put it in its place.

        :raises SynplugError: that failed.
        """
        try:
            os.write(self._descriptor, f"{pid}\n".encode())
            os.rename(self._draft, self._path)
        except OSError as error:
            raise SynplugError(
                f"the new pid, {pid}, could not be written to {self._path}: {error.strerror}"
            ) from error

    def close(self) -> None:
        """Remove the draft, if it was not published.

        :raises SynplugError: it stays.
        """
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            try:
                with suppress(FileNotFoundError):
                    os.unlink(self._draft)
            except OSError as error:
                words = f"{self._draft} could not be removed: {error.strerror}"
                raise SynplugError(words) from error
