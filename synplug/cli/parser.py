"""An argparse parser that says what is wrong in one line, in words of our own."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, Generic, NoReturn, TypeVar

from synplug.errors import UsageError

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """A parser that raises, so that one place says what is wrong and picks the exit code."""

    def error(self, message: str) -> NoReturn:
        # A bad value says itself what a good one looks like.
        remedy = "" if message.startswith("argument ") else f"see '{self.prog} --help'"
        raise UsageError(_nearest(message, self), remedy=remedy)


class Switch(argparse.Action):
    """An option without a value, and its opposite, ``--no-…``, for what a configuration says."""

    def __init__(self, option_strings: Sequence[str], dest: str, **words: Any) -> None:
        opposites = [f"--no-{flag[2:]}" for flag in option_strings if flag.startswith("--")]
        words.setdefault("default", False)
        super().__init__([*option_strings, *opposites], dest, nargs=0, **words)

    def __call__(
        self,
        _parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        _values: object,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, not (option_string or "").startswith("--no-"))


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help without the opposites: README and docs name them once."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, Switch):
            return ", ".join(flag for flag in action.option_strings if flag[:5] != "--no-")
        return super()._format_action_invocation(action)


def _nearest(message: str, parser: argparse.ArgumentParser) -> str:
    """The message, with the option that was probably meant."""
    prefix = "unrecognized arguments: "
    if not message.startswith(prefix):
        return message
    import difflib

    known = _option_names(parser)
    word = message[len(prefix) :].partition(" ")[0].partition("=")[0]
    near = difflib.get_close_matches(word, known, n=1)
    if not near:
        return message
    return f"{message}; did you mean {near[0]}?"


def _option_names(parser: argparse.ArgumentParser) -> set[str]:
    """Every option of a parser and of its verbs."""
    names: set[str] = set()
    for action in parser._actions:  # noqa: SLF001 -- argparse has no public list of them
        names.update(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            names.update(*map(_option_names, action.choices.values()))
    return names


class value_of(Generic[T]):  # noqa: N801 -- it is called like the function that it stands for
    """A parser of values as argparse wants it: its own words in the error, not a type's name."""

    def __init__(self, parse: Callable[[str], T]) -> None:
        self.parse = parse

    def __call__(self, text: str) -> T:
        try:
            return self.parse(text)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
