"""Numbers that a module holds in a plain object or a dictionary: `self.config.heads`, `self.sizes["heads"]`. They are
named by a path, "config.heads" or "sizes['heads']", wherever the name of an attribute may stand.

Such an object may be shared, by other modules or with the caller: it is never changed. Modules that hold it get a copy.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from enum import Enum
from types import ModuleType
from typing import Any

import torch
from torch import nn

_NO_HOLDERS = (nn.Module, torch.Tensor, type, Enum, ModuleType, int, float, str, list, tuple, set, frozenset)


def table_of(value: Any) -> dict[str, Any] | None:
    """What a plain object or a dictionary holds, by name; None of anything else."""
    if type(value) is dict:
        return value if all(isinstance(key, str) for key in value) else None
    if isinstance(value, _NO_HOLDERS) or callable(value) or type(value).__module__.partition(".")[0] == "torch":
        return None
    table = getattr(value, "__dict__", None)
    return table if isinstance(table, dict) else None


def with_table(value: Any, table: dict[str, Any]) -> Any:
    """A copy of an object or a dictionary that holds this."""
    if type(value) is dict:
        return table
    made = copy.copy(value)
    vars(made).clear()
    vars(made).update(table)
    return made


def path_to(attribute: str, value: Any, name: str) -> str:
    """The path of what an attribute's value holds under a name."""
    return f"{attribute}['{name}']" if type(value) is dict else f"{attribute}.{name}"


def has(module: Any, path: str) -> bool:
    """Whether a module has the attribute, or what the path leads to."""
    attribute, name = _split(path)
    if not name:
        return hasattr(module, attribute)
    table = table_of(getattr(module, attribute, None))
    return table is not None and name in table


def held(module: Any, path: str) -> Any:
    """The attribute, or what the path leads to."""
    attribute, name = _split(path)
    value = getattr(module, attribute)
    return value if not name else (table_of(value) or {})[name]


def put(modules: Iterable[nn.Module], module: nn.Module, path: str, value: Any) -> None:
    """Set an attribute of a module, or what a path leads to: all of `modules` that hold that object get the copy."""
    attribute, name = _split(path)
    if not name:
        setattr(module, attribute, value)
        return
    old = getattr(module, attribute)
    new = with_table(old, {**(table_of(old) or {}), name: value})
    for other in modules:
        for key, found in list(vars(other).items()):
            if found is old:
                vars(other)[key] = new


def _split(path: str) -> tuple[str, str]:
    """The attribute, and the name in what it holds; empty if the path is that of an attribute."""
    attribute, found, name = path.partition("['")
    if found:
        return attribute, name.removesuffix("']")
    attribute, _, name = path.partition(".")
    return attribute, name
