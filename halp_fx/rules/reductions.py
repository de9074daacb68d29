"""Operators that reduce or normalise along given dimensions."""

from __future__ import annotations

import torch

from ..algebra import Algebra, Call, Planes, Value, varying
from .registry import register_rule

aten = torch.ops.aten


def reduction(call: Call, algebra: Algebra) -> Planes | list[Planes]:
    """`op(x, dims, keepdim)`: planes over other dimensions are carried on.

    A statistic over the channels themselves is pinned: with fewer channels it would be another number.
    """
    x: Value = call.args[0]
    dims = _dims(call.arg(1, "dim"), x.ndim)
    keepdim = call.shape != () and len(call.shape) == x.ndim
    kept = []
    for plane in x.planes:
        if set(varying(plane)) & dims:
            algebra.pin(plane, f"{call.where} reduces over the channels")
            continue
        for d in sorted(dims, reverse=True):
            plane = plane.narrow(d, 0, 1) if keepdim else plane.select(d, 0)
        kept.append(plane)
    planes = tuple(kept)
    return planes if len(call.outputs) == 1 else [planes] * len(call.outputs)


def along_dimension(call: Call, algebra: Algebra) -> Planes | list[Planes]:
    """`op(x, dim)` with a result of x's shape, e.g. softmax and cumsum: mixes along `dim` only."""
    x: Value = call.args[0]
    dims = _dims(call.arg(1, "dim"), x.ndim)
    kept = []
    for plane in x.planes:
        if set(varying(plane)) & dims:
            algebra.pin(plane, f"{call.where} runs over the channels")
        else:
            kept.append(plane)
    planes = tuple(kept)
    return planes if len(call.outputs) == 1 else [planes] * len(call.outputs)


def _dims(dims: object, ndim: int) -> set[int]:
    if dims is None or isinstance(dims, bool):
        return set(range(ndim))
    if isinstance(dims, int):
        dims = [dims]
    chosen = {int(d) % max(ndim, 1) for d in dims}  # type: ignore[attr-defined]
    return chosen or set(range(ndim))


register_rule(
    aten.mean,
    aten.sum,
    aten.amax,
    aten.amin,
    aten.max,
    aten.min,
    aten.prod,
    aten.var,
    aten.std,
    aten.var_mean,
    aten.logsumexp,
    aten.argmax,
    aten.argmin,
)(reduction)
register_rule(aten._softmax, aten._log_softmax, aten.cumsum, aten.cumprod)(along_dimension)
