"""Proof that a rewritten network has the structure its plan asks for, without running a single multiplication.

The rewritten network is traced again. Operator by operator its shapes must be those that the plan's widths give, and
its coupling must be the original coupling restricted to the slots that stayed: two slots are coupled after the
rewrite if and only if they were before. A `chunk` that now cuts in another place changes no shape but does change
the coupling.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.utils._pytree import tree_map

from .coupling import couple
from .errors import RewriteError, TraceError
from .inputs import normalize_inputs
from .tracing import record
from .types import Axis, Coupling, Plan, Traced

_REMEDY = (
    "A constant in the forward may depend on a width: pass ignore=[...] with the layers around it, or compute it "
    "from a shape"
)


def verify(small: nn.Module, plan: Plan, coupling: Coupling, example_inputs: Any = None) -> None:
    """Check `small` against `plan`.

    Raises:
        RewriteError: names the first operator that differs.
    """
    try:
        traced = _trace_shapes(small, example_inputs)
    except TraceError as error:
        raise RewriteError(f"the pruned network does not run: {error}\n{_REMEDY}") from error
    widths = coupling.widths(plan)
    before, after = _working(coupling.traced), _working(traced)
    for old, new in zip(before, after, strict=False):
        expected = tuple(e.at(widths) for e in coupling.shapes[old.name])
        spec = new.meta.get("spec")
        if old.target != new.target or (spec is not None and spec.shape != expected):
            found = f"{new.target} of shape {spec.shape if spec else '()'}"
            raise RewriteError(
                f"after pruning, {old.name} in {old.meta.get('module')!r} ({old.meta.get('source')}) should be "
                f"{old.target} of shape {expected}, but the network ran {found}. {_REMEDY}"
            )
    if len(before) != len(after):
        raise RewriteError(f"the forward ran {len(before)} operators before pruning and {len(after)} after")
    _check_channels(coupling, couple(traced, like=coupling), plan)


def _check_channels(before: Coupling, after: Coupling, plan: Plan) -> None:
    """The channels of `after` are those of `before` that the plan keeps: the same slots, coupled alike.

    Axes that are down to one slot have no labels any more, so groups of width 1 are not compared.
    """
    old, new = _channel_ids(before, plan), _channel_ids(after, Plan())
    shared = [axis for axis in old if axis in new and len(old[axis]) == len(new[axis])]
    if not shared:
        return
    a, b = (np.concatenate([ids[axis] for axis in shared]) for ids in (old, new))
    compared = (a >= 0) & (b >= 0)
    pairs = np.unique(np.stack([a[compared], b[compared]]), axis=1)
    if len(np.unique(pairs[0])) == pairs.shape[1] == len(np.unique(pairs[1])) and not (compared ^ (a >= 0)).any():
        return
    place = np.repeat(np.arange(len(shared)), [len(old[axis]) for axis in shared])
    repeated = pairs[1][np.flatnonzero(np.bincount(pairs[1])[pairs[1]] > 1)] if pairs.size else np.array([])
    wrong = np.flatnonzero(np.isin(b, repeated) | (compared ^ (a >= 0)))
    axis = shared[place[wrong[0]]] if len(wrong) else shared[0]
    raise RewriteError(f"after pruning, the channels of {axis} are coupled to other channels than before. {_REMEDY}")


def _channel_ids(coupling: Coupling, plan: Plan) -> dict[Axis, np.ndarray]:
    """For every axis, the channel (numbered over all groups) of each slot that stays, -1 for none."""
    sizes = {t: s.shape for t, s in coupling.traced.tensors.items()}
    ids: dict[Axis, np.ndarray] = {}
    start = 0
    for group in coupling.groups:
        kept = np.asarray(plan[group.name]) if group.name in plan else np.arange(group.size)
        numbers = np.full(group.size, -2)
        numbers[kept] = start + kept if len(kept) > 1 else -1
        for m in group.members:
            row = ids.setdefault(m.axis, np.full(sizes[m.axis.tensor][m.axis.dim], -1))
            row[m.slots] = numbers[:, None]
        start += group.size
    return {axis: row[row > -2] for axis, row in ids.items()}


def _working(traced: Traced) -> list[fx.Node]:
    """The nodes that compute. A reshape is a view or a copy and a view, as strides (and widths of 1) have it."""
    moving = {"view", "_unsafe_view", "reshape", "_reshape_alias", "clone", "alias", "detach", "expand"}
    return [n for n in traced.graph.nodes if getattr(n.target, "_opname", "") not in moving]


def _trace_shapes(model: nn.Module, example_inputs: Any) -> Traced:
    """Trace on the meta device, which costs no arithmetic; really where the forward needs values."""
    args, kwargs = normalize_inputs(model, example_inputs)
    try:
        hollow = _to_meta(model)
        args, kwargs = tree_map(_meta, (args, kwargs))
        return record(hollow, args, kwargs)
    except (TraceError, NotImplementedError, RuntimeError):
        return record(model, *normalize_inputs(model, example_inputs))


def _to_meta(model: nn.Module) -> nn.Module:
    # Tensors are copied as their meta twins, so no weight is duplicated.
    memo = {id(t): _meta(t) for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo)


def _meta(value: Any) -> Any:
    if isinstance(value, nn.Parameter):
        return nn.Parameter(value.detach().to("meta"), requires_grad=value.requires_grad)
    return value.detach().to("meta") if isinstance(value, torch.Tensor) else value
