"""An independent oracle of when a port had no listener."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from netlab.compiled import compiled
from netlab.errors import CommandError, LabError
from netlab.program import tail, wait_until
from netlab.topology import Namespace


@dataclass(frozen=True, kw_only=True)
class Gap:
    """An interval without a listener, in CLOCK_MONOTONIC ns; `family` is 4 or 6.

    Both ends are moments at which it was observed, 0.5 ms apart at best: the true gap may
    be longer by one interval at its start and shorter by one at its end.
    """

    port: int
    family: int
    start_ns: int
    end_ns: int

    @property
    def duration_ms(self) -> float:
        """Its length in milliseconds."""
        return (self.end_ns - self.start_ns) / 1e6


class ListenWatch:
    """Watches the listeners of `ports` in a namespace while the context is open.

    It asks sock_diag(7) every 0.5 ms, before all others where it may (CAP_SYS_NICE); with at
    most a quarter of a processor, so more rarely where that is slow. A gap still open at the end
    ends there.
    """

    def __init__(
        self, namespace: Namespace, ports: Sequence[int], families: Sequence[int] = (4, 6)
    ) -> None:
        self.namespace = namespace
        self.ports = tuple(ports)
        self.families = tuple(families)
        self._gaps: list[Gap] | None = None
        self._longest_interval_ns = 0
        self._child: subprocess.Popen[str] | None = None
        self._directory: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> ListenWatch:
        self._directory = tempfile.TemporaryDirectory(prefix="netlab-listenwatch-")
        argv = [str(compiled("listenwatch"))]
        argv += [f"--no-ipv{family}" for family in (4, 6) if family not in self.families]
        argv += [str(port) for port in self.ports]
        with self._output_path.open("w", encoding="utf-8") as output:
            self._child = self.namespace.popen(argv, stdout=output, stderr=output)
        try:
            wait_until(self._has_looked, 5.0, "a first look of listenwatch")
        except BaseException:
            self._child.kill()
            self._clean_up()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.stop()
        elif self._child is not None:
            self._child.kill()
        self._clean_up()

    @property
    def gaps(self) -> list[Gap]:
        """All gaps, in the order in which they ended; after `stop` or the context's end."""
        if self._gaps is None:
            raise LabError("listenwatch still runs: call stop() first")
        return self._gaps

    @property
    def longest_interval_ms(self) -> float:
        """The longest time between two looks: a shorter gap may have gone unseen."""
        return self._longest_interval_ns / 1e6

    def stop(self) -> list[Gap]:
        """Stop watching; the gaps."""
        if self._gaps is None:
            if self._child is None:
                raise LabError("listenwatch was not started")
            self._child.terminate()
            status = self._child.wait(10)
            if status != 0:
                raise CommandError(["listenwatch"], status, tail(self._output_path))
            self._gaps = self._parse()
        return self._gaps

    @property
    def _output_path(self) -> Path:
        if self._directory is None:
            raise LabError("listenwatch was not started")
        return Path(self._directory.name, "output")

    def _has_looked(self) -> bool:
        if self._child is not None and self._child.poll() is not None:
            raise CommandError(["listenwatch"], self._child.returncode, tail(self._output_path))
        return "ready" in tail(self._output_path)

    def _parse(self) -> list[Gap]:
        _, *lines = self._output_path.read_text(encoding="ascii").splitlines()
        *gaps, summary = (json.loads(line) for line in lines)
        self._longest_interval_ns = summary["longest_interval_ns"]
        return [Gap(**gap) for gap in gaps]

    def _clean_up(self) -> None:
        if self._child is not None:
            self._child.wait()
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None
