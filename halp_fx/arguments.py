"""What a caller passed for an argument, checked: numbers, switches, and functions that are called with something."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from .errors import HalpError

MOST_STEPS = 10_000
"""Of pruning or training: each is kept in lists, and more of them are a mistake."""


def is_number(value: Any) -> bool:
    """Whether it is a number of any type, numpy's, too."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    """Whether it is a whole number of at least 1, whatever its type: 8.0 is one."""
    return is_number(value) and math.isfinite(value) and int(value) == value >= 1


def is_count(value: Any) -> bool:
    """Whether it is a number of channels and no share of them: of a type of whole numbers, and at least 1."""
    return isinstance(value, Integral) and is_whole(value)


def is_share(value: Any) -> bool:
    """Whether it is a share in (0, 1], of a type of other numbers (numpy's, too): 1.0 is all channels, 1 is one."""
    return is_number(value) and not isinstance(value, Integral) and bool(0 < value <= 1)


def is_positive(value: Any) -> bool:
    """Whether it is a finite number above 0."""
    return is_number(value) and bool(0 < value < math.inf)


def is_switch(value: Any) -> bool:
    """Whether it is on or off, and nothing that passes for on, such as "no"."""
    # The command line reads this module, and no numpy for its help.
    numpys = type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_")
    return isinstance(value, bool) or numpys or (isinstance(value, int) and value in (0, 1))


def check_switches(error: type[HalpError], /, optional: bool = False, **values: Any) -> None:
    """Refuse what is neither True nor False.

    Args:
        error: what is raised.
        optional: whether None is one as well.
        values: by the names of the arguments.
    """
    for name, value in values.items():
        if not (is_switch(value) or (optional and value is None)):
            raise error(f"{name}={shown(value)} must be True or False{', or None' if optional else ''}")


def whole(name: str, value: Any, error: type[HalpError], most: int | None = None) -> int:
    """A whole number of at least 1 as an int.

    Raises:
        error: it is none, or above `most`.
    """
    if not is_whole(value) or (most is not None and value > most):
        upto = "of at least 1" if most is None else f"from 1 to {most:,}"
        raise error(f"{name}={shown(value)} must be a whole number {upto}")
    return int(value)


def check_called(
    name: str, function: Any, error: type[HalpError], given: tuple[str, ...], named: Mapping[str, str] | None = None
) -> None:
    """Refuse a function that cannot be called as it will be.

    Args:
        name: of the argument that it was passed for.
        given, named: what it is called with, in words.
    """
    words = " and ".join((*given, *(named or {}).values()))
    if not callable(function):
        raise error(f"{name}={shown(function)} cannot be called: pass a function of {words}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # Some builtins have none.
        return
    try:
        signature.bind(*given, **(named or {}))
    except TypeError as reason:
        called = getattr(function, "__name__", type(function).__name__)
        raise error(f"{name} is called with {words}, and {called} cannot be: {reason}") from reason


def shown(value: object) -> str:
    """What was passed, in one line: it may be anything, such as the example inputs."""
    line = repr(value).partition("\n")[0]
    return line if len(line) <= 60 else f"{line[:60]}…"


def a_kind(value: object) -> str:
    """ "a Tensor", "an int", "None", "the class Net" """
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return an(type(value).__name__)


def an(word: str) -> str:
    """ "a cat", "an owl" """
    return f"a{'n' if word[:1].lower() in 'aeiou' else ''} {word}"
