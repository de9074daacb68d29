"""What a model's forward may go by, as its code shows: the mode, and the widths that layers know of themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

_TORCH = "torch."


def differs_in_training(model: nn.Module) -> bool:
    """Whether code that is not PyTorch's own asks for the mode: a module's methods, its hooks, and what they call.

    What PyTorch's layers do in train mode couples the same channels.
    """
    return _MODES.in_model(model)


def asks_for_widths(model: nn.Module) -> bool:
    """Whether such code asks layers how wide they are (`conv.out_channels`): unlike the size of a tensor, that is in
    no recording, and a forward may branch on it."""
    return _WIDTHS.in_model(model)


class _Names:
    """Looks for names in the code of models."""

    def __init__(self, *names: str) -> None:
        self._names = frozenset(names)
        # What was found out about classes, and about the code of functions.
        self._classes: WeakKeyDictionary[type, bool] = WeakKeyDictionary()
        self._codes: WeakKeyDictionary[CodeType, bool] = WeakKeyDictionary()

    def in_model(self, model: nn.Module) -> bool:
        modules = model.modules()
        return any(self._in_class(type(m)) or any(map(self._in_value, _own_functions(m))) for m in modules)

    def _in_class(self, kind: type) -> bool:
        if kind not in self._classes:
            own = (b for b in kind.__mro__ if issubclass(b, nn.Module) and not b.__module__.startswith(_TORCH))
            methods = (value for base in own for name, value in vars(base).items() if name != "__init__")
            self._classes[kind] = any(map(self._in_value, methods))
        return self._classes[kind]

    def _in_value(self, value: Any) -> bool:
        function = _function(value)
        return function is not None and self._in_function(function)

    def _in_function(self, function: FunctionType) -> bool:
        """Whether a function has one of the names, or one that it calls by a name of its file or of what it is in."""
        if function.__code__ not in self._codes:
            self._codes[function.__code__] = self._searched(function)
        return self._codes[function.__code__]

    def _searched(self, function: FunctionType) -> bool:
        left, seen = [function], {function}
        while left:
            this = left.pop()
            for code in _codes(this.__code__):
                if self._names.intersection(code.co_names):
                    return True
                known = [_function(this.__globals__.get(name)) for name in code.co_names]
                known += [_function(value) for value in inspect.getclosurevars(this).nonlocals.values()]
                left += (f for f in known if f is not None and f not in seen and not _is_torch(f))
                seen.update(left)
        return False


_MODES = _Names("training", "is_grad_enabled", "is_inference_mode_enabled")
_WIDTHS = _Names(
    *("in_channels", "out_channels", "in_features", "out_features", "num_features", "num_channels"),
    *("in1_features", "in2_features", "embedding_dim", "embed_dim", "input_size", "hidden_size"),
)


def _own_functions(module: nn.Module) -> Iterator[Any]:
    """Functions that a module holds: hooks, and methods that were put in place of its class's."""
    for name, value in vars(module).items():
        if name.endswith("_hooks") and isinstance(value, dict):  # What a module calls so itself may be anything else.
            yield from value.values()
        elif callable(value) and not isinstance(value, nn.Module | type):
            yield value


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


def _is_torch(function: FunctionType) -> bool:
    return str(getattr(function, "__module__", "")).startswith(_TORCH)


def _codes(code: CodeType) -> Iterable[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
