"""The slots that a plan removes, and a copy of a model without them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from ..coupling.residual import find_branches
from ..errors import PlanError
from ..internals import suggest_memory_format
from ..model.copying import copied
from ..model.members import named_tensors
from ..types import Axis, Coupling, Cuts, Plan
from .attributes import sync_attributes
from .literals import lifted


def shrink(model: nn.Module, plan: Plan, coupling: Coupling) -> nn.Module:
    """A deep copy of `model` with smaller tensors; nothing is checked but the plan. Literals of its graphs are lifted.

    Raises:
        PlanError: the plan does not fit the model.
    """
    model = lifted(model)
    cuts = cuts_of(coupling, plan)
    # Tensors that shrink are put in place of their copies, so that no full copy of them is made.
    with torch.no_grad():
        memo = {id(t): _shrunk(t, cuts.of(name)) for name, t in named_tensors(model) if name in cuts.kept}
    small = copied(model, memo)
    empty_caches(small, coupling)
    sync_attributes(small, model, coupling, plan)
    return small


def empty_caches(small: nn.Module, coupling: Coupling) -> None:
    """Take tensors out of the caches of a copy: they were made at the original's widths, or by a forward that ran since
    it was recorded, and will be made again."""
    modules = dict(small.named_modules())
    for cache in coupling.traced.caches:
        owner = modules.get(cache.module)
        held: Any = {} if owner is None else owner._buffers if cache.attribute in owner._buffers else vars(owner)
        if cache.attribute not in held:
            continue
        table = held[cache.attribute]
        if cache.before == "value":
            held[cache.attribute] = cache.value
        elif cache.before == "missing":
            del held[cache.attribute]
        elif isinstance(table, dict):
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
            raise PlanError(f"group {name!r} may not shrink: {group.frozen}. Leave it out of the plan")
        stays = np.zeros(group.size, dtype=bool)
        stays[list(kept)] = True
        gone = np.flatnonzero(~stays)
        for member in group.members:
            dead.setdefault(member.axis, []).append(member.slots.take(gone, axis=0).reshape(-1))
    # Stable: the slots of a group mostly ascend.
    return {axis: np.sort(np.concatenate(parts), kind="stable") for axis, parts in dead.items()}


def index_of(slots: np.ndarray, tensor: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(slots, dtype=torch.int64, device=tensor.device)


def cuts_of(coupling: Coupling, plan: Plan) -> Cuts:
    """What a plan leaves of each tensor.

    Raises:
        PlanError: as `removed_slots`; a branch that may not go.
    """
    kept: dict[str, dict[int, np.ndarray]] = {}
    for axis, slots in sorted(removed_slots(coupling, plan).items()):
        stays = np.ones(coupling.traced.tensors[axis.tensor].shape[axis.dim], dtype=bool)
        stays[slots] = False
        kept.setdefault(axis.tensor, {})[axis.dim] = stays.nonzero()[0]
    gone = find_branches(coupling).named(plan.dropped) if plan.dropped else ()
    return Cuts(kept, frozenset(name for branch in gone for name in branch.tensors))


def sliced(tensor: torch.Tensor, kept: Mapping[int, np.ndarray]) -> torch.Tensor:
    """The numbers of a tensor that stay, detached; its memory format stays."""
    data = tensor.detach()
    form = suggest_memory_format(data)
    for dim, slots in kept.items():
        data = data.index_select(dim, index_of(slots, data))
    if suggest_memory_format(data) == form:
        return data.contiguous(memory_format=form)
    # Of 1 x 1 weights both formats have the same order of elements, and `contiguous` leaves strides as they are.
    return torch.empty_like(data, memory_format=form).copy_(data)


def _shrunk(tensor: torch.Tensor, kept: Mapping[int, np.ndarray]) -> torch.Tensor:
    """A parameter or buffer without some of its slots; type, `requires_grad` and memory format stay."""
    data = sliced(tensor, kept)
    if isinstance(tensor, nn.Parameter):
        return type(tensor)(data, requires_grad=tensor.requires_grad)
    return data
