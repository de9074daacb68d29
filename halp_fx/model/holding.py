"""Numbers that a module holds in lists, named tuples, plain objects, dictionaries and partial functions, in each other
up to a depth: `self.config.heads`, `self.sizes["heads"]`, `self.stages[2].width`, `self.shortcut = partial(pad,
planes=64)`. They are named by a path, "config.heads", "sizes['heads']", "stages[2].width" or "shortcut['planes']",
wherever the name of an attribute may stand.

Such an object may be shared, by other modules or with the caller: it is never changed. Modules that hold it get a copy.
"""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from functools import partial
from numbers import Integral
from types import ModuleType
from typing import Any

import torch
from torch import nn

from .preserving import INTERNAL

_NO_HOLDERS = (nn.Module, torch.Tensor, type, Enum, ModuleType, int, float, str, list, tuple, set, frozenset)
_DICTS = (dict, OrderedDict)
_STEP = re.compile(r"\.([^.\[]+)|\['([^']*)'\]|\[(\d+)\]")

DEPTH = 4
"""Containers in each other that are looked into."""

MAX_ELEMENTS = 512
"""Elements of a list or tuple that are looked at."""


def is_plain(value: Any) -> bool:
    """Whether it is a whole number, numpy's, too; not a switch, nor of a class that means more by it."""
    return type(value) is int or (isinstance(value, Integral) and not isinstance(value, int))


def row_of(value: Any) -> Sequence[Any] | None:
    """The elements of a list or tuple, a named one, too, if it is not too long; None of anything else."""
    kind = type(value)
    named = isinstance(value, tuple) and hasattr(value, "_fields") and hasattr(kind, "_make")
    return value if (named or kind in (list, tuple, torch.Size)) and 0 < len(value) <= MAX_ELEMENTS else None


def with_row(value: Any, row: Iterable[Any]) -> Any:
    """A list or tuple of the same kind with these elements."""
    return type(value)._make(row) if hasattr(value, "_fields") else type(value)(row)


def table_of(value: Any) -> dict[str, Any] | None:
    """What a plain object or a dictionary holds, by name; None of anything else."""
    if type(value) in _DICTS:
        return value if all(isinstance(key, str) for key in value) else None
    if isinstance(value, _NO_HOLDERS) or callable(value) or type(value).__module__.partition(".")[0] == "torch":
        return None
    table = getattr(value, "__dict__", None)
    return table if isinstance(table, dict) else None


def with_table(value: Any, table: dict[str, Any]) -> Any:
    """A copy of an object or a dictionary that holds this."""
    if type(value) in _DICTS:
        return type(value)(table)
    made = copy.copy(value)
    vars(made).clear()
    vars(made).update(table)
    return made


def parts_of(value: Any) -> dict[str, Any]:
    """What a container holds, by the step that leads there from the path of the container; empty if it is none."""
    row = row_of(value)
    if row is not None:
        return {f"[{i}]": element for i, element in enumerate(row)}
    if type(value) is partial:
        return parts_of(value.args) | parts_of(value.keywords)
    form = "['{}']" if isinstance(value, dict) else ".{}"
    return {form.format(k): v for k, v in (table_of(value) or {}).items() if not set("'[.") & set(k)}


def with_parts(value: Any, parts: Mapping[str, Any]) -> Any:
    """A container of the same kind that holds these in place of what it held there."""
    row = row_of(value)
    if row is not None:
        return with_row(value, [parts.get(f"[{i}]", element) for i, element in enumerate(row)])
    if type(value) is partial:
        args = [parts.get(f"[{i}]", element) for i, element in enumerate(value.args)]
        made = partial(value.func, *args, **with_parts(value.keywords, parts))
        vars(made).update(vars(value))
        return made
    form = "['{}']" if isinstance(value, dict) else ".{}"
    return with_table(value, {k: parts.get(form.format(k), v) for k, v in (table_of(value) or {}).items()})


def has(module: Any, path: str) -> bool:
    """Whether a module has the attribute, or what the path leads to."""
    attribute, steps = _split(path)
    value = getattr(module, attribute, None)
    for step in steps:
        parts = parts_of(value)
        if step not in parts:
            return False
        value = parts[step]
    return hasattr(module, attribute)


def held(module: Any, path: str) -> Any:
    """The attribute, or what the path leads to."""
    attribute, steps = _split(path)
    value = getattr(module, attribute)
    for step in steps:
        value = parts_of(value)[step]
    return value


def put(modules: Iterable[nn.Module], module: nn.Module, path: str, value: Any) -> None:
    """Set an attribute of a module, or what a path leads to: all of `modules` that hold the object or dictionary in
    which it lies, or one around that, get the copy. Lists and tuples are each module's own."""
    attribute, steps = _split(path)
    boxes = [getattr(module, attribute)]
    for step in steps:
        boxes.append(parts_of(boxes[-1])[step])
    shared = max((i for i, box in enumerate(boxes[:-1]) if table_of(box) is not None), default=None)
    for box, step in zip(reversed(boxes[shared or 0 : -1]), reversed(steps[shared or 0 :]), strict=True):
        value = with_parts(box, {step: value})
    if shared is None:
        setattr(module, attribute, value)
        return
    replaced = _replacing(boxes[shared], value)
    for other in modules:
        own = vars(other)
        for key, old in list(own.items()):
            if key not in INTERNAL:
                own[key] = replaced(old, DEPTH)


def _replacing(old: Any, new: Any) -> Callable[[Any, int], Any]:
    """What makes of a value the same with `new` in place of `old` in it: itself, if that is not in it."""
    made = {id(old): (old, new)}

    def replaced(value: Any, depth: int) -> Any:
        if id(value) in made:
            return made[id(value)][1]
        parts = parts_of(value) if depth else {}
        changed = {step: found for step, part in parts.items() if (found := replaced(part, depth - 1)) is not part}
        if parts:
            made[id(value)] = value, with_parts(value, changed) if changed else value
        return made[id(value)][1] if changed else value

    return replaced


def _split(path: str) -> tuple[str, list[str]]:
    """The attribute, and the steps from there."""
    steps = [match.group() for match in _STEP.finditer(path)]
    return path[: len(path) - sum(map(len, steps))], steps
