"""Proof that a rewritten network has the structure its plan asks for, without running a single multiplication.

The rewritten network is traced again. Operator by operator its shapes must be those that the plan's widths give, and
its coupling must be the original coupling restricted to the slots that stayed: two slots are coupled after the
rewrite if and only if they were before. A `chunk` that now cuts in another place changes no shape but does change
the coupling.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from .errors import RewriteError, TraceError
from .inputs import normalize_inputs
from .tracing import record, trace
from .types import Coupling, Plan, Traced


def verify(small: nn.Module, plan: Plan, coupling: Coupling, example_inputs: Any = None) -> None:
    """Check `small` against `plan`.

    Raises:
        RewriteError: names the first operator that differs.
    """
    traced = _trace_shapes(small, example_inputs)
    widths = coupling.widths(plan)
    before, after = list(coupling.traced.graph.nodes), list(traced.graph.nodes)
    for old, new in zip(before, after, strict=False):
        expected = tuple(e.at(widths) for e in coupling.shapes[old.name])
        spec = new.meta.get("spec")
        if old.target != new.target or (spec is not None and spec.shape != expected):
            found = f"{new.target} of shape {spec.shape if spec else '()'}"
            raise RewriteError(
                f"after pruning, {old.name} in {old.meta.get('module')!r} ({old.meta.get('source')}) should be "
                f"{old.target} of shape {expected}, but the network ran {found}. A constant in the forward may "
                "depend on a width: pass ignore=[...] with the layers around it"
            )
    if len(before) != len(after):
        raise RewriteError(f"the forward ran {len(before)} operators before pruning and {len(after)} after")


def _trace_shapes(model: nn.Module, example_inputs: Any) -> Traced:
    """Trace on the meta device, which costs no arithmetic; really where the forward needs values."""
    args, kwargs = normalize_inputs(model, example_inputs)
    try:
        hollow = _to_meta(model)
        args, kwargs = tree_map(_meta, (args, kwargs))
        return record(hollow, args, kwargs)
    except (TraceError, NotImplementedError, RuntimeError):
        return trace(model, example_inputs)


def _to_meta(model: nn.Module) -> nn.Module:
    # Tensors are copied as their meta twins, so no weight is duplicated.
    memo = {id(t): _meta(t) for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo)


def _meta(value: Any) -> Any:
    if isinstance(value, nn.Parameter):
        return nn.Parameter(value.detach().to("meta"), requires_grad=value.requires_grad)
    return value.detach().to("meta") if isinstance(value, torch.Tensor) else value
