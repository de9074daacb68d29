"""Whether a model's forward may do something else in train mode than in eval mode, by what its code reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

_ASKS = frozenset({"training", "is_grad_enabled", "is_inference_mode_enabled"})
_TORCH = "torch."

# What was found out about classes, and about the code of functions.
_classes: WeakKeyDictionary[type, bool] = WeakKeyDictionary()
_known: WeakKeyDictionary[CodeType, bool] = WeakKeyDictionary()


def differs_in_training(model: nn.Module) -> bool:
    """Whether code that is not PyTorch's own asks for the mode: a module's methods, its hooks, and what they call.

    What PyTorch's layers do in train mode couples the same channels.
    """
    return any(_class_asks(type(module)) or any(map(_asks, _own_functions(module))) for module in model.modules())


def _own_functions(module: nn.Module) -> Iterator[Any]:
    """Functions that a module holds: hooks, and methods that were put in place of its class's."""
    for name, value in vars(module).items():
        if name.endswith("_hooks"):
            if value:
                yield from value.values()
        elif callable(value) and not isinstance(value, nn.Module | type):
            yield value


def _class_asks(kind: type) -> bool:
    if kind not in _classes:
        own = (b for b in kind.__mro__ if issubclass(b, nn.Module) and not b.__module__.startswith(_TORCH))
        _classes[kind] = any(any(map(_asks, vars(base).values())) for base in own)
    return _classes[kind]


def _asks(value: Any) -> bool:
    function = _function(value)
    return function is not None and _function_asks(function)


def _function(value: Any) -> FunctionType | None:
    """The Python function behind a method, property or partial."""
    while True:
        if isinstance(value, partial):
            value = value.func
        elif isinstance(value, MethodType | staticmethod | classmethod):
            value = value.__func__
        elif isinstance(value, property):
            value = value.fget
        else:
            return value if isinstance(value, FunctionType) else None


def _function_asks(function: FunctionType) -> bool:
    """Whether a function or one that it calls, by a name of its own file, asks for the mode."""
    if function.__code__ not in _known:
        _known[function.__code__] = _searched(function)
    return _known[function.__code__]


def _searched(function: FunctionType) -> bool:
    left, seen = [function], {function}
    while left:
        this = left.pop()
        for code in _codes(this.__code__):
            if _ASKS.intersection(code.co_names):
                return True
            known = (_function(this.__globals__.get(name)) for name in code.co_names)
            left += (f for f in known if f is not None and f not in seen and not _is_torch(f))
            seen.update(left)
    return False


def _is_torch(function: FunctionType) -> bool:
    return str(getattr(function, "__module__", "")).startswith(_TORCH)


def _codes(code: CodeType) -> Iterable[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
