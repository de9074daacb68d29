"""narrow: plan -> the model itself, smaller. Its modules, parameters and buffers stay the objects that they are, so
whoever holds one (an optimizer, a list for clipping, a hook) holds the smaller one now.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..coupling.residual import find_branches
from ..model.copying import hollowed
from ..model.members import named_tensors
from ..types import Coupling, Cuts, Plan
from .attributes import sync_attributes
from .dropping import drop
from .slicing import cuts_of, empty_caches, sliced

Undo = Callable[[], None]


def narrow(model: nn.Module, plan: Plan, *, coupling: Coupling) -> tuple[Cuts, Undo]:
    """Take from a model what a plan removes, in place, gradients included; modules of dropped branches are replaced.

    Nothing is verified: `rewrite` a copy first. If anything fails, the model is as it was.

    Args:
        coupling: of this model.

    Returns:
        What was cut, and a function that puts everything back.

    Raises:
        PlanError: the plan does not fit the model.
        RewriteError: a branch cannot be dropped.
    """
    cuts = cuts_of(coupling, plan)
    before = _Before.of(model)
    try:
        original = hollowed(model)
        torch.clear_autocast_cache()  # It has the wide weights, under the same tensors.
        for name, tensor in named_tensors(model):
            if name in cuts.kept:
                cut_in_place(tensor, cuts.of(name))
        empty_caches(model, coupling)
        sync_attributes(model, original, coupling, plan)
        drop(model, find_branches(coupling).named(plan.dropped) if plan.dropped else ())
        _tables_written(model)
    except BaseException:
        before.put_back()
        raise
    return cuts, before.put_back


def _tables_written(model: nn.Module) -> None:
    """Write every module's tables of tensors again, as they are: Dynamo asks for shapes anew only where a table was
    written (torch 2.11), and code that was compiled for the wide network failed on the narrow one."""
    tables: list[dict[str, Any]] = [t for m in model.modules() for t in (m._parameters, m._buffers)]
    for table in tables:
        items = dict(table)
        table.clear()
        table.update(items)


def cut_in_place(tensor: torch.Tensor, kept: Mapping[int, np.ndarray]) -> None:
    """Shrink a tensor, and its gradient, and leave it the object that it is."""
    grad = None if tensor.grad is None else sliced(tensor.grad, kept)
    _set(tensor, sliced(tensor, kept), grad)


def _set(tensor: torch.Tensor, data: torch.Tensor, grad: torch.Tensor | None) -> None:
    tensor.grad = None
    if tensor.requires_grad:
        # While a graph of the last step lives (a loss that was kept), autograd holds on to the node that adds up this
        # tensor's gradient, and that expects the old shape. A change of type makes it forget the node.
        other = torch.float32 if data.dtype == torch.float64 else torch.float64
        tensor.data = torch.empty(0, dtype=other, device=data.device)
    tensor.data = data
    tensor.grad = grad


@dataclass(frozen=True, slots=True, eq=False)
class _Before:
    """A model as it was."""

    attributes: list[tuple[nn.Module, dict[str, Any]]]
    tables: list[tuple[dict[Any, Any], dict[Any, Any]]]
    tensors: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]

    @classmethod
    def of(cls, model: nn.Module) -> _Before:
        attributes = [(module, dict(vars(module))) for module in model.modules()]
        tables = [(t, dict(t)) for _, own in attributes for t in own.values() if isinstance(t, dict)]
        return cls(attributes, tables, [(t, t.data, t.grad) for _, t in named_tensors(model)])

    def put_back(self) -> None:
        for module, own in self.attributes:
            vars(module).clear()
            vars(module).update(own)
        for table, items in self.tables:
            table.clear()
            table.update(items)
        for tensor, data, grad in self.tensors:
            if tensor.data.shape != data.shape or tensor.grad is not grad:
                _set(tensor, data, grad)
