"""The steps of the keeper, read from its source: whatever it calls that the system can refuse.

No list of steps is kept here. The code is followed from where it begins through the functions that
it hands its parts to; the methods of those parts are steps, and every other function that comes to
the kernel is one.
"""

from __future__ import annotations

import ast
import enum
import inspect
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

from synplug.record import Record

_PRODUCT, _KERNEL, _HOLDING = "synplug.", "synplug.kernel.", "synplug.holding."
Code = Callable[..., Any]


class Steps:
    """Those of the code that begins with a class, or a function.

    :ivar classes: of its parts, by name. :ivar functions: by the module in which they are called
        so, and their name there.
    """

    def __init__(self, beginning: Code) -> None:
        self.classes: dict[str, type] = {}
        self.functions: set[tuple[str, str]] = set()
        #: Methods, by class where that can be told, otherwise by the empty name.
        self._called: set[tuple[str, str]] = set()
        self._made: set[str] = set()
        self._followed: set[Code] = set()
        self._follow(beginning)

    def methods(self) -> Iterator[tuple[type, str]]:
        """Those of parts that are steps: of an interface all, of the kernel's its making, too."""
        for name, cls in self.classes.items():
            for method, _ in inspect.getmembers(cls, inspect.isfunction):
                is_called = {(name, method), ("", method)} & self._called
                is_public = method in vars(cls) and not method.startswith("_")
                if is_public and (is_called or inspect.isabstract(cls)):
                    yield cls, method
            if name in self._made and cls.__module__.startswith(_KERNEL):
                yield cls, "__init__"

    def _follow(self, code: Code) -> None:
        self._followed.add(code)
        names = vars(sys.modules[code.__module__])
        tree = _tree(code)
        kinds = self._kinds(code, tree, names)
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            if isinstance(node.func, ast.Attribute) and not _is_module(node.func.value, names):
                kind = kinds.get(ast.unparse(node.func.value))
                self._called.add((kind.__name__ if kind else "", node.func.attr))
            place, called = _called(node.func, names)
            if isinstance(called, type):
                if self._enter(called):
                    self._made.add(called.__name__)
            elif inspect.isfunction(called) and called not in self._followed:
                self._take(place, called)

    def _take(self, place: tuple[str, str], function: Code) -> None:
        """Follow a function that is handed a part; another is a step, if it comes to the kernel."""
        hints = typing.get_type_hints(function)
        if function.__module__.startswith(_HOLDING) and any(
            _is_part(kind) for hint in hints.values() for kind in _parts(hint)
        ):
            self._follow(function)
        elif _comes_to_the_kernel(function, set()):
            self.functions.add(place)

    def _kinds(self, code: Code, tree: ast.AST, names: dict[str, Any]) -> dict[str, type]:
        """Which parts stand behind which expressions; notes those that are used."""
        function = code.__init__ if isinstance(code, type) else code  # type: ignore[misc]
        parameters = {
            name: kind
            for name, hint in typing.get_type_hints(function).items()
            for kind in _parts(hint)
            if _is_part(kind)
        }
        kinds = {} if isinstance(code, type) else dict(parameters)
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign):
                for target, kind in _assigned(node, names, parameters):
                    kinds[target] = kind
        for kind in kinds.values():
            self._enter(kind)
        return kinds

    def _enter(self, kind: type) -> bool:
        if _is_part(kind):
            self.classes[kind.__name__] = kind
        return _is_part(kind)


def _is_module(expression: ast.expr, names: dict[str, Any]) -> bool:
    name = expression.id if isinstance(expression, ast.Name) else ""
    return isinstance(names.get(name), types.ModuleType)


def _tree(code: Code) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(code)))


def _assigned(
    node: ast.Assign, names: dict[str, Any], parameters: dict[str, type]
) -> Iterator[tuple[str, type]]:
    """What is assigned there that is a part: a parameter, a new one, or what a function returns."""
    (target,) = node.targets
    targets = target.elts if isinstance(target, ast.Tuple) else [target]
    kinds: list[type] = []
    if isinstance(node.value, ast.Name) and node.value.id in parameters:
        kinds = [parameters[node.value.id]]
    elif isinstance(node.value, ast.Call):
        _, called = _called(node.value.func, names)
        if isinstance(called, type):
            kinds = [called]
        elif inspect.isfunction(called):
            kinds = list(_parts(typing.get_type_hints(called).get("return")))
    for one, kind in zip(targets, kinds, strict=False):
        if _is_part(kind):
            yield ast.unparse(one), kind


def _called(function: ast.expr, names: dict[str, Any]) -> tuple[tuple[str, str], object]:
    """What is called, and where it can be replaced: the module, and its name there."""
    if isinstance(function, ast.Name):
        return (names["__name__"], function.id), names.get(function.id)
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        module = names.get(function.value.id)
        if isinstance(module, types.ModuleType) and module.__name__.startswith(_PRODUCT):
            return (module.__name__, function.attr), getattr(module, function.attr, None)
    return ("", ""), None


def _parts(hint: object) -> Iterator[type]:
    """The classes in a type: ``tuple[Callable[[A], B], ...]`` has two."""
    if isinstance(hint, type) and not typing.get_args(hint):
        yield hint
    for part in hint if isinstance(hint, list) else typing.get_args(hint):
        yield from _parts(part)


def _is_part(kind: type) -> bool:
    """Whether its methods may be steps: it is no value and no error."""
    is_value = issubclass(kind, (Record, enum.Enum, Exception, tuple))
    return kind.__module__.startswith((_KERNEL, _HOLDING)) and not is_value


def _comes_to_the_kernel(function: Code, seen: set[Code]) -> bool:
    """Whether it calls something of the kernel's floor, or the system itself."""
    if not function.__module__.startswith(_PRODUCT) or function in seen:
        return False
    seen.add(function)
    if function.__module__.startswith(_KERNEL):
        return True
    names = vars(sys.modules[function.__module__])
    for node in ast.walk(_tree(function)):
        if not isinstance(node, ast.Call):
            continue
        if ast.unparse(node.func).startswith(("os.", "select.", "signal.")):
            return True
        _, called = _called(node.func, names)
        if isinstance(called, type) and called.__module__.startswith(_KERNEL):
            return True
        if inspect.isfunction(called) and _comes_to_the_kernel(called, seen):
            return True
    return False
