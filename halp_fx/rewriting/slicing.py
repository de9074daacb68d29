"""The slots that a plan removes, and a copy of a model without them."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ..errors import PlanError
from ..model.copying import copied
from ..model.preserving import named_tensors
from ..types import Axis, Coupling, Plan
from .attributes import sync_attributes
from .literals import lifted


def shrink(model: nn.Module, plan: Plan, coupling: Coupling) -> nn.Module:
    """A deep copy of `model` with smaller tensors; nothing is checked but the plan. Literals of its graphs are lifted.

    Raises:
        PlanError: the plan does not fit the model.
    """
    model = lifted(model)
    cuts: dict[str, list[tuple[int, np.ndarray]]] = {}
    for axis, slots in removed_slots(coupling, plan).items():
        cuts.setdefault(axis.tensor, []).append((axis.dim, slots))
    # Tensors that shrink are put in place of their copies, so that no full copy of them is made.
    with torch.no_grad():
        memo = {id(t): _shrunk(t, cuts[name]) for name, t in named_tensors(model) if name in cuts}
    small = copied(model, memo)
    _empty(small, coupling)
    sync_attributes(small, model, coupling, plan)
    return small


def _empty(small: nn.Module, coupling: Coupling) -> None:
    """Take tensors out of the caches of a copy: they were made at the original's widths, and will be made again."""
    modules = dict(small.named_modules())
    for module, attribute in coupling.traced.caches:
        table = getattr(modules.get(module), attribute, None)
        if isinstance(table, dict):
            for key in [k for k, v in table.items() if isinstance(v, torch.Tensor)]:
                del table[key]


def removed_slots(coupling: Coupling, plan: Plan) -> dict[Axis, np.ndarray]:
    """For every axis that shrinks, the sorted slots that go.

    Raises:
        PlanError: an unknown or frozen group, or an index out of range.
    """
    groups = {g.name: g for g in coupling.groups}
    dead: dict[Axis, list[np.ndarray]] = {}
    for name, kept in plan.items():
        group = groups.get(name)
        if group is None:
            some = ", ".join(repr(n) for n in list(groups)[:6])
            raise PlanError(f"the plan names a group {name!r} that this model does not have; it has {some}, …")
        if kept[-1] >= group.size:
            raise PlanError(f"group {name!r} has {group.size} channels: index {kept[-1]} is out of range")
        if len(kept) == group.size:
            continue
        if group.frozen is not None:
            raise PlanError(f"group {name!r} may not shrink: {group.frozen}")
        stays = np.zeros(group.size, dtype=bool)
        stays[list(kept)] = True
        gone = np.flatnonzero(~stays)
        for member in group.members:
            dead.setdefault(member.axis, []).append(member.slots.take(gone, axis=0).reshape(-1))
    # Stable: the slots of a group mostly ascend.
    return {axis: np.sort(np.concatenate(parts), kind="stable") for axis, parts in dead.items()}


def index_of(slots: np.ndarray, tensor: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(slots, dtype=torch.int64, device=tensor.device)


def _shrunk(tensor: torch.Tensor, cuts: list[tuple[int, np.ndarray]]) -> torch.Tensor:
    """A parameter or buffer without some of its slots; type, `requires_grad` and memory format stay."""
    data = tensor.detach()
    channels_last = data.dim() == 4 and not data.is_contiguous()
    channels_last = channels_last and data.is_contiguous(memory_format=torch.channels_last)
    for dim, slots in sorted(cuts, key=lambda cut: cut[0]):
        stays = np.ones(data.shape[dim], dtype=bool)
        stays[slots] = False
        data = data.index_select(dim, index_of(stays.nonzero()[0], data))
    data = data.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    if isinstance(tensor, nn.Parameter):
        return type(tensor)(data, requires_grad=tensor.requires_grad)
    return data
