"""An argparse parser that says what is wrong in one line, in words of our own."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, NoReturn, TypeVar

from synplug.errors import UsageError

T = TypeVar("T")

#: It would look for a translation of each of its few words, which nobody has: 2 ms of each start.
argparse._ = str  # type: ignore[attr-defined]


class Parser(argparse.ArgumentParser):
    """A parser that raises, so that one place says what is wrong and picks the exit code.

    Each verb's says itself what it does not know, so that only options of its own are suggested.
    """

    #: Whether a command belongs behind ``--``.
    takes_command = False
    #: Whether there is one.
    has_command = False
    #: Where what is missing can be looked up.
    source = ""

    def error(self, message: str) -> NoReturn:
        # A bad value says itself what a good one looks like.
        remedy = "" if message.startswith("argument ") else f"see '{self.prog} --help'"
        if self.source and "required" in message:
            remedy = f"{self.source}; {remedy}"
        raise UsageError(message, remedy=remedy)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._meant(unknown[0])}")
        return options, unknown

    def _meant(self, word: str) -> str:
        """What was probably meant by a word that nobody knows."""
        if word.startswith("-") and (
            near := nearest(word.partition("=")[0], self._option_string_actions)
        ):
            return near
        if self.has_command and not word.startswith("--"):
            return "; a value of several words is put in quotes, or its option repeated"
        return "; put -- before the command" if self.takes_command and word[:1] != "-" else ""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        known = [str(choice) for choice in action.choices or ()]
        if known and value not in known:
            words = f"invalid choice: {value!r}{nearest(str(value), known)}"
            raise argparse.ArgumentError(action, f"{words} (choose from {', '.join(known)})")


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


class _Emptied(argparse.Action):
    """The opposite of a list."""

    def __call__(
        self,
        _parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        _values: object,
        _option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, [])


def add_list(group: argparse._ActionsContainer, flag: str, **words: Any) -> None:
    """A repeatable option and, listed nowhere as those of switches, its opposite ``--no-…``.

    The opposite takes no value, so it is another action.
    """
    action = group.add_argument(flag, action="append", default=[], **words)
    opposite = f"--no-{flag[2:]}"
    group._option_string_actions[opposite] = _Emptied(  # noqa: SLF001 -- parsed, and not listed
        [opposite], action.dest, nargs=0
    )


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help without the opposites: README and docs name them once."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, Switch):
            return ", ".join(flag for flag in action.option_strings if flag[:5] != "--no-")
        return super()._format_action_invocation(action)


def nearest(word: str, known: Iterable[str]) -> str:
    """The one that was probably meant, as the end of a sentence; empty: none."""
    import difflib

    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


class value_of(Generic[T]):  # noqa: N801 -- it is called like the function that it stands for
    """A parser of values as argparse wants it: its own words in the error, not a type's name."""

    def __init__(self, parse: Callable[[str], T]) -> None:
        self.parse = parse

    def __call__(self, text: str) -> T:
        try:
            return self.parse(text)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
