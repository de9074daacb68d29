"""stepping: which optimizers step a model's parameters while it is pruned: one that the pruner was not told of keeps a
state of shapes that are gone after a cut, and its next step fails in words of its own."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from ..errors import TrainingError
from .optimizer import check_kind


class Stepped:
    """Optimizers that took a step since, whatever they step; PyTorch tells of every one."""

    def __init__(self) -> None:
        self._seen: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        seen = weakref.ref(self._seen)

        def noted(optimizer: Optimizer, *_: Any) -> None:
            there = seen()
            if there is not None:
                there.add(optimizer)

        self._handle: RemovableHandle = register_optimizer_step_post_hook(noted)
        weakref.finalize(self, self._handle.remove)

    def close(self) -> None:
        """Listen no more: the network will not be cut again."""
        self._handle.remove()
        self._seen.clear()

    def check(self, model: nn.Module, known: Iterable[Optimizer]) -> None:
        """See that those that step a model, and keep something in the shape of its parameters, are known.

        Raises:
            TrainingError: one is not.
        """
        own = {id(p): name for name, p in model.named_parameters()}
        told = {id(optimizer.state) for optimizer in known}  # One around another may show the state of that one.
        for optimizer in self._seen:
            if id(optimizer.state) in told:
                continue
            stepped = (p for group in optimizer.param_groups for p in group["params"] if id(p) in own)
            shaped = next((p for p in stepped if any(map(_shaped, optimizer.state.get(p, {}).values()))), None)
            if shaped is not None:
                check_kind(optimizer)  # To pass it would not help.
                raise TrainingError(
                    f"{type(optimizer).__name__} steps {own[id(shaped)]} and keeps a state of its shape, but the "
                    "Pruner was not told of it: that state would not be cut with the parameter. Make it before the "
                    "Pruner and pass it: Pruner(..., optimizer=optimizer), or optimizer=[first, second] if there are "
                    "several"
                )


def _shaped(value: Any) -> bool:
    """Whether what an optimizer keeps has a shape."""
    return isinstance(value, torch.Tensor) and value.numel() > 1
