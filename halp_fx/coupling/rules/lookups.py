"""Tables that are looked up by row, and rows that are written."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..algebra import Algebra, Call, Planes, Value, along, varying, vector
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
    """`index_put(x, indices, values)`: x with values written at positions of some of its dimensions.

    What lies before and behind the indexed dimensions is written as a whole (`canvas[:, at] = rows.t()`), so the values
    lose the same channels there.
    """
    x, indices, values = call.args[0], call.args[1], call.args[2]
    given = [i for i, index in enumerate(indices) if index is not None]
    last = max(i + (indices[i].ndim if indices[i].spec.dtype == torch.bool else 1) for i in given)
    # What is indexed apart (`x[i, :, j]`) is written with the positions in front.
    first = given[0] if given == list(range(given[0], given[0] + len(given))) else 0
    written = set(range(first, last))
    beside_it = tuple(p for p in x.planes if not written & set(varying(p)))
    for plane in x.planes:
        if all(plane is not p for p in beside_it):
            algebra.pin(plane, f"{call.where} writes at positions along this axis")
    positions = max(1 if indices[i].spec.dtype == torch.bool else indices[i].ndim for i in given)
    front = values.ndim - (x.ndim - len(written) + positions)  # Below zero if values are broadcast.
    own = set(range(max(front + first, 0), max(front + first + positions, 0)))
    shape = (*x.shape[:first], *x.shape[last:])
    rows = [
        _without(replace(x, planes=beside_it), written),
        _without(replace(values, planes=beside(values, own, call, algebra)), own),
    ]
    # What the values hold fixed is not carried on, as in any other operator.
    back = (*(slice(None) for _ in range(first)), *(None for _ in written))
    return tuple(p[back].expand(x.shape) for p in join(rows, shape, call, algebra))


def _without(value: Value, dims: set[int]) -> Value:
    """A value without some of its dimensions, along which its planes do not vary."""
    kept = [d for d in range(value.ndim) if d not in dims]
    at = tuple(0 if d in dims else slice(None) for d in range(value.ndim))
    spec = value.spec
    spec = replace(spec, shape=tuple(spec.shape[d] for d in kept), stride=tuple(spec.stride[d] for d in kept))
    return replace(value, spec=spec, planes=tuple(p[at] for p in value.planes), node=None)


register_rule(torch.ops.aten.embedding)(embedding)
register_rule(torch.ops.aten._embedding_bag, torch.ops.aten._embedding_bag_forward_only)(embedding_bag)
register_rule(torch.ops.aten.index_put)(index_put)
