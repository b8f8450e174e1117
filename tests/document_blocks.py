"""The fenced blocks of README and docs, and which test runs each.

A block that is not run by its page's test stands here: with the test that does, or with the reason
why it cannot be run here. ``tests/unit/test_documents.py`` fails where one is in neither.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        ROOT / "README.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "integrations").glob("*/README.md"),
    ]
)
#: What can be run, or is read by a program that runs. Others are output and drawings.
RUN = {"sh", "crontab", "python", "yaml", "ini"}

#: Page, then what a block of it contains: the test, or the reason behind "not here: ". The test of
#: "" runs all the others of its page.
RUN_BY = {
    "README.md": {
        "": "integration/test_readme.py::test_the_readme_s_commands_lose_nobody",
        "pipx install .": "integration/test_install.py::test_pipx_installs_what_the_readme_says",
        "synplug demo --plot": "integration/test_demo.py::"
        "test_the_demo_shows_the_difference_and_leaves_nothing",
        "make demo ": "not here: it is what runs this",
        "synplug supervise": "integration/test_supervise_envoy.py::"
        "test_the_readme_s_lines_swap_an_envoy",
        "iptables-legacy -t mangle": "integration/test_crash.py::"
        "test_the_readme_s_lines_clear_a_rule_that_stayed",
        "tc qdisc change": "guest/test_plug.py::test_the_readme_s_lines_clear_a_plug_that_stayed",
    },
    "docs/tutorial.md": {"": "integration/test_readme.py::test_the_tutorial_goes_as_it_says"},
    "docs/configuration.md": {"": "integration/test_pages.py::test_a_configured_service"},
    "docs/failure-modes.md": {
        "": "integration/test_pages.py::test_a_command_that_ignores_a_signal"
    },
    "docs/recipes.md": {
        "": "integration/test_pages.py::test_the_recipes_lose_nobody",
        "synplug supervise --name app": "integration/test_recipes.py::"
        "test_a_plain_daemon_s_supervisor",
        "* * * * * root": "integration/test_cron.py::"
        "test_the_recipe_restarts_on_change_mails_on_failure_and_loses_nobody",
        "synplug.ops.restart": "integration/test_ansible.py::"
        "test_the_tasks_of_the_pages_restart_a_unit",
        "pip install '.[plug]'": "guest/test_restarts.py::test_the_recipe_for_a_local_proxy",
        "--netns web": "integration/test_pages.py::test_another_namespace",
        "podman inspect": "integration/test_podman.py::"
        "test_nobody_notices_that_podman_has_made_another_one",
    },
    "docs/containers.md": {
        "": "integration/test_podman.py::test_nobody_notices_that_podman_has_made_another_one",
    },
    "docs/envoy.md": {
        "": "integration/test_supervise_envoy.py::test_the_page_shows_the_unit_as_it_is",
        "systemctl reload envoy": "guest/test_systemd.py::test_a_reload_of_envoy_loses_nobody",
        "synplug swap": "integration/test_recipes.py::test_the_swap_of_the_page",
    },
    **{
        f"docs/{name}.md": {
            "synplug swap": "integration/test_recipes.py::test_the_swap_of_the_page",
            "synplug supervise": "integration/test_recipes.py::test_the_supervisor_of_the_page",
        }
        for name in ("gunicorn", "haproxy", "nginx")
    },
    "docs/observability.md": {
        "journalctl": "integration/test_telemetry.py::test_the_page_s_configuration_and_hook",
        "exec mail": "integration/test_telemetry.py::test_the_page_s_configuration_and_hook",
        "expr:": "unit/test_telemetry.py::test_the_page_s_alerts_are_of_our_series",
    },
    "integrations/ansible/README.md": {
        "ansible-galaxy": "integration/test_ansible.py::test_the_tasks_of_the_pages_restart_a_unit",
        "only_if_changed:": "integration/test_ansible.py::"
        "test_the_tasks_of_the_pages_restart_a_unit",
        "synplug.ops.install": "integration/test_ansible.py::"
        "test_the_role_installs_and_the_rolling_play_restarts_what_it_configured",
        "handlers:": "integration/test_ansible.py::"
        "test_the_handler_of_the_page_restarts_a_unit_when_it_is_notified_and_never_again",
    },
    "integrations/systemd/README.md": {
        "synplug-recover.service": "guest/test_systemd.py::"
        "test_the_shipped_unit_recovers_with_the_privileges_that_it_has",
        "Type=notify-reload": "guest/test_systemd.py::test_a_reload_of_generations_loses_nobody",
        "synplug systemd drop-in": "guest/test_systemd.py::"
        "test_with_the_drop_in_its_own_restart_loses_nobody",
    },
}


def blocks_in(text: str) -> Iterator[tuple[str, str]]:
    """The fenced blocks of a page's text: their language and their text."""
    for found in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield found.group(1), found.group(2)


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """The same of a page."""
    return blocks_in(page.read_text(encoding="utf-8"))


def is_run(language: str, text: str) -> bool:
    """Whether it is a command or is read by one: a session with its output has a prompt."""
    return language in RUN or (not language and text.startswith("$ "))


def where_is(page: str, text: str) -> str:
    """Which test runs this block of this page, or why none can; empty where that is nowhere said.

    :param page: its path below the repository.
    """
    found = RUN_BY.get(page, {})
    named = [where for part, where in found.items() if part and part in text]
    assert len(named) < 2, f"{page}: {named} for one block"
    return named[0] if named else found.get("", "")


def blocks_of(page: str, test: str) -> list[tuple[str, str]]:
    """The blocks of a page that this test runs, in their order; and its TOML."""
    return [
        (language, text)
        for language, text in blocks(ROOT / page)
        if language == "toml" or (is_run(language, text) and where_is(page, text).endswith(test))
    ]


def block(page: str, part: str) -> str:
    """The one block of a page that contains this."""
    (found,) = [text for _, text in blocks(ROOT / page) if part in text]
    return found
