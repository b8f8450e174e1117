"""Open-loop load from a namespace: the client's life, from first answer to its records."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from signal import SIGTERM, Signals
from typing import Literal

from netlab.compiled import compiled
from netlab.errors import CommandError, LabError, NotReadyError
from netlab.load_result import LoadResult, Outcome, Sample, read_records
from netlab.program import Endpoint, tail, wait_until
from netlab.topology import Namespace

Protocol = Literal["http", "redis"]

__all__ = ["Load", "LoadResult", "Outcome", "Protocol", "Sample"]


class Load:
    """New connections at `rate_per_s`, round robin over `targets`, while the context is open.

    `sources` are client addresses of either family, used in turn with targets of theirs.
    Entering waits for the first complete answer, unless `expect_ready` is false (for
    targets that never answer). `duration_s` ends the load by itself.
    """

    def __init__(
        self,
        namespace: Namespace,
        targets: Sequence[Endpoint | str],
        rate_per_s: float,
        protocol: Protocol = "http",
        timeout_s: float = 5.0,
        sources: Sequence[str] = (),
        *,
        duration_s: float | None = None,
        expect_ready: bool = True,
        ready_deadline_s: float = 10.0,
    ) -> None:
        self.namespace = namespace
        self.targets = [_endpoint(target) for target in targets]
        self.timeout_s = timeout_s
        self._options = ["--rate", f"{rate_per_s:g}", "--protocol", protocol]
        self._options += ["--timeout-ms", str(round(timeout_s * 1000))]
        if duration_s is not None:
            self._options += ["--duration-ms", str(round(duration_s * 1000))]
        self._options += [word for source in sources for word in ("--source", source)]
        for address, port in self.targets:
            self._options += ["--target", f"{address},{port}"]
        self._expect_ready = expect_ready
        self._ready_deadline_s = ready_deadline_s
        self._duration_s = duration_s or 0.0
        self._child: subprocess.Popen[str] | None = None
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._result: LoadResult | None = None

    def __enter__(self) -> Load:
        self._directory = tempfile.TemporaryDirectory(prefix="netlab-load-")
        argv = [str(compiled("loadgen")), *self._options, "--output", str(self._file("records"))]
        with (
            self._file("output").open("w", encoding="utf-8") as output,
            self._file("errors").open("w", encoding="utf-8") as errors,
        ):
            self._child = self.namespace.popen(argv, stdout=output, stderr=errors)
        try:
            if self._expect_ready:
                self._wait_for_first_answer(self._child)
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
    def result(self) -> LoadResult:
        """What became of all connections; only after `stop` or the end of the context."""
        if self._result is None:
            raise LabError("the load still runs: call stop() first")
        return self._result

    def stop(self) -> LoadResult:
        """Open no more, wait for the open connections (`timeout_s` at most), collect."""
        if self._result is None:
            self._result = self._finish(SIGTERM, self.timeout_s + 10)
        return self._result

    def wait(self) -> LoadResult:
        """Wait for the end of `duration_s` and of the open connections, collect."""
        if self._result is None:
            deadline_s = self._duration_s + self.timeout_s + 10
            self._result = self._finish(None, deadline_s)
        return self._result

    def _finish(self, number: Signals | None, deadline_s: float) -> LoadResult:
        if self._child is None:
            raise LabError("the load was not started")
        if number is not None:
            self._child.send_signal(number)
        try:
            status: int | None = self._child.wait(deadline_s)
        except subprocess.TimeoutExpired:
            status = None
            self._child.kill()
        if status != 0:
            raise CommandError(["loadgen", *self._options], status, tail(self._file("errors")))
        return read_records(self._file("records"))

    def _wait_for_first_answer(self, child: subprocess.Popen[str]) -> None:
        def answered() -> bool:
            if child.poll() not in (None, 0):
                raise CommandError(
                    ["loadgen", *self._options], child.returncode, tail(self._file("errors"))
                )
            return "ready" in tail(self._file("output"))

        try:
            wait_until(answered, self._ready_deadline_s, "a first answer to the load client")
        except NotReadyError as exc:
            raise NotReadyError(f"{exc} from {self.targets}") from exc

    def _file(self, name: str) -> Path:
        if self._directory is None:
            raise LabError("the load was not started")
        return Path(self._directory.name, name)

    def _clean_up(self) -> None:
        if self._child is not None:
            self._child.wait()
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None


def _endpoint(target: Endpoint | str) -> Endpoint:
    """`ADDR:PORT` or `[ADDR]:PORT`, or already a pair."""
    if isinstance(target, str):
        address, _, port = target.rpartition(":")
        return address.strip("[]"), int(port)
    return target
