"""Tables that are looked up by row, and rows that are written."""

from __future__ import annotations

from dataclasses import replace

import torch

from ...types import TensorSpec
from ..algebra import Algebra, Call, Planes, Value, along, broadcast, varying, vector
from .channels import beside
from .elementwise import join
from .registry import register_rule


def embedding(call: Call, algebra: Algebra) -> Planes:
    """weight (rows, C), indices (*) -> (*, C). Rows are fixed."""
    return _rows(call, algebra)


def embedding_bag(call: Call, algebra: Algebra) -> list[Planes]:
    """weight (rows, C), indices, offsets -> (bags, C), and bookkeeping without channels."""
    return [_rows(call, algebra)] + [()] * (len(call.outputs) - 1)


def _rows(call: Call, algebra: Algebra) -> Planes:
    weight: Value = call.args[0]
    kept = []
    for plane in weight.planes:
        if varying(plane) == (1,):
            if weight.parameter:
                algebra.mark(plane, "producer")
            kept.append(along(vector(plane, 1), len(call.shape) - 1, call.shape))
        else:
            algebra.pin(plane, f"the rows of {call.where} are fixed")
    return tuple(kept)


def index_put(call: Call, algebra: Algebra) -> Planes:
    """`index_put(x, indices, values)`: x with values written at positions of its leading dimensions.

    What follows the last indexed dimension is written as a whole, so the values lose the same channels there.
    """
    x, indices, values = call.args[0], call.args[1], call.args[2]
    last = max(
        i + (index.ndim if index.spec.dtype == torch.bool else 1)
        for i, index in enumerate(indices)
        if index is not None
    )
    trailing = tuple(p for p in x.planes if min(varying(p), default=last) >= last)
    for plane in x.planes:
        if all(plane is not p for p in trailing):
            algebra.pin(plane, f"{call.where} writes at positions along this axis")
    shape = x.shape[last:]
    rows = [
        replace(v, spec=_last(v.spec, len(shape)), planes=_inner(v, len(shape), call, algebra), node=None)
        for v in (replace(x, planes=trailing), values)
    ]
    # What the values hold fixed is not carried on, as in any other operator.
    return tuple(broadcast(p, x.shape) for p in join(rows, shape, call, algebra))


def _last(spec: TensorSpec, count: int) -> TensorSpec:
    start = max(0, len(spec.shape) - count)
    return replace(spec, shape=spec.shape[start:], stride=spec.stride[start:])


def _inner(value: Value, count: int, call: Call, algebra: Algebra) -> Planes:
    """The planes as they lie in the last `count` dimensions."""
    start = max(0, value.ndim - count)
    kept = beside(value, set(range(start)), call, algebra)
    return tuple(p[(0,) * start] for p in kept)


register_rule(torch.ops.aten.embedding)(embedding)
register_rule(torch.ops.aten._embedding_bag, torch.ops.aten._embedding_bag_forward_only)(embedding_bag)
register_rule(torch.ops.aten.index_put)(index_put)
