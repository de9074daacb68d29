"""Tags on whole numbers: from which attributes, and from which sizes of tensors, a forward computed a number.

A trial network runs with tagged attributes, and is handed tagged sizes. Where an operator fails, the tags of its
arguments say which attributes it was given, so that others need not be tried. A number can lose its tags
(`math.sqrt(x)`): they are evidence for what they name, and none against anything else. `int(x)` cannot return them;
what it made is known again by its value, in what is called by the same code.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch


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


class _Tags:
    """While tags are handed out: what they cannot tell."""

    def __init__(self) -> None:
        # Sources of the numbers that were compared last.
        self.compared: frozenset[Source] = frozenset()
        # Of whole numbers that `int` made: by the code that called it, and the number.
        self.whole: dict[tuple[CodeType, int], frozenset[Source]] = {}


_on: ContextVar[_Tags | None] = ContextVar("tags are handed out", default=None)


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


def _comparing(name: str, kind: type) -> Callable[..., Any]:
    plain = getattr(kind, name)

    def compare(self: Any, other: Any) -> Any:
        tags = _on.get()
        if tags is not None:
            tags.compared = self.sources | (other.sources if isinstance(other, _Tagged) else frozenset())
        return plain(self, other)

    return compare


def _whole(kind: type) -> Callable[..., Any]:
    plain = kind.__int__  # type: ignore[attr-defined]

    def whole(self: Any) -> Any:
        number, tags = plain(self), _on.get()
        if tags is not None:
            tags.whole[sys._getframe(1).f_code, number] = self.sources
        return number

    return whole


_OPERATORS = ("add", "sub", "mul", "floordiv", "mod", "truediv", "pow")
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
for _kind, _base in ((TaggedInt, int), (TaggedFloat, float)):
    for _name in (
        "__neg__",
        "__abs__",
        "__round__",
        "__floor__",
        "__ceil__",
        "__trunc__",
        *(f"__{side}{o}__" for o in _OPERATORS for side in ("", "r")),
    ):
        setattr(_kind, _name, _computing(_name, _base))
    for _name in _COMPARISONS:
        setattr(_kind, f"__{_name}__", _comparing(f"__{_name}__", _base))
    _kind.__hash__ = _base.__hash__  # type: ignore[method-assign]
    setattr(_kind, "__int__", _whole(_base))  # noqa: B010 (mypy takes it for a method)


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
    token = _on.set(_Tags())
    try:
        yield
    finally:
        _on.reset(token)


def active() -> bool:
    return _on.get() is not None


def compared() -> frozenset[Source]:
    """Where the numbers come from that the program compared last, after its last operator: most likely by these it
    decided to raise an error."""
    tags = _on.get()
    return tags.compared if tags is not None else frozenset()


def forget_compared() -> None:
    """An operator ran, so the program went on."""
    tags = _on.get()
    if tags is not None:
        tags.compared = frozenset()


def with_sizes(result: Any, node: str, dims: Iterable[int]) -> Any:
    """What `Tensor.size` or `Tensor.shape` gave for some dimensions of a node's result, with tags."""
    if not isinstance(result, torch.Size):
        return tagged(result, frozenset(FromSize(node, d) for d in dims))
    return torch.Size([tagged(n, frozenset((FromSize(node, d),))) for n, d in zip(result, dims, strict=True)])


def sources_of(arguments: Any) -> frozenset[Source]:
    """Where the numbers among the arguments of a call come from, if it is made while tags are handed out."""
    tags = _on.get()
    codes = _callers({code for code, _ in tags.whole}) if tags is not None and tags.whole else ()
    found: frozenset[Source] = frozenset()
    for number in _numbers(arguments):
        if isinstance(number, _Tagged):
            found |= number.sources
        elif type(number) is int and tags is not None:
            found = found.union(*(tags.whole.get((code, number), ()) for code in codes))
    return found


def _callers(codes: Container[CodeType]) -> list[CodeType]:
    """Those of these that called what runs now."""
    found, frame = [], sys._getframe(1)
    while (frame := frame.f_back) is not None:  # type: ignore[assignment]
        if frame.f_code in codes:
            found.append(frame.f_code)
    return found


def _numbers(arguments: Any) -> Iterator[Any]:
    """What is no container in the arguments of a call."""
    if isinstance(arguments, slice):
        arguments = (arguments.start, arguments.stop, arguments.step)
    elif isinstance(arguments, dict):
        arguments = tuple(arguments.values())
    if not isinstance(arguments, list | tuple):
        yield arguments
        return
    for argument in arguments:
        yield from _numbers(argument)
