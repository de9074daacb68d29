"""What `prune` was asked for, understood and checked before anything runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, get_args

import torch
from torch import nn

from ..errors import BudgetError, ModelError
from ..model.inputs import normalize_examples
from ..model.preserving import named_tensors
from ..scoring.losses import Loss, LossFn, check_loss
from ..scoring.saliency import MAX_BATCHES, Importance, check_importance
from ..solver import Method
from ..types import Coupling, Inputs
from .goals import Goals


@dataclass(frozen=True, slots=True)
class Request:
    """Everything that `prune` was asked for.

    Attributes:
        goals: budgets and costs.
        examples: of each the positional arguments of the forward, then a dict of keyword arguments. The first is timed.
        data: batches that can be read again for every step. The other attributes are as `prune` documents them.
    """

    goals: Goals
    examples: list[tuple[Any, ...]]
    data: Iterable[Any] | None
    loss_fn: LossFn | None
    loss: Loss | None
    importance: Importance | None
    round_to: int | None
    min_keep: float | int
    steps: int | None
    solver: Method
    tolerance: float
    train_between: Callable[[nn.Module], Any] | None
    progress: bool
    branches: bool = False

    def __post_init__(self) -> None:
        if self.steps is not None and (isinstance(self.steps, bool) or int(self.steps) != self.steps or self.steps < 1):
            raise BudgetError(f"steps={self.steps!r} must be a whole number of at least 1, or None")
        if not (math.isfinite(self.tolerance) and self.tolerance > 0):
            raise BudgetError(f"tolerance={self.tolerance!r} must be a positive relative deviation such as 0.02")
        if self.solver not in get_args(Method):
            raise BudgetError(f"solver={self.solver!r} is not one of {', '.join(get_args(Method))}")
        check_loss(self.data, self.loss_fn, self.loss)
        check_importance(self.importance)

    @property
    def inputs(self) -> Inputs:
        """Arguments of the forward that is timed."""
        return self.examples[0][:-1], self.examples[0][-1]


def examples_of(model: nn.Module, example_inputs: Any) -> list[tuple[Any, ...]]:
    """The example inputs in one form: a list of positional arguments, then a dict."""
    return [(*args, kwargs) for args, kwargs in normalize_examples(model, example_inputs)]


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
    for name, found in named_tensors(model):
        tensor = found.detach()
        wrong = torch.isnan(tensor) if not isinstance(found, nn.Parameter) else ~torch.isfinite(tensor)
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
