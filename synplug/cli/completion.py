"""``synplug completion``: what completes command lines in a shell, made from the parser."""

from __future__ import annotations

import argparse
import shlex

from synplug.cli.options import parser
from synplug.cli.parser import Switch
from synplug.record import Record

#: Options whose values are names of services of the configuration.
_SERVICE = ("-s", "--service")
_SERVICES = r"synplug config show 2>/dev/null | sed -n 's/^\[service\.\(.*\)\]$/\1/p'"
_BASH = r"""# Completion of synplug's command lines, for bash.
_synplug() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} verb=${COMP_WORDS[1]}
    local at
    COMPREPLY=()
    for ((at = 1; at < COMP_CWORD; at++)); do
        if [ "${COMP_WORDS[at]}" = -- ]; then
            [ $((at + 1)) -eq "$COMP_CWORD" ] && COMPREPLY=($(compgen -c -- "$word")) ||
                COMPREPLY=($(compgen -f -- "$word"))
            return
        fi
    done
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "@verbs@" -- "$word"))
        return
    fi
    case "$verb:$before" in
@values@
    esac
    case "$verb" in
@options@
    esac
}
complete -o filenames -F _synplug synplug
"""
_ZSH = """#compdef synplug
# Completion of synplug's command lines, for zsh: by what it has for bash.
(( $+functions[compdef] )) || { autoload -U +X compinit && compinit }
autoload -U +X bashcompinit && bashcompinit
"""
#: As a file of $fpath it is read by the first completion, which shall find something, too.
_ZSH_END = """\
if [[ ${funcstack[1]} = _synplug ]]; then _bash_complete -o filenames -F _synplug; fi
"""


class Option(Record):
    """An option, as a shell needs to know it.

    :param values: its choices; empty: anything, which may be a file.
    """

    flags: tuple[str, ...]
    takes_value: bool
    values: tuple[str, ...]
    help: str


class Verb(Record):
    """A verb with its options, and what stands behind it without one."""

    name: str
    help: str
    options: tuple[Option, ...]
    words: tuple[str, ...]


def run(options: argparse.Namespace, _command: tuple[str, ...]) -> int:
    """Run the verb; returns the exit status."""
    print({"bash": bash, "zsh": zsh, "fish": fish}[options.shell](), end="")
    return 0


def verbs() -> list[Verb]:
    """All verbs."""
    found = []
    for action in parser()._actions:  # noqa: SLF001 -- argparse has no public list of them
        if not isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            continue
        helps = {
            choice.dest: choice.help or ""
            for choice in action._choices_actions  # noqa: SLF001
        }
        for name, verb in action.choices.items():
            found.append(_verb(name, helps[name], verb))
    return found


def _verb(name: str, words: str, verb: argparse.ArgumentParser) -> Verb:
    actions = verb._actions  # noqa: SLF001
    return Verb(
        name=name,
        help=words,
        options=tuple(_option(action) for action in actions if action.option_strings),
        words=tuple(
            str(choice)
            for action in actions
            if not action.option_strings
            for choice in action.choices or ()
        ),
    )


def _option(action: argparse.Action) -> Option:
    flags = action.option_strings
    if isinstance(action, Switch):  # the opposites are for what a configuration says
        flags = [flag for flag in flags if not flag.startswith("--no-")]
    return Option(
        flags=tuple(flags),
        takes_value=action.nargs != 0,
        values=tuple(map(str, action.choices or ())),
        help=(action.help or "").replace("%%", "%"),
    )


def bash() -> str:
    """For bash."""
    values, options = [], []
    for verb in verbs():
        for option in verb.options:
            if not option.takes_value:
                continue
            patterns = "|".join(f"{verb.name}:{flag}" for flag in option.flags)
            if option.values:
                reply = f'compgen -W "{" ".join(option.values)}" -- "$word"'
            elif option.flags == _SERVICE:
                reply = f'compgen -W "$({_SERVICES})" -- "$word"'
            else:
                reply = 'compgen -f -- "$word"'
            values.append(f"    {patterns}) COMPREPLY=($({reply})); return ;;")
        flags = [flag for option in verb.options for flag in option.flags]
        words = " ".join([*flags, *verb.words])
        if verb.name == "restart":
            words += f" $({_SERVICES})"
        reply = f'compgen -W "{words}" -- "$word"'
        options.append(f"    {verb.name}) COMPREPLY=($({reply})) ;;")
    return (
        _BASH.replace("@verbs@", " ".join(verb.name for verb in verbs()))
        .replace("@values@", "\n".join(values))
        .replace("@options@", "\n".join(options))
    )


def zsh() -> str:
    """For zsh."""
    return _ZSH + bash() + _ZSH_END


def fish() -> str:
    """For fish."""
    lines = ["# Completion of synplug's command lines, for fish.", "complete -c synplug -f"]
    for verb in verbs():
        lines.append(
            f"complete -c synplug -n __fish_use_subcommand -a {verb.name} -d {_quoted(verb.help)}"
        )
        seen = f"complete -c synplug -n '__fish_seen_subcommand_from {verb.name}'"
        lines += [f"{seen} {_fish_option(option)}" for option in verb.options]
        if verb.words:
            lines.append(f"{seen} -a {_quoted(' '.join(verb.words))}")
        if verb.name == "restart":
            lines.append(f"{seen} -a {_quoted(f'({_SERVICES})')}")
    return "\n".join([*lines, ""])


def _fish_option(option: Option) -> str:
    parts = [f"-l {flag[2:]}" for flag in option.flags if flag.startswith("--")]
    parts += [f"-s {flag[1:]}" for flag in option.flags if not flag.startswith("--")]
    if option.takes_value:
        parts.append("-r")
        if option.values:
            parts.append(f"-f -a {_quoted(' '.join(option.values))}")
        elif option.flags == _SERVICE:
            parts.append(f"-f -a {_quoted(f'({_SERVICES})')}")
        else:
            parts.append("-F")
    return " ".join([*parts, f"-d {_quoted(option.help)}"])


def _quoted(text: str) -> str:
    return shlex.quote(text).replace("'\"'\"'", r"\'")
