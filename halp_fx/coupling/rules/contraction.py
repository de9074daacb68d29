"""Matrix products: linear layers, bmm, and what einsum and matmul come down to."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..algebra import Algebra, Call, Plane, Planes, Value, independent, varying
from .elementwise import join, parted
from .registry import register_rule
from .values import zero_where_removed

aten = torch.ops.aten


def contraction(call: Call, algebra: Algebra) -> Planes:
    """(*batch, m, k) x (*batch, k, n) -> (*batch, m, n).

    Both operands' planes are laid into the space (*batch, m, k, n). Where they vary along the same dimension they are
    coupled. A plane over k alone is consumed. One that varies along k and elsewhere (attention: head x head dimension)
    is tied along k, so that what stays is a label per head; or, as the other choice, elsewhere: every head then keeps
    the same positions.
    """
    a, b = call.args[:2]
    _sum(call, algebra, (a, a.ndim - 1), (b, b.ndim - 2))
    return product(a, b, call, algebra)


def _sum(call: Call, algebra: Algebra, left: tuple[Value, int], right: tuple[Value, int]) -> None:
    """Each operand and its summed dimension: what was removed may hold anything in both."""
    for value, dim in (left, right):
        if not any(dim in varying(p) for p in value.planes) or zero_where_removed(value.node):
            return
    tensors = call.tensors()
    places = [next(i for i, v in enumerate(tensors) if v is value) for value, _ in (left, right)]
    if places[0] == places[1]:
        places[1] += 1  # One tensor on both sides.
    algebra.sum_over(call, {places[0]: left[1], places[1]: right[1]})


def product(a: Value, b: Value, call: Call, algebra: Algebra) -> Planes:
    """The labels of a @ b, for operands with the same batch dimensions."""
    m, k, n = a.shape[-2], a.shape[-1], b.shape[-1]
    batch = a.shape[:-2]
    space = (*batch, m, k, n)
    k_dim = len(batch) + 1
    left = [p.unsqueeze(-1).expand(space) for p in a.planes]
    right = [p.unsqueeze(-3).expand(space) for p in b.planes]
    left, right = parted((left, right), call, algebra)
    left, right = _outer(left, right, len(batch), call, algebra)
    left, right = (
        [_unblocked(p, other, facing, len(batch), call, algebra) for p in planes]
        for planes, other, facing in ((left, b, right), (right, a, left))
    )
    left, right = _shared(left, right, k_dim, call, algebra), _shared(right, left, k_dim, call, algebra)
    kept: list[Plane] = []
    for plane in left:
        partners = [q for q in right if set(varying(q)) & set(varying(plane)) and not independent(q, plane)]
        for q in partners:
            algebra.couple(plane, q, call, "input")
        _mark(a, plane, k_dim, algebra)
        kept.append(_without(plane, k_dim, bool(partners), call, algebra))
    for plane in right:
        partners = [p for p in left if set(varying(p)) & set(varying(plane)) and not independent(p, plane)]
        _mark(b, plane, k_dim, algebra)
        plane = _without(plane, k_dim, bool(partners), call, algebra)
        # Coupled, the labels of the other side stand for its own.
        if not partners or not any(set(varying(plane)) & set(varying(p)) for p in kept):
            kept.append(plane)
    flat = [p.select(k_dim, 0) for p in kept]
    return tuple(algebra.rectangle(p) for p in flat if varying(p))


def _outer(
    left: list[Plane], right: list[Plane], batch: int, call: Call, algebra: Algebra
) -> tuple[list[Plane], list[Plane]]:
    """The planes, where every head has rows of its own and columns of its own (channels attend to channels). What stays
    are whole heads; or, as the other choice, the same rows of every head, and the same columns."""

    def crosses(p: Plane, q: Plane) -> bool:
        shared, either = set(varying(p)) & set(varying(q)), set(varying(p)) ^ set(varying(q))
        return bool(shared) and max(shared) < batch and {batch, batch + 2} <= either and not independent(p, q)

    met = [(i, j) for i, p in enumerate(left) for j, q in enumerate(right) if crosses(p, q)]
    if not met or algebra.choose(f"{call.place}#outer", "whole") == "whole":
        return left, right
    rows, columns = {i for i, _ in met}, {j for _, j in met}

    def alike(planes: list[Plane], which: set[int]) -> list[Plane]:
        dims = [[d for d in varying(p) if d < batch] for p in planes]
        return [algebra.tie(p, dims[i], call, "batch") if i in which else p for i, p in enumerate(planes)]

    return alike(left, rows), alike(right, columns)


def _shared(planes: list[Plane], others: list[Plane], k_dim: int, call: Call, algebra: Algebra) -> list[Plane]:
    """The planes over k alone that meet no plane of the other operand over k and elsewhere: what all heads read (one
    layer for all of them, the keys of multi-query attention) stays where whole heads go. As the other choice both lose
    the same positions."""
    if algebra.choices.get(f"{call.place}#outer") == "positions":
        return planes  # Rows and columns that every head keeps alike.
    kept = []
    for plane in planes:
        met = [q for q in others if k_dim in varying(q) and len(varying(q)) > 1 and not independent(q, plane)]
        if varying(plane) == (k_dim,) and met and algebra.choose(call.place, "whole") == "whole":
            algebra.pin(plane, f"shared by all of what goes in {call.where}")
        else:
            kept.append(plane)
    return kept


def _unblocked(plane: Plane, other: Value, planes: list[Plane], batch: int, call: Call, algebra: Algebra) -> Plane:
    """The plane, where the other operand is as long along a batch dimension but has no labels there: it would not
    shrink along, so every place there keeps the same."""
    dims = {d for d in varying(plane) if d < batch and other.shape[d] > 1}
    if not dims or any(dims & set(varying(q)) for q in planes):
        return plane
    if dims == set(varying(plane)):
        algebra.pin(plane, f"the other operand of {call.where} does not shrink along")
        return plane
    return algebra.tie(plane, dims, call, "batch")


def _mark(value: Value, plane: Plane, k_dim: int, algebra: Algebra) -> None:
    if value.parameter:
        algebra.mark(plane, "consumer" if k_dim in varying(plane) else "producer")


def _without(plane: Plane, k_dim: int, matched: bool, call: Call, algebra: Algebra) -> Plane:
    """The plane after the sum over k. What keeps whole heads does not shrink along k, nor need the other operand."""
    if k_dim not in varying(plane):
        return plane
    if varying(plane) != (k_dim,) and algebra.choose(call.place, "whole") == "whole":
        return algebra.tie(plane, [k_dim], call, "contraction")
    if not matched:
        algebra.pin(plane, f"the other operand of {call.where} does not shrink along")
    plane = algebra.tie(plane, [d for d in varying(plane) if d != k_dim], call, "contraction")
    return plane.narrow(k_dim, 0, 1).expand(plane.shape)


def add_contraction(call: Call, algebra: Algebra) -> Planes:
    """`addmm` / `baddbmm`: bias + a @ b."""
    bias, a, b = call.args[:3]
    _sum(call, algebra, (a, a.ndim - 1), (b, b.ndim - 2))
    planes = product(a, b, call, algebra)
    result = Value(call.outputs[0], planes) if call.outputs[0] is not None else a
    if bias.parameter:
        for plane in bias.planes:
            algebra.mark(plane, "bias")
    return join([result, bias], call.shape, call, algebra)


def matrix_vector(call: Call, algebra: Algebra) -> Planes:
    """(m, k) x (k,) -> (m,)."""
    a, b = call.args[0], call.args[1]
    _sum(call, algebra, (a, a.ndim - 1), (b, 0))
    return _by_column(a, b, call, algebra)


def _by_column(a: Value, b: Value, call: Call, algebra: Algebra) -> Planes:
    spec = replace(b.spec, shape=(*b.shape, 1), stride=(*b.spec.stride, 1))
    column = replace(b, spec=spec, planes=tuple(p.unsqueeze(-1) for p in b.planes))
    return tuple(p.squeeze(-1) for p in product(a, column, call, algebra))


def dot(call: Call, algebra: Algebra) -> Planes:
    """(k,) x (k,) -> ()."""
    row, column = call.args[:2]
    _sum(call, algebra, (row, 0), (column, 0))
    spec = replace(row.spec, shape=(1, *row.shape), stride=(0, *row.spec.stride))
    row = replace(row, spec=spec, planes=tuple(p.unsqueeze(0) for p in row.planes))
    return tuple(p.squeeze(0) for p in _by_column(row, column, call, algebra))


register_rule(aten.mm, aten.bmm)(contraction)
register_rule(aten.addmm, aten.baddbmm)(add_contraction)
register_rule(aten.mv)(matrix_vector)
register_rule(aten.dot, aten.vdot)(dot)
