"""What a rule is given: one operator call of the trace, with what is known of its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..internals import OpOverload
from ..tracing.graph import of, op, overload, spot_of, where
from ..types import TensorSpec
from .planes import Planes


@dataclass(frozen=True, slots=True)
class Value:
    """What a rule sees of a tensor: its shape, its planes, and its value if it is a small constant."""

    spec: TensorSpec
    planes: Planes = ()
    # Computed from parameters and buffers only: its labels name the tensors whose roles a rule may set.
    parameter: bool = False
    data: torch.Tensor | None = None
    # Where it comes from in the trace.
    node: fx.Node | None = None
    # Dimensions of length 0, which count as 1 in its shape and its planes.
    missing: frozenset[int] = frozenset()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.spec.shape

    @property
    def ndim(self) -> int:
        return len(self.spec.shape)


@dataclass(frozen=True, slots=True)
class Call:
    """One operator call: `args` and `kwargs` as recorded, with a `Value` for every tensor.

    `outputs` are the shapes of the results that the network uses (None: that result is not used).
    """

    node: fx.Node
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[TensorSpec | None, ...]

    @property
    def op(self) -> str:
        """The operator's name without namespace and overload, e.g. "convolution"."""
        return op(self.node)

    @property
    def overload(self) -> OpOverload:
        """The operator itself, to run it on planes."""
        return overload(self.node)

    @property
    def function(self) -> str:
        """The Python function that led to the operator, e.g. "chunk"."""
        return of(self.node).function

    @property
    def module(self) -> str:
        return of(self.node).module

    @property
    def place(self) -> str:
        """Where the program calls it: the same before and after pruning."""
        return spot_of(self.node)

    @property
    def where(self) -> str:
        return where(self.node)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first result that is used."""
        return next((o.shape for o in self.outputs if o is not None), ())

    def tensors(self) -> list[Value]:
        """All tensor arguments, those inside lists too, in order."""
        found: list[Value] = []

        def walk(value: Any) -> None:
            if isinstance(value, Value):
                found.append(value)
            elif isinstance(value, list | tuple):
                for v in value:
                    walk(v)

        walk(self.args)
        walk(list(self.kwargs.values()))
        return found

    def arg(self, index: int, name: str, default: Any = None) -> Any:
        """Argument `index`, or the keyword `name`, or its default."""
        return self.args[index] if index < len(self.args) else self.kwargs.get(name, default)


def laid_together(where: str, square: bool) -> str:
    """Why one of two widths stays whose product is the length of a dimension: an extent is a sum (docs/coupling.md).

    Args:
        square: both widths are one group's.
    """
    return f"{where} lays {'the square of its width' if square else 'it and another width'} along one dimension"
