"""What a play came to, as one JSON object: ansible-core itself ships no such callback."""

from __future__ import annotations

import json
from typing import Any

from ansible.parsing.ajson import AnsibleJSONEncoder
from ansible.plugins.callback import CallbackBase


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """Collects results, and prints them at the end."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "json_results"

    def __init__(self) -> None:
        super().__init__()
        self._plays: list[dict[str, Any]] = []

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """A play, or its next batch of hosts, begins."""
        self._plays.append({"name": play.get_name(), "tasks": []})

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """A task begins."""
        self._plays[-1]["tasks"].append({"name": task.get_name(), "hosts": {}})

    v2_playbook_on_handler_task_start = lambda self, task: self.v2_playbook_on_task_start(task, False)  # noqa: E501, E731  # fmt: skip

    def _note(self, result: Any) -> None:
        self._plays[-1]["tasks"][-1]["hosts"][result._host.get_name()] = dict(result._result)

    def v2_runner_on_ok(self, result: Any) -> None:
        """A host has done it."""
        self._note(result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """A host has failed."""
        self._note(result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """A host was not there."""
        self._note(result)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """All is done."""
        found = {host: stats.summarize(host) for host in stats.processed}
        print(json.dumps({"plays": self._plays, "stats": found}, cls=AnsibleJSONEncoder))
