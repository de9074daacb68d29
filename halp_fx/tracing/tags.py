"""Tags on whole numbers: from which attributes, and from which sizes of tensors, a forward computed a number.

A trial network runs with tagged attributes, and is handed tagged sizes. Where an operator fails, the tags of its
arguments say which attributes it was given, so that others need not be tried. A number can lose its tags (`int(x)`,
`math.sqrt(x)`): they are evidence for what they name, and none against anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

_on: ContextVar[bool] = ContextVar("tags are handed out", default=False)


@dataclass(frozen=True, slots=True)
class FromAttribute:
    """An attribute of a module, or one element of it."""

    module: str
    attribute: str
    index: int | None = None


@dataclass(frozen=True, slots=True)
class FromSize:
    """The size of a node's result along one dimension. The node of a parameter may be missing, or have another name:
    its size was read before anything else."""

    node: str
    dim: int


Source = FromAttribute | FromSize


class _Tagged:
    sources: frozenset[Source] = frozenset()

    def __deepcopy__(self, _memo: Any) -> Any:
        return self


class TaggedInt(_Tagged, int):
    """A whole number that knows where it comes from."""


class TaggedFloat(_Tagged, float):
    """What becomes of it in a division or a root."""


def _computing(name: str, kind: type) -> Callable[..., Any]:
    plain = getattr(kind, name)

    def compute(self: Any, *others: Any) -> Any:
        result = plain(self, *others)
        if result is NotImplemented:  # A whole number and a float.
            result = getattr(float, name)(float(self), *others)
        return tagged(result, self.sources.union(*(o.sources for o in others if isinstance(o, _Tagged))))

    return compute


_OPERATORS = ("add", "sub", "mul", "floordiv", "mod", "truediv", "pow")
for _kind, _base in ((TaggedInt, int), (TaggedFloat, float)):
    for _name in ("__neg__", "__abs__", *(f"__{side}{o}__" for o in _OPERATORS for side in ("", "r"))):
        setattr(_kind, _name, _computing(_name, _base))


def tagged(number: Any, sources: frozenset[Source]) -> Any:
    """A number that knows its sources; what is none as it is."""
    if isinstance(number, bool) or not isinstance(number, int | float):
        return number
    result = TaggedInt(number) if isinstance(number, int) else TaggedFloat(number)
    result.sources = sources
    return result


@contextmanager
def sizes_tagged() -> Iterator[None]:
    """While it lasts, tensors hand out tagged sizes."""
    token = _on.set(True)
    try:
        yield
    finally:
        _on.reset(token)


def active() -> bool:
    return _on.get()


def with_sizes(result: Any, node: str, dims: Iterable[int]) -> Any:
    """What `Tensor.size` or `Tensor.shape` gave for some dimensions of a node's result, with tags."""
    if not isinstance(result, torch.Size):
        return tagged(result, frozenset(FromSize(node, d) for d in dims))
    return torch.Size([tagged(n, frozenset((FromSize(node, d),))) for n, d in zip(result, dims, strict=True)])


def sources_of(arguments: Any) -> frozenset[Source]:
    """Where the numbers among the arguments of a call come from."""
    if isinstance(arguments, _Tagged):
        return arguments.sources
    if isinstance(arguments, slice):
        arguments = (arguments.start, arguments.stop, arguments.step)
    elif isinstance(arguments, dict):
        arguments = tuple(arguments.values())
    if not isinstance(arguments, list | tuple):
        return frozenset()
    found: frozenset[Source] = frozenset()
    return found.union(*map(sources_of, arguments))
