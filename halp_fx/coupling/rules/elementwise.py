"""Elementwise operators with broadcasting, and those that only take over another tensor's shape."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..algebra import Algebra, Call, Plane, Planes, Value, broadcast, independent, varying
from .registry import register_rule

aten = torch.ops.aten


def pointwise(call: Call, algebra: Algebra) -> Planes | list[Planes]:
    """Labels that meet in one element go together; see `join`."""
    planes = join(call.tensors(), call.shape, call, algebra)
    return planes if len(call.outputs) == 1 else [planes] * len(call.outputs)


def join(values: list[Value], shape: tuple[int, ...], call: Call, algebra: Algebra) -> Planes:
    """Couple the labels of tensors that are broadcast against each other to `shape`.

    A plane that varies along some dimensions is coupled to every plane of another tensor that varies along one of
    them. A tensor that is as long there but has no labels would not shrink along: the plane is pinned.
    """
    result: list[Plane] = []
    owners: list[Value] = []
    values = [v for i, v in enumerate(values) if v.ndim <= len(shape) and all(v is not u for u in values[:i])]
    values = [_ungrown(v, call, algebra) for v in _sided(values, shape, call, algebra)]
    for value in values:
        for plane in value.planes:
            wide = broadcast(plane, shape)
            dims = set(varying(wide))
            if not dims:
                algebra.pin(plane, f"a single channel is taken in {call.where}")
                continue
            # Planes of the same tensor are not coupled with each other.
            partners = [i for i, p in enumerate(result) if owners[i] is not value and dims & set(varying(p))]
            partners = [i for i in partners if not independent(result[i], wide)]
            for i in partners:
                algebra.couple(result[i], wide, call, _kind(call))
                if len(dims) < len(varying(result[i])):
                    result[i], owners[i] = wide, value
            if not partners:
                result.append(wide)
                owners.append(value)
    free: list[Plane] = []
    for plane in result:
        blocks = [value for value in values if _blocks(value, plane, shape)]
        for value in blocks:
            algebra.pin(plane, f"meets a tensor of fixed shape {value.shape} in {call.where}")
        if not blocks:
            # What is pinned is not carried on: it would only tie what it meets later.
            free.append(plane)
    return tuple(algebra.grid(p) for p in free) if len(values) > 1 else tuple(free)


def _ungrown(value: Value, call: Call, algebra: Algebra) -> Value:
    """Where an expanded dimension was flattened together with one of slots (a statistic per group, repeated for all
    channels of the group), the slots go and the expanded length stays: coupled with both, nothing could go."""
    if len(value.planes) < 2:
        return value
    stay = [
        p
        for p in value.planes
        if not algebra.lasting(p) and any(independent(p, q) and algebra.lasting(q) for q in value.planes if q is not p)
    ]
    for plane in stay:
        algebra.pin(plane, f"expanded to a constant length in {call.where}")
    return replace(value, planes=tuple(p for p in value.planes if all(p is not q for q in stay))) if stay else value


def _sided(values: list[Value], shape: tuple[int, ...], call: Call, algebra: Algebra) -> list[Value]:
    """Where a plane over several dimensions (head x position) meets planes over one each of another tensor (a row per
    head, a column per position), one side goes whole and the other stays: coupled with both, nothing could go."""
    if len(values) < 2 or all(len(varying(p)) < 2 for v in values for p in v.planes):
        return values
    found = []
    for value in values:
        planes = []
        for plane in value.planes:
            dims = set(varying(broadcast(plane, shape)))
            for other in values if len(dims) > 1 else ():
                wide = [(p, set(varying(broadcast(p, shape)))) for p in other.planes] if other is not value else []
                sides = sorted(((min(d), p, d) for p, d in wide if d and d < dims), key=lambda side: side[0])
                if len(sides) < 2 or set.intersection(*(d for _, _, d in sides)):
                    continue
                kept = sides.pop(0 if algebra.choose(f"{call.place}#sides", "whole") == "whole" else -1)
                offset = len(shape) - value.ndim
                plane = algebra.tie(plane, [d - offset for d in dims - kept[2]], call, "side")
                for _, p, _ in sides:
                    algebra.pin(p, f"shared by all of what goes in {call.where}")
                dims = kept[2]
            planes.append(plane)
        found.append(replace(value, planes=tuple(planes)))
    return found


def _blocks(value: Value, plane: Plane, shape: tuple[int, ...]) -> bool:
    """Whether `value` is long along the dimensions of `plane` but has no labels there that go with them."""
    offset = len(shape) - value.ndim
    dims = {d for d in varying(plane) if d >= offset and value.shape[d - offset] > 1}
    if not dims:
        return False
    wide = (broadcast(p, shape) for p in value.planes)
    return not any(p is plane or (dims & set(varying(p)) and not independent(p, plane)) for p in wide)


def _kind(call: Call) -> str:
    return {"add": "residual", "add_": "residual", "mul": "gate", "mul_": "gate"}.get(call.op, "elementwise")


def like(call: Call, algebra: Algebra) -> Planes | list[Planes]:
    """A tensor as the first argument is, elementwise: copies, casts, dropout masks, `zeros_like`."""
    planes = call.args[0].planes
    return planes if len(call.outputs) == 1 else [planes] * len(call.outputs)


def copy_into(call: Call, algebra: Algebra) -> Planes:
    """`dst.copy_(src)`: the result is the source in the destination's shape, and loses what the destination loses."""
    target, source = call.args[0], call.args[1]
    if target.planes:
        return join([target, source], call.shape, call, algebra)
    return tuple(algebra.grid(broadcast(p, call.shape)) for p in source.planes)


def sorted_into(call: Call, algebra: Algebra) -> Planes:
    """`bucketize(x, row)` and `searchsorted(row, x)`: elementwise, where all share one row of boundaries."""
    x: Value
    x, rows = (call.args[1], call.args[0]) if call.op == "searchsorted" else call.args[:2]
    if rows.planes or rows.ndim != 1 or "sorter" in call.kwargs:
        algebra.pin_all(call.tensors(), f"{call.where} compares with boundaries along this axis")
        return ()
    return x.planes


register_rule(aten.bucketize.Tensor, aten.searchsorted.Tensor)(sorted_into)
register_rule(
    aten._conj,
    aten._neg_view,
    aten.resolve_conj,
    aten.log_sigmoid_forward,
    aten.clone,
    aten._to_copy,
    aten.detach,
    aten.alias,
    aten.lift_fresh,
    aten.lift_fresh_copy,
    aten.contiguous,
    aten.native_dropout,
    aten.zeros_like,
    aten.ones_like,
    aten.full_like,
    aten.empty_like,
    aten.rand_like,
    aten.randn_like,
    aten.bernoulli,
    aten.bernoulli_,
    aten.fill_,
    aten.zero_,
)(like)
register_rule(torch.Tag.pointwise)(pointwise)
register_rule(aten.copy_)(copy_into)
register_rule(
    aten.hardtanh,
    aten.hardswish,
    aten.leaky_relu,
    aten.elu,
    aten.celu,
    aten.glu_jvp,
    aten._prelu_kernel,
    aten.lerp,
    aten.addcmul,
    aten.addcdiv,
    aten.rrelu_with_noise,
    aten.complex,
    aten.polar,
)(pointwise)
