"""Matrix products: linear layers, bmm, and what einsum and matmul come down to."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..algebra import Algebra, Call, Plane, Planes, Value, varying
from .elementwise import join
from .registry import register_rule

aten = torch.ops.aten


def contraction(call: Call, algebra: Algebra) -> Planes:
    """(*batch, m, k) x (*batch, k, n) -> (*batch, m, n).

    Both operands' planes are laid into the space (*batch, m, k, n). Where they vary along the same dimension they are
    coupled. A plane over k alone is consumed. One that varies along k and elsewhere (attention: head x head dimension)
    is tied along k, so that what stays is a label per head; or, as the other choice, elsewhere: every head then keeps
    the same positions.
    """
    return _product(call.args[0], call.args[1], call, algebra)


def _product(a: Value, b: Value, call: Call, algebra: Algebra) -> Planes:
    m, k, n = a.shape[-2], a.shape[-1], b.shape[-1]
    batch = a.shape[:-2]
    space = (*batch, m, k, n)
    k_dim = len(batch) + 1
    left = [p.unsqueeze(-1).expand(space) for p in a.planes]
    right = [p.unsqueeze(-3).expand(space) for p in b.planes]
    kept: list[Plane] = []
    for plane in left:
        partners = [q for q in right if set(varying(q)) & set(varying(plane))]
        for q in partners:
            algebra.couple(plane, q, call, "input")
        _mark(a, plane, k_dim, algebra)
        kept.append(_without(plane, k_dim, bool(partners), call, algebra))
    for plane in right:
        partners = [p for p in left if set(varying(p)) & set(varying(plane))]
        _mark(b, plane, k_dim, algebra)
        plane = _without(plane, k_dim, bool(partners), call, algebra)
        if not any(set(varying(plane)) & set(varying(p)) for p in kept):
            kept.append(plane)
    flat = [p.select(k_dim, 0) for p in kept]
    return tuple(algebra.grid(p) for p in flat if varying(p))


def _mark(value: Value, plane: Plane, k_dim: int, algebra: Algebra) -> None:
    if value.parameter:
        algebra.mark(plane, "consumer" if k_dim in varying(plane) else "producer")


def _without(plane: Plane, k_dim: int, matched: bool, call: Call, algebra: Algebra) -> Plane:
    """The plane after the sum over k."""
    if k_dim not in varying(plane):
        return plane
    if not matched:
        algebra.pin(plane, f"the other operand of {call.where} does not shrink along")
    if varying(plane) == (k_dim,):
        return plane.narrow(k_dim, 0, 1).expand(plane.shape)
    if algebra.choose(call.place, "whole") == "whole":
        return algebra.tie(plane, [k_dim], call, "contraction")
    plane = algebra.tie(plane, [d for d in varying(plane) if d != k_dim], call, "contraction")
    return plane.narrow(k_dim, 0, 1).expand(plane.shape)


def add_contraction(call: Call, algebra: Algebra) -> Planes:
    """`addmm` / `baddbmm`: bias + a @ b."""
    bias, a, b = call.args[:3]
    planes = _product(a, b, call, algebra)
    product = Value(call.outputs[0], planes) if call.outputs[0] is not None else a
    if bias.parameter:
        for plane in bias.planes:
            algebra.mark(plane, "bias")
    return join([product, bias], call.shape, call, algebra)


def matrix_vector(call: Call, algebra: Algebra) -> Planes:
    """(m, k) x (k,) -> (m,)."""
    a, b = call.args[0], call.args[1]
    spec = replace(b.spec, shape=(*b.shape, 1), stride=(*b.spec.stride, 1))
    column = replace(b, spec=spec, planes=tuple(p.unsqueeze(-1) for p in b.planes))
    return tuple(p.squeeze(-1) for p in _product(a, column, call, algebra))


def dot(call: Call, algebra: Algebra) -> Planes:
    """(k,) x (k,) -> ()."""
    row = call.args[0]
    spec = replace(row.spec, shape=(1, *row.shape), stride=(0, *row.spec.stride))
    row = replace(row, spec=spec, planes=tuple(p.unsqueeze(0) for p in row.planes))
    return tuple(p.squeeze(0) for p in matrix_vector(replace(call, args=(row, call.args[1])), algebra))


register_rule(aten.mm, aten.bmm)(contraction)
register_rule(aten.addmm, aten.baddbmm)(add_contraction)
register_rule(aten.mv)(matrix_vector)
register_rule(aten.dot, aten.vdot)(dot)
