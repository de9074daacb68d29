"""zero: plan -> the zeroed twin, the oracle of a rewrite.

The twin has the original architecture. Every slot of every removed channel is zero where the channel is produced *and*
where it is consumed, so that an activation with f(0) != 0 in between does no harm. Where a statistic runs over
channels (LayerNorm, GroupNorm, a mean or softmax over channels) zeroing is not removing: the twin computes such
operators over the kept channels only. A dropped branch is computed and multiplied by zero where it would be added.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from ..coupling.branches import Branch
from ..coupling.residual import find_branches
from ..internals import TorchDispatchMode, tree_flatten, tree_unflatten
from ..model.copying import copied
from ..model.naming import by_group
from ..model.preserving import decomposed, named_tensors
from ..tracing.graph import operator
from ..types import Coupling, Plan
from .slicing import index_of, removed_slots

Keep = dict[int, np.ndarray]
"""Dimension -> sorted indices that stay."""

Steps = dict[tuple[str, int], list[Keep]]
"""(operator, how many times it has run in the forward) -> what stays of each of its tensors. Counted per operator,
because others may come and go with the dtype."""

Silences = dict[tuple[str, int], int]
"""(operator, how many times it has run in the forward) -> the argument that counts for nothing."""


def zero(model: nn.Module, plan: Plan | Mapping[str, Any], *, coupling: Coupling) -> nn.Module:
    """As `halp_fx.zero`, for a coupling at hand."""
    plan = by_group(plan, coupling)
    dead = removed_slots(coupling, plan)
    twin = copied(model)
    tensors = dict(named_tensors(twin))
    with torch.no_grad():
        for axis, slots in dead.items():
            tensors[axis.tensor].index_fill_(axis.dim, index_of(slots, tensors[axis.tensor]), 0)
    steps = _restrictions(coupling, plan)
    silences = _silences(coupling, find_branches(coupling).named(plan.dropped)) if plan.dropped else {}
    if steps or silences:
        twin.forward = partial(_forward, twin, steps, silences)
    return twin


def _silences(coupling: Coupling, branches: Sequence[Branch]) -> Silences:
    """At the adds of dropped branches, which summand is multiplied by zero."""
    sides = {b.add: b.side for b in branches}
    found: Silences = {}
    seen: Counter[str] = Counter()
    for node in coupling.traced.graph.nodes:
        seen[str(node.target)] += 1
        if node.name in sides:
            found[str(node.target), seen[str(node.target)]] = sides[node.name]
    return found


def _restrictions(coupling: Coupling, plan: Plan) -> Steps:
    """For operators with a statistic over channels, what stays of each of their tensors."""
    kept = [
        np.isin(np.arange(g.size), plan[g.name]) if g.name in plan else np.ones(g.size, bool) for g in coupling.groups
    ]
    steps: Steps = {}
    seen: Counter[str] = Counter()
    for node in coupling.traced.graph.nodes:
        seen[str(node.target)] += 1
        keeps: list[Keep] = []
        for channel_map in coupling.restricted.get(node.name, ()):
            keep: Keep = {}
            for dim, (groups, channels) in channel_map.dims.items():
                stays = np.array([g < 0 or kept[g][c] for g, c in zip(groups, channels, strict=True)])
                if not stays.all():
                    keep[dim] = np.flatnonzero(stays)
            keeps.append(keep)
        if any(keeps):
            steps[str(node.target), seen[str(node.target)]] = keeps
    return steps


def _forward(twin: nn.Module, steps: Steps, silences: Silences, *args: Any, **kwargs: Any) -> Any:
    with torch.no_grad(), decomposed(), _Restrict(steps, silences):
        return type(twin).forward(twin, *args, **kwargs)


class _Restrict(TorchDispatchMode):
    """Runs some operators of the forward over a part of their channels, and adds nothing in others."""

    def __init__(self, steps: Steps, silences: Silences) -> None:
        super().__init__()
        self.steps = steps
        self.silences = silences
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.seen[str(func)] += 1
        place = (str(func), self.seen[str(func)])
        silent = self.silences.get(place)
        if silent == 0 and func._schema.is_mutable:
            args[0].mul_(0)
        elif silent is not None:
            args = tuple(a * 0 if i == silent else a for i, a in enumerate(args))
        keeps = self.steps.get(place)
        return func(*args, **kwargs) if keeps is None else _over_kept(func, args, kwargs, keeps)


def _over_kept(func: Any, args: Any, kwargs: Any, keeps: list[Keep]) -> Any:
    """The operator over what is kept, its results put back among zeros."""
    leaves, tree = tree_flatten((args, kwargs))
    writes = func._schema.is_mutable
    spare = [v.clone() if writes and isinstance(v, torch.Tensor) else v for v in leaves]
    full_args, full_kwargs = tree_unflatten(spare, tree)
    full = func(*full_args, **full_kwargs)
    rest = iter(keeps)
    narrowed = [_narrow(v, next(rest)) if isinstance(v, torch.Tensor) else v for v in leaves]
    small_args, small_kwargs = tree_unflatten(narrowed, tree)
    small = func(*_resized(func, small_args), **small_kwargs)
    keep = keeps[0]
    if writes:
        tensors = [(v, n) for v, n in zip(leaves, narrowed, strict=True) if isinstance(v, torch.Tensor)]
        for (whole, part), kept in zip(tensors, keeps, strict=True):
            _put_back(whole, part, kept)
        if isinstance(full, torch.Tensor):
            return args[0]  # Operators that write to their first argument return it.
    if isinstance(full, torch.Tensor):
        return _widen(small, full, keep)
    return type(full)(_widen(s, f, keep) for s, f in zip(small, full, strict=True))


def _narrow(tensor: torch.Tensor, keep: Keep) -> torch.Tensor:
    for dim, indices in keep.items():
        tensor = tensor.index_select(dim, index_of(indices, tensor))
    return tensor


def _put_back(whole: torch.Tensor, part: torch.Tensor, keep: Keep) -> None:
    """Write the kept places of a tensor, of which an operator had a copy; what is not kept becomes zero."""
    if keep:
        index = [torch.as_tensor(keep.get(d, np.arange(n)), device=whole.device) for d, n in enumerate(whole.shape)]
        grids = torch.meshgrid(*index, indexing="ij")
        whole.copy_(torch.zeros_like(whole).index_put(grids, part))


def _resized(func: Any, args: Any) -> tuple[Any, ...]:
    """Size arguments that repeat the shape of the first tensor."""
    x, name = args[0], operator(func)
    if name in ("native_layer_norm", "_fused_rms_norm"):
        return (x, list(x.shape[x.dim() - len(args[1]) :]), *args[2:])
    if name == "native_group_norm":
        return (*args[:3], x.shape[0], x.shape[1], x[0, 0].numel(), *args[6:])
    return tuple(args)


def _widen(small: torch.Tensor, full: torch.Tensor, keep: Keep) -> torch.Tensor:
    if small.shape == full.shape or small.dim() <= max(keep, default=0):
        return small
    if max(keep) >= small.dim():
        return full  # A saved statistic, which only a backward would read.
    result = small
    for dim, indices in keep.items():
        if result.shape[dim] != full.shape[dim]:
            shape = list(result.shape)
            shape[dim] = full.shape[dim]
            result = result.new_zeros(shape).index_copy_(dim, index_of(indices, result), result)
    return result
