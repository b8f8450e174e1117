"""The arguments of the Ansible module: those of ``synplug wrap``, no more and no less."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from synplug.cli.options import parser
from synplug.cli.report_json import report_dict
from synplug.cli.schema import NO_KEYS, keys
from tests.unit.examples import example_report

MODULE = Path(__file__).parents[2] / "integrations/ansible/plugins/modules/restart.py"
#: What is the module's own: how synplug is called, and what it makes of the answer.
OWN = {"command", "action", "fail_on_lost", "executable", "service", "config"}
#: What it does not offer: the report comes back as the task's result.
NOT_OFFERED = {"json", "quiet", "verbose"}


class Ended(Exception):  # noqa: N818 -- no error: what exit_json does
    """The module's end."""


class FakeAnsibleModule:
    """What the module needs of Ansible; synplug is a function here."""

    given: dict[str, Any] = {}  # noqa: RUF012 -- set by each test
    synplug: Any = None
    in_check_mode = False

    def __init__(self, argument_spec: dict[str, Any], **_: Any) -> None:
        defaults = {name: spec.get("default") for name, spec in argument_spec.items()}
        assert self.given.keys() <= defaults.keys()
        self.params = defaults | self.given
        self.check_mode = self.in_check_mode
        self.tmpdir = self.given_tmpdir
        self.warnings: list[str] = []

    given_tmpdir = ""

    def get_bin_path(self, name: str, *, required: bool) -> str:
        return f"/usr/bin/{name}"

    def run_command(self, argv: list[str]) -> tuple[int, str, str]:
        result: tuple[int, str, str] = type(self).synplug(argv)
        return result

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def exit_json(self, **result: Any) -> None:
        raise Ended(result | {"failed": False, "said": self.warnings})

    def fail_json(self, **result: Any) -> None:
        raise Ended(result | {"failed": True, "said": self.warnings})


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The module, with a fake Ansible below it."""
    basic = types.ModuleType("ansible.module_utils.basic")
    basic.AnsibleModule = FakeAnsibleModule  # type: ignore[attr-defined]
    for name in ("ansible", "ansible.module_utils"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "ansible.module_utils.basic", basic)
    monkeypatch.setattr(FakeAnsibleModule, "given_tmpdir", str(tmp_path))
    spec = importlib.util.spec_from_file_location("restart", MODULE)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def run(module: Any, synplug: Any = None, **given: Any) -> dict[str, Any]:
    """Run the module."""
    FakeAnsibleModule.given = given
    FakeAnsibleModule.synplug = synplug
    with pytest.raises(Ended) as ended:
        module.main()
    result: dict[str, Any] = ended.value.args[0]
    return result


def answering(status: int, report: dict[str, Any] | None, err: str = "") -> Any:
    """A synplug that writes this report."""

    def synplug(argv: list[str]) -> tuple[int, str, str]:
        (place,) = [word.removeprefix("--json=") for word in argv if word.startswith("--json=")]
        if report is not None:
            Path(place).write_text(json.dumps(report))
        return status, "", err

    return synplug


def test_the_module_has_every_option_of_wrap(module: Any) -> None:
    of_wrap = {name for name, key in keys().items() if "wrap" in key.actions}
    assert of_wrap.isdisjoint(NO_KEYS)
    offered = {name.replace("_", "-") for name in module.argument_spec()}
    assert offered - {name.replace("_", "-") for name in OWN} == of_wrap - NOT_OFFERED


def test_its_choices_are_those_of_wrap(module: Any) -> None:
    for name, spec in module.argument_spec().items():
        key = keys().get(name.replace("_", "-"))
        if key is None or name in OWN:
            continue
        assert key.action is not None
        assert list(key.action.choices or []) == spec.get("choices", []), name
        assert (spec["type"] == "list") == key.is_repeatable, name
        assert (spec["type"] == "bool") == key.is_switch, name


def test_arguments_become_options_that_wrap_understands(module: Any) -> None:
    given = dict.fromkeys(module.argument_spec()) | {
        "action": "restart",
        "port": ["80", "0.0.0.0:443"],
        "command": "restart 'a b'",
        "check": ["c", "d e"],
        "max_hold": "5s",
        "max_held": 7,
        "best_effort": False,
        "require_new": True,
        "log": ["journal", "/var/log/x"],
        "only_if_changed": ["/etc/x"],
        "backend": "nfqueue",
    }
    words = module.arguments_of(given)
    cut = words.index("--")
    assert words[cut + 1 :] == ["restart", "a b"]
    options = parser().parse_args(["wrap", *words[:cut]])
    assert [str(endpoint) for endpoint in options.endpoints] == ["*:80", "0.0.0.0:443"]
    assert options.check == ("c", "d e")
    assert (options.max_hold, options.max_held) == (5.0, 7)
    assert (options.best_effort, options.require_new) == (False, True)
    assert options.log == ["journal", "/var/log/x"]
    assert options.only_if_changed == ["/etc/x"]


def test_an_empty_list_switches_off_what_the_host_is_configured_for(module: Any) -> None:
    given = dict.fromkeys(module.argument_spec()) | {"only_if_changed": [], "log": [], "dev": []}
    words = module.arguments_of(given | {"service": "app"})
    assert words == ["--no-only-if-changed", "--no-log", "--service=app"]


@pytest.mark.parametrize(
    ("given", "command"),
    [
        ({"unit": ["app"]}, ["systemctl", "restart", "app"]),
        ({"unit": ["app", "b"], "action": "reload"}, ["systemctl", "reload", "app", "b"]),
        ({"unit": ["app"], "command": ["x"]}, ["x"]),
        ({"service": "app"}, []),
        ({"service": "app", "unit": ["u"]}, []),
    ],
)
def test_which_command_runs(module: Any, given: dict[str, Any], command: list[str]) -> None:
    words = module.arguments_of(
        dict.fromkeys(module.argument_spec()) | {"action": "restart"} | given
    )
    assert words[words.index("--") + 1 :] == command if command else "--" not in words


def test_what_is_no_command_is_refused(module: Any) -> None:
    wrongs: list[Any] = ["", [], 5, {"a": 1}, "'open"]
    for wrong in wrongs:
        assert run(module, command=wrong, port=["80"])["failed"]


def test_a_restart_that_went_well(module: Any) -> None:
    report = report_dict(example_report())
    result = run(module, answering(0, report), port=["8080"], command=["r"])
    assert (result["failed"], result["changed"], result["rc"]) == (False, True, 0)
    assert result["report"] == report
    assert result["said"] == report["warnings"]
    assert result["lost"] == 1, "one was left in the old listener's queue"


def test_what_may_have_been_lost_fails_where_that_was_asked_for(module: Any) -> None:
    report = report_dict(example_report())
    result = run(module, answering(0, report), command=["r"], fail_on_lost=True)
    assert (result["failed"], result["changed"], result["rc"]) == (True, True, 0)
    assert "1 connections may have been lost" in result["msg"]
    report["drain"]["left"] = 0
    assert not run(module, answering(0, report), command=["r"], fail_on_lost=True)["failed"]
    report["hold"]["overflowed"] = 5
    assert run(module, answering(0, report), command=["r"], fail_on_lost=True)["lost"] == 5


def test_a_restart_without_a_hold_fails_where_nobody_may_be_lost(module: Any) -> None:
    report = report_dict(example_report()) | {"hold": None, "drain": None}
    result = run(module, answering(0, report), command=["r"], fail_on_lost=True)
    assert (result["failed"], result["changed"], result["rc"]) == (True, True, 0)
    assert "nothing was held" in result["msg"]
    assert not run(module, answering(0, report), command=["r"])["failed"]
    report["command"]["ran"] = False
    assert not run(module, answering(0, report), command=["r"], fail_on_lost=True)["failed"]


def test_a_restart_that_failed_has_changed_something_if_its_command_ran(module: Any) -> None:
    report = report_dict(example_report()) | {"outcome": "deadline", "exit_code": 124}
    result = run(module, answering(124, report), command=["r"])
    assert (result["failed"], result["changed"], result["rc"]) == (True, True, 124)
    assert result["msg"].startswith("deadline, exit 124")
    report["command"]["ran"] = False
    report |= {"outcome": "error", "exit_code": 125, "error": "--check ended with status 1"}
    result = run(module, answering(125, report), command=["r"])
    assert (result["failed"], result["changed"]) == (True, False)
    assert "--check ended with status 1" in result["msg"]


def test_a_run_that_did_not_begin(module: Any) -> None:
    result = run(module, answering(125, None, "synplug: no"), command=["r"])
    assert (result["failed"], result["changed"], result["rc"]) == (True, False, 125)
    assert result["msg"] == "synplug: no"
    result = run(module, answering(0, None), command=["r"], only_if_changed=["/x"])
    assert (result["failed"], result["changed"], result["rc"]) == (False, False, 0)


def test_check_mode_only_asks_for_the_plan(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []

    def synplug(argv: list[str]) -> tuple[int, str, str]:
        called.append(argv)
        return 0, "the plan", ""

    monkeypatch.setattr(FakeAnsibleModule, "in_check_mode", True)
    result = run(module, synplug, command=["r"], port=["80"])
    assert (result["changed"], result["plan"]) == (True, "the plan")
    assert result["diff"] == {"prepared": "the plan"}
    assert called == [["/usr/bin/synplug", "wrap", "--dry-run", "--port=80", "--", "r"]]


def test_check_mode_changes_nothing_where_nothing_would_be_done(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeAnsibleModule, "in_check_mode", True)
    says = "nothing has changed since the last successful run: would do nothing\n"
    for said, changed in ((says, False), ("synplug would, changing nothing now:\n", True)):
        result = run(module, lambda _, said=said: (0, said, ""), command=["r"])
        assert (result["changed"], result["plan"]) == (changed, said)
