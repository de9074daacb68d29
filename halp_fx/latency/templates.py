"""Shapes that follow a width, and the tensors that are built from them to replay an operator.

A layer's shapes depend on at most two widths: n_in ("I" in a signature) and n_out ("O"). A `TensorTemplate` says how
each dimension follows them, in which order the dimensions lie in memory, and what the tensor is filled with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..types import TensorSpec

IN, OUT = "I", "O"


@dataclass(frozen=True, slots=True)
class Size:
    """One dimension: `fixed + (n - base) * numerator / denominator`, n being n_in or n_out as `axis` says.

    Rounded, where a width has no whole share for it (parts of a concat).
    """

    fixed: int
    axis: str = ""
    numerator: int = 0
    denominator: int = 1
    base: int = 0

    def at(self, n_in: int, n_out: int) -> int:
        if not self.axis:
            return self.fixed
        n = n_in if self.axis == IN else n_out
        share = (2 * (n - self.base) * self.numerator + self.denominator) // (2 * self.denominator)
        return max(self.fixed + share, 1)

    def __str__(self) -> str:
        if not self.axis:
            return str(self.fixed)
        if self.numerator == self.denominator and self.fixed == self.base:
            return self.axis
        scale = f"{self.numerator}/{self.denominator}" if self.denominator > 1 else str(self.numerator)
        return f"{self.fixed}+({self.axis}-{self.base})*{scale}"


@dataclass(frozen=True, slots=True)
class TensorTemplate:
    """A tensor argument or result at any widths.

    Attributes:
        sizes: its dimensions.
        order: dimensions from the slowest to the fastest in memory.
        expanded: dimensions of stride 0.
        dtype: its dtype.
        zero: fill with zeros, because the operator writes to it: repeated, values must neither overflow nor
            become denormal.
        value: recorded contents of an integer or boolean tensor, used where the shape still fits.
    """

    sizes: tuple[Size, ...]
    order: tuple[int, ...]
    expanded: tuple[int, ...]
    dtype: torch.dtype
    zero: bool = False
    value: torch.Tensor | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        spec: TensorSpec,
        sizes: tuple[Size, ...],
        zero: bool = False,
        value: torch.Tensor | None = None,
    ) -> TensorTemplate:
        """The template of a tensor that was seen with shape, strides and dtype `spec`."""
        strides = spec.stride if len(spec.stride) == len(spec.shape) else (0,) * len(spec.shape)
        order = sorted(range(len(strides)), key=lambda d: -strides[d])
        expanded = tuple(d for d, s in enumerate(strides) if s == 0 and spec.shape[d] > 1 and spec.stride)
        return cls(sizes, tuple(order), expanded, spec.dtype, zero, value)

    def channels_last(self) -> TensorTemplate:
        """This tensor with its second dimension the fastest in memory."""
        return replace(self, order=(0, *range(2, len(self.sizes)), 1))

    def shape(self, n_in: int, n_out: int) -> tuple[int, ...]:
        return tuple(size.at(n_in, n_out) for size in self.sizes)

    def bytes(self, n_in: int, n_out: int) -> int:
        """Bytes that reading (or writing) it once moves; an expanded dimension is read once."""
        count = self.dtype.itemsize
        for d, size in enumerate(self.shape(n_in, n_out)):
            count *= 1 if d in self.expanded else size
        return count

    def build(self, n_in: int, n_out: int, device: torch.device, generator: torch.Generator) -> torch.Tensor:
        """A tensor with this layout: floats in [0.1, 1), recorded integers, else zeros."""
        shape = self.shape(n_in, n_out)
        if self.value is not None and tuple(self.value.shape) == shape:
            return self.value.to(device)
        packed = [1 if d in self.expanded else shape[d] for d in self.order]
        tensor = torch.empty(packed, dtype=self.dtype, device=device)
        if self.dtype.is_floating_point and not self.zero:
            tensor.uniform_(0.1, 1.0, generator=generator)
        else:
            tensor.zero_()
        inverse = [self.order.index(d) for d in range(len(shape))]
        return tensor.permute(inverse).expand(shape)

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        text = f"{dtype}[{','.join(map(str, self.sizes))}]"
        if self.order != tuple(range(len(self.order))):
            text += "{" + ",".join(map(str, self.order)) + "}"
        return text + (f"x{list(self.expanded)}" if self.expanded else "")


def fill(tree: Any, make: Callable[[TensorTemplate], Any]) -> Any:
    """A copy of nested tuples, lists and dicts with `make(template)` in place of every template."""
    if isinstance(tree, TensorTemplate):
        return make(tree)
    if isinstance(tree, dict):
        return {key: fill(value, make) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(fill(value, make) for value in tree)
    return tree


def templates(tree: Any) -> list[TensorTemplate]:
    """All templates in nested tuples, lists and dicts, in order."""
    found: list[TensorTemplate] = []
    fill(tree, found.append)
    return found


def render(tree: Any) -> str:
    """A stable text of an argument tree: part of a layer's signature."""
    if isinstance(tree, TensorTemplate):
        return str(tree)
    if isinstance(tree, dict):
        return ", ".join(f"{key}={render(value)}" for key, value in sorted(tree.items()))
    if isinstance(tree, list | tuple):
        return "[" + ", ".join(map(render, tree)) + "]"
    return str(tree)
