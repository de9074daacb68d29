"""Elementwise operators with broadcasting, and those that only take over another tensor's shape."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, product
from typing import Any

import torch

from ...internals import OpOverload, tree_leaves
from ..algebra import Algebra, Call, Plane, Planes, Value, broadcast, compact, independent, varying
from ..call import laid_together
from .registry import register_rule
from .values import may_vanish

aten = torch.ops.aten


def pointwise(call: Call, algebra: Algebra) -> Planes | list[Planes]:
    """Labels that meet in one element go together; see `join`."""
    planes = join(call.tensors(), call.shape, call, algebra)
    if planes and _infinite(call):
        algebra.restrict(call, {d for p in call.tensors()[0].planes for d in varying(p)})
    return planes if len(call.outputs) == 1 else [planes] * len(call.outputs)


def _infinite(call: Call) -> bool:
    """Whether the operator has no finite value where channels are zeroed: a division by zero (`g * v / v.norm(…)` of a
    normalised weight, `x % w`), the logarithm of zero."""
    if call.overload.namespace != "aten" or torch.Tag.nondeterministic_seeded in call.overload.tags:
        return False
    args, kwargs = _stands(call.args), _stands(sorted(call.kwargs.items()))
    return _infinite_at(call.overload, args, kwargs)


@dataclass(frozen=True, slots=True)
class _Stand:
    """What stands for a tensor where an operator is tried out: an element that is 1, or may be 0, too."""

    dtype: torch.dtype
    vanishes: bool


def _stands(value: Any) -> Any:
    """Arguments with what stands for tensors, and tuples for lists."""
    if isinstance(value, Value):
        return _Stand(value.spec.dtype, bool(value.planes) and may_vanish(value.node))
    return tuple(map(_stands, value)) if isinstance(value, list | tuple) else value


@cache
def _infinite_at(overload: OpOverload, args: tuple[Any, ...], kwargs: tuple[tuple[str, Any], ...]) -> bool:
    """Whether an operator has no finite value at some zeros and ones, where anything vanishes."""
    stands = [v for v in tree_leaves((args, kwargs)) if isinstance(v, _Stand)]
    return any(v.vanishes for v in stands) and any(
        _infinite_of(overload, args, kwargs, row) for row in product(*((0, 1)[not v.vanishes :] for v in stands))
    )


def _infinite_of(overload: OpOverload, args: Any, kwargs: Any, values: Iterable[int]) -> bool:
    left = iter(values)

    def made(value: Any) -> Any:
        if isinstance(value, _Stand):
            return torch.full((1,), next(left), dtype=value.dtype, device="cpu")
        return [made(v) for v in value] if isinstance(value, tuple) else value

    try:
        results = overload(*(made(v) for v in args), **{k: made(v) for k, v in kwargs})
    except RuntimeError as error:  # Integers have no infinity.
        return "ZeroDivisionError" in str(error)
    return not all(bool(torch.isfinite(r).all()) for r in tree_leaves(results) if torch.is_tensor(r))


def join(values: list[Value], shape: tuple[int, ...], call: Call, algebra: Algebra) -> Planes:
    """Couple the labels of tensors that are broadcast against each other to `shape`.

    A plane that varies along some dimensions is coupled to every plane of another tensor that varies along one of
    them. A tensor that is as long there but has no labels would not shrink along: the plane is pinned.
    """
    result: list[Plane] = []
    owners: list[Value] = []
    values = [v for i, v in enumerate(values) if v.ndim <= len(shape) and all(v is not u for u in values[:i])]
    values = _sided(values, shape, call, algebra)
    spread = parted([[broadcast(p, shape) for p in v.planes] for v in values], call, algebra)
    for value, planes in zip(values, spread, strict=True):
        for wide in planes:
            dims = set(varying(wide))
            if not dims:
                algebra.pin(wide, f"a single channel is taken in {call.where}")
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
        blocks = {d: value for value in values for d in _blocked(value, plane, shape)}
        dims = set(varying(plane))
        if not blocks:
            free.append(plane)
        elif blocks.keys() < dims:
            # Positions stay that all heads share.
            free.append(algebra.tie(plane, blocks, call, "side"))
        else:
            # What is pinned is not carried on: it would only tie what it meets later.
            for fixed in dict.fromkeys(value.shape for value in blocks.values()):
                algebra.pin(plane, f"meets a tensor of fixed shape {fixed} in {call.where}")
    return tuple(algebra.rectangle(p) for p in free) if len(values) > 1 else tuple(free)


def parted(sides: Sequence[list[Plane]], call: Call, algebra: Algebra) -> list[list[Plane]]:
    """The planes of each operand, laid into one space, where two of one operand lie along one flattened dimension and
    every label of one meets every label of the other: with slots of both coupled, nothing could go.

    An expanded length (a statistic per group, repeated for all channels of the group) stays, and the slots go, unless
    they are held already (rows of a fixed number of directions, repeated for all channels). Where
    another operand has a slot for every element, as a layer behind `flatten(codes x channels)` has, the fewer stay, or
    those that are held already.
    """
    found = []
    for own in sides:
        stay: list[Plane] = []
        others = [r for side in sides if side is not own for r in side]
        for p, q in combinations(own, 2) if len(own) > 1 else ():
            dims = set(varying(p)) & set(varying(q))
            if any(r is p or r is q for r in stay) or not dims or not independent(p, q):
                continue
            first, second = algebra.lasting(p), algebra.lasting(q)
            if first != second and not algebra.pinned(p if first else q):
                stay.append(q if first else p)
                algebra.pin(stay[-1], f"expanded to a constant length in {call.where}")
            elif any(dims & set(varying(r)) and not independent(r, p) and not independent(r, q) for r in others):
                # Not more of them where they stay anyhow (codes that the forward takes one by one).
                sizes = [(not algebra.pinned(plane), len(compact(plane).unique())) for plane in (p, q)]
                larger = "first" if sizes[0] >= sizes[1] else "second"
                stay.append(q if algebra.choose(f"{call.place}#parted", larger) == "first" else p)
                square = bool(torch.isin(compact(p), compact(q)).all())
                algebra.pin(stay[-1], laid_together(call.where, square))
        found.append([p for p in own if all(p is not r for r in stay)])
    return found


def _sided(values: list[Value], shape: tuple[int, ...], call: Call, algebra: Algebra) -> list[Value]:
    """Where a plane over several dimensions (head x position) meets planes over one each of another tensor (a row per
    head, a column per position), one side goes whole and the other stays: coupled with both, nothing could go. If only
    positions are met, which all heads share (tables of rotary embeddings), whole heads go; or, as the other choice,
    the same positions of all."""
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
                alone = len(sides) == 1 and sides[0][0] > min(dims) and _of_its_own(sides[0][1], plane, algebra)
                alone = alone and not _long(other, dims - sides[0][2], shape)
                if not alone and (len(sides) < 2 or set.intersection(*(d for _, _, d in sides))):
                    continue
                # A row per channel of parts that are laid into the batch: as behind a norm, all parts keep the same.
                parts = alone and dims - sides[0][2] == {0} and sides[0][2] == {1}
                whole = algebra.choose(f"{call.place}#sides", "positions" if parts else "whole") == "whole"
                if alone and not whole:
                    continue
                kept = dims - sides[0][2] if alone else sides.pop(0 if whole else -1)[2]
                offset = len(shape) - value.ndim
                plane = algebra.tie(plane, [d - offset for d in dims - kept], call, "side")
                for _, p, _ in sides:
                    algebra.pin(p, f"shared by all of what goes in {call.where}")
                dims = kept
            planes.append(plane)
        found.append(replace(value, planes=tuple(planes)))
    return found


def _long(value: Value, dims: set[int], shape: tuple[int, ...]) -> bool:
    """Whether a tensor has elements of its own along `dims`: branches, which it is a stack of, do not go."""
    offset = len(shape) - value.ndim
    return any(d >= offset and value.shape[d - offset] > 1 for d in dims)


def _of_its_own(plane: Plane, other: Plane, algebra: Algebra) -> bool:
    """Whether a plane names slots of tensors that another one names none of."""
    axes = [set(algebra.axis_of(compact(p).unique().numpy()).tolist()) for p in (plane, other)]
    return algebra.lasting(plane) and axes[0].isdisjoint(axes[1] - {-1})


def _blocked(value: Value, plane: Plane, shape: tuple[int, ...]) -> set[int]:
    """The dimensions of `plane` along which `value` is long but has no labels that go with it."""
    offset = len(shape) - value.ndim
    dims = {d for d in varying(plane) if d >= offset and value.shape[d - offset] > 1}
    wide = (broadcast(p, shape) for p in value.planes) if dims else ()
    met = any(p is plane or (dims & set(varying(p)) and not independent(p, plane)) for p in wide)
    return set() if met else dims


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
    return tuple(algebra.rectangle(broadcast(p, call.shape)) for p in source.planes)


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
    aten.to,
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
    aten.normal_,
    aten.uniform_,
    aten.exponential_,
    aten.log_normal_,
    aten.cauchy_,
    aten.geometric_,
    aten.random_,
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
    aten.floor_divide,
    aten.rsub,
    aten.masked_fill,
    aten.complex,
    aten.polar,
)(pointwise)
