"""The modules that a rewrite puts in place of those of dropped branches. They may be copied, saved and compiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..types import ForwardPart


class Remainder(nn.Module):
    """In place of a module whose residual branch was dropped: what it did after the add, applied to the shortcut.

    Child modules keep their names, so their `state_dict` entries do, too. Nothing is written in place: the input may
    be in use elsewhere.
    """

    def __init__(self, home: nn.Module, parts: Sequence[ForwardPart]) -> None:
        super().__init__()
        self._parts = tuple(parts)
        for part in parts:
            if part.child:
                child = home.get_submodule(part.child)
                for module in child.modules():
                    if getattr(module, "inplace", False) is True:
                        module.inplace = False  # type: ignore[assignment]
                self.add_module(part.child, child)
        self.train(home.training)
        for part in parts:
            if part.child:
                self.get_submodule(part.child).train(home.get_submodule(part.child).training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self._parts:
            if part.child:
                x = getattr(self, part.child)(x)
            else:
                packet, overload = part.operator
                x = getattr(getattr(torch.ops.aten, packet), overload)(x, *part.arguments)
        return x


class Silent(nn.Module):
    """In place of a module of a dropped branch: returns zeros of its input's shape, or its input.

    Attributes:
        zeros: which of the two.
        results: number of results and position of the tensor among them, None for a plain tensor.
    """

    def __init__(self, zeros: bool, results: tuple[int, int] | None) -> None:
        super().__init__()
        self.zeros = zeros
        self.results = results

    def forward(self, x: torch.Tensor, *_args: Any, **_kwargs: Any) -> Any:
        value = torch.zeros_like(x) if self.zeros else x
        if self.results is None:
            return value
        count, place = self.results
        return tuple(value if i == place else None for i in range(count))
