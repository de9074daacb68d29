"""Tensors that a forward left somewhere outside of its model: those without values are found, and taken out again.

A forward may cache what it computes in a module-level dictionary, a class attribute, an `lru_cache`. When it was run
on meta tensors, the next forward of the caller would find them there.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from types import CellType, FrameType, FunctionType, ModuleType
from typing import Any

import torch
from torch import nn

from ..model.preserving import within_reach

_LRU_CACHE = type(lru_cache(lambda: None))


class MetaWatch:
    """Remembers the meta tensors of a recording, without holding them, and the names around the model before it."""

    def __init__(self, model: nn.Module) -> None:
        self.names = Names(model)
        self._seen: list[weakref.ref[torch.Tensor]] = []

    def see(self, tensor: torch.Tensor) -> None:
        if tensor.is_meta:
            self._seen.append(weakref.ref(tensor))

    def alive(self) -> list[torch.Tensor]:
        """Those that somebody still holds."""
        found = self._left()
        if found:
            found.clear()
            gc.collect()  # Most often it is a cycle that is no longer in use.
            found = self._left()
        return found

    def _left(self) -> list[torch.Tensor]:
        return [tensor for ref in self._seen if (tensor := ref()) is not None]


class ValueWatch:
    """Remembers the tensors with values that a forward made, without holding them."""

    def __init__(self) -> None:
        self._seen: list[weakref.ref[torch.Tensor]] = []

    def see(self, result: Any) -> None:
        """The result of an operator, or several."""
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
                self._seen.append(weakref.ref(tensor))

    def any_kept(self) -> bool:
        """Whether somebody holds one of them now that all that ran is gone: it is in a cache."""
        if not any(ref() is not None for ref in self._seen):
            return False
        gc.collect()
        return any(ref() is not None for ref in self._seen)


class _Missing:
    """In place of a name that is not there."""


_MISSING = _Missing()

_VALUES = (type(None), bool, int, float, complex, str, tuple, torch.Tensor, torch.dtype, torch.device, _Missing)
"""What code keeps beside a table, to know what it is for."""


class Names:
    """The names in the files that a model's classes, and the functions in these files, are from, and in the classes and
    objects of all of them, as they are before a recording."""

    def __init__(self, model: nn.Module) -> None:
        classes = {base for module in model.modules() for base in type(module).__mro__}
        files = {id(names): names for base in classes if (names := _file_of(base.__module__))}
        values = [value for names in files.values() for value in list(names.values())]
        functions = (value for value in values if isinstance(value, FunctionType) and _file_of(value.__module__ or ""))
        files |= {id(function.__globals__): function.__globals__ for function in functions}
        owners = (owner for names in files.values() for owner in _owners(names))
        self._before = [(owner, dict(_names_of(owner))) for owner in owners]

    def put_back(self, left: Emptied) -> None:
        """Where a tensor was taken out of some, all that changed beside it: the key of a table goes with the table
        (`if SIZE != n: SIZE, TABLE = n, ...`)."""
        for owner, before in self._before:
            own = (owner, getattr(owner, "__dict__", None))
            if not any(known is one for known, _ in left.names for one in own):
                continue
            now = _names_of(owner)
            for name in sorted(now.keys() | before.keys()):
                was, found = before.get(name, _MISSING), now.get(name, _MISSING)
                if was is not found and isinstance(was, _VALUES) and isinstance(found, _VALUES):
                    _put(owner, name, was)
            left.names = [(o, name) for o, name in left.names if not any(o is known for known in own)]


@dataclass(slots=True)
class Emptied:
    """What tensors were taken out of: entries of containers are gone, attributes and variables are None.

    Attributes:
        stuck: holders that could not be emptied, in words.
        names: attributes and variables, each with its owner: a namespace, a class or another object.
    """

    stuck: list[str] = field(default_factory=list)
    names: list[tuple[Any, str]] = field(default_factory=list)

    def forget_names(self) -> None:
        """Delete them, for code that asks whether they are there (`hasattr`)."""
        for owner, name in self.names:
            _put(owner, name, _MISSING)

    def restore_names(self) -> None:
        """None again, for code that expects them to be there."""
        for owner, name in self.names:
            _put(owner, name, None)


def emptied(tensors: list[torch.Tensor]) -> Emptied:
    """Take tensors out of what holds them."""
    left: list[Any] = list(tensors)
    seen: set[int] = {id(t) for t in left}
    found = Emptied()
    with within_reach():
        while left:
            value = left.pop()
            for holder in gc.get_referrers(value):
                if holder is left or holder is tensors or isinstance(holder, FrameType):
                    continue
                if isinstance(holder, tuple | frozenset):
                    if id(holder) not in seen:
                        seen.add(id(holder))
                        left.append(holder)
                elif not _take_out(value, holder, found.names):
                    found.stuck.append(f"{_words(holder)} holds a tensor of shape {tuple(getattr(value, 'shape', ()))}")
    return found


def _take_out(value: Any, holder: Any, names: list[tuple[Any, str]]) -> bool:
    """Whether it could be done."""
    if isinstance(holder, dict):
        keys = [k for k, v in holder.items() if v is value]
        owner, variables = _owner(holder, keys, value)
        for key in keys:
            if owner is not None:
                setattr(owner, key, None)  # The table of a class may not be written to directly.
                names.append((owner, key))
            elif variables:
                holder[key] = None
                names.append((holder, key))
            else:
                del holder[key]
        return True
    if isinstance(holder, list | deque):
        kept = [v for v in holder if v is not value]
        holder.clear()
        holder.extend(kept)
        return True
    if isinstance(holder, set):
        holder.discard(value)
        return True
    if isinstance(holder, _LRU_CACHE):
        holder.cache_clear()
        return True
    if isinstance(holder, CellType):
        holder.cell_contents = None
        return True
    return _take_out_of_attributes(value, holder, names)


def _file_of(module: str) -> dict[str, Any]:
    """The names of a module; none of PyTorch's and Python's own."""
    known = module.partition(".")[0] in ("torch", "builtins", *sys.stdlib_module_names)
    return {} if known and module != "__main__" else getattr(sys.modules.get(module), "__dict__", {})


def _owners(names: dict[str, Any]) -> Iterator[Any]:
    """The namespace of a file, its classes, and the objects with attributes that it has."""
    yield names
    for value in list(names.values()):
        if isinstance(value, type):
            if value.__module__ == names.get("__name__"):
                yield value
        elif isinstance(getattr(value, "__dict__", None), dict) and not isinstance(value, ModuleType | nn.Module):
            yield value


def _names_of(owner: Any) -> Mapping[str, Any]:
    return owner if isinstance(owner, dict) else vars(owner)


def _put(owner: Any, name: str, value: Any) -> None:
    """Give a name its value back, or take it away."""
    with suppress(AttributeError, KeyError, TypeError):
        if isinstance(owner, dict):
            if value is _MISSING:
                del owner[name]
            else:
                owner[name] = value
        elif value is _MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, value)


def _owner(table: dict[Any, Any], keys: list[Any], value: Any) -> tuple[type | None, bool]:
    """The class that a dictionary is the namespace of, if any; and whether it is that of a module or an object. Code
    expects such names to be there."""
    if "__builtins__" in table:
        return None, True
    for owner in gc.get_referrers(table):
        if isinstance(owner, type) and all(vars(owner).get(key) is value for key in keys):
            return owner, True
        if not isinstance(owner, type) and getattr(owner, "__dict__", None) is table:
            return None, True
    return None, False


def _take_out_of_attributes(value: Any, holder: Any, names: list[tuple[Any, str]]) -> bool:
    own = [*getattr(holder, "__dict__", ()), *_slots(type(holder))]
    done = False
    for name in [n for n in own if getattr(holder, n, None) is value]:
        try:
            setattr(holder, name, None)
            names.append((holder, name))
            done = True
        except (AttributeError, TypeError):
            continue
    return done


def _slots(kind: type) -> list[str]:
    found: list[str] = []
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        found += [slots] if isinstance(slots, str) else list(slots)
    return found


def _words(holder: Any) -> str:
    name = getattr(holder, "__qualname__", None) or type(holder).__qualname__
    return f"{type(holder).__module__}.{name}"
