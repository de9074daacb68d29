"""What `prune` was asked for, understood and checked before anything runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, get_args

import torch
from torch import nn

from .errors import BudgetError, ModelError, SaliencyError
from .goals import Goals
from .inputs import normalize_inputs
from .preserving import named_tensors
from .saliency import MAX_BATCHES, Importance
from .solver import Method
from .types import Coupling, Inputs


@dataclass(frozen=True, slots=True)
class Request:
    """Everything that `prune` was asked for.

    Attributes:
        goals: budgets and costs.
        example: positional arguments of the forward, then a dict of keyword arguments.
        data: batches that can be read again for every step. The other attributes are as `prune` documents them.
    """

    goals: Goals
    example: tuple[Any, ...]
    data: Iterable[Any] | None
    loss_fn: Callable[[Any, Any], torch.Tensor] | None
    importance: Importance | None
    round_to: int | None
    min_keep: float | int
    steps: int | None
    solver: Method
    tolerance: float
    train_between: Callable[[nn.Module], Any] | None
    progress: bool

    def __post_init__(self) -> None:
        if self.steps is not None and (isinstance(self.steps, bool) or int(self.steps) != self.steps or self.steps < 1):
            raise BudgetError(f"steps={self.steps!r} must be a whole number of at least 1, or None")
        if not (math.isfinite(self.tolerance) and self.tolerance > 0):
            raise BudgetError(f"tolerance={self.tolerance!r} must be a positive relative deviation such as 0.02")
        if self.solver not in get_args(Method):
            raise BudgetError(f"solver={self.solver!r} is not one of {', '.join(get_args(Method))}")
        if (self.data is None) != (self.loss_fn is None):
            have, lack = ("data", "loss_fn") if self.loss_fn is None else ("loss_fn", "data")
            raise SaliencyError(f"{have} without {lack}: Taylor saliency needs both, magnitude saliency neither")

    @property
    def inputs(self) -> Inputs:
        """Arguments of one forward."""
        return self.example[:-1], self.example[-1]


def example_of(model: nn.Module, example_inputs: Any) -> tuple[Any, ...]:
    """The example inputs in one form: positional arguments, then a dict."""
    args, kwargs = normalize_inputs(model, example_inputs)
    return (*args, kwargs)


def rereadable(data: Iterable[Any] | None) -> Iterable[Any] | None:
    """The batches, kept if they could be read only once (a generator)."""
    if data is None or iter(data) is not data:
        return data
    return list(islice(data, MAX_BATCHES))


def check_finite(model: nn.Module) -> None:
    """Refuse NaN and infinite weights: every score and comparison would be meaningless. A buffer may be infinite (a
    mask, a range that nothing was seen of yet).

    Raises:
        ModelError: names the tensor.
    """
    for name, tensor in named_tensors(model):
        wrong = torch.isnan(tensor) if not isinstance(tensor, nn.Parameter) else ~torch.isfinite(tensor)
        if tensor.is_floating_point() and bool(wrong.any()):
            count = int(wrong.sum())
            raise ModelError(
                f"{name} (shape {tuple(tensor.shape)}) has {count} NaN or infinite values: load or train it again"
            )


def check_prunable(coupling: Coupling) -> None:
    """Raises ModelError, with the reasons, if no group may shrink."""
    if coupling.prunable:
        return
    reasons = "; ".join(f"{name}: {reason}" for name, reason in list(coupling.frozen.items())[:5])
    raise ModelError(f"nothing in this model can be pruned. {reasons or 'No layer with channels was found.'}")
