"""Operators that only move elements: the operator itself runs on the planes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ..algebra import Algebra, Call, Plane, Planes, Value, compact, simplify, varying, vector
from .channels import beside
from .elementwise import join
from .registry import register_rule

aten = torch.ops.aten


def shape_only(call: Call, algebra: Algebra) -> Planes | list[Planes]:
    """Run the operator on each plane of the first argument; `unsqueeze_` and its like change the shape of what they
    are given, so it is another view of it."""
    x: Value = call.args[0]
    results = [_finish(call.overload(p.detach(), *call.args[1:], **call.kwargs), algebra) for p in x.planes]
    return _by_result(results, len(call.outputs))


def reshape(call: Call, algebra: Algebra) -> Planes:
    """`view` and its kin. A plane need not be viewable where the tensor was, hence `reshape`."""
    return tuple(algebra.rectangle(_reshaped(p, call.shape)) for p in call.args[0].planes)


def _reshaped(plane: Plane, shape: tuple[int, ...]) -> Plane:
    try:
        result = plane.view(shape)
    except RuntimeError:  # It has to be written out, along the dimensions that matter.
        short, dims = list(shape), varying(plane)
        small = plane
        for old, new in _aligned(plane.shape, shape):
            if not set(old) & set(dims):
                small = small[tuple(slice(0, 1) if d in old else slice(None) for d in range(plane.dim()))]
                for d in new:
                    short[d] = 1
        return simplify(small.reshape(short)).expand(shape)
    # A split dimension may be constant along one of its parts, images of a batch and parts of channels, say.
    return simplify(result) if len(varying(result)) > 1 else result


def _aligned(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The smallest runs of dimensions of `old` that make up runs of dimensions of `new`."""
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        left: list[int] = []
        right: list[int] = []
        m = n = 1
        while not (left or right) or m != n:
            if i < len(old) and (m <= n or j == len(new)):
                m, i = m * old[i], i + 1
                left.append(i - 1)
            else:
                n, j = n * new[j], j + 1
                right.append(j - 1)
        runs.append((left, right))
    return runs


def moved(call: Call, algebra: Algebra) -> Planes:
    """Operators that move elements within dimensions (`flip`, `rot90`): as `shape_only`, on planes that are cut to
    length 1 where they do not vary."""
    results = (call.overload(compact(p), *call.args[1:], **call.kwargs) for p in call.args[0].planes)
    return tuple(algebra.rectangle(simplify(r).expand(call.shape)) for r in results)


def repeat(call: Call, algebra: Algebra) -> Planes:
    """`repeat(x, times)`: as `shape_only`; what a plane does not vary along is not written out."""
    times, kept = list(call.args[1]), []
    for plane in call.args[0].planes:
        offset = len(times) - plane.dim()
        dims = {d + offset for d in varying(plane)}
        small = compact(plane).repeat([n if d in dims else 1 for d, n in enumerate(times)])
        kept.append(algebra.rectangle(simplify(small).expand(call.shape)))
    return tuple(kept)


def pixel_shuffle(call: Call, algebra: Algebra) -> Planes:
    """`pixel_shuffle(x, r)`: (*, C * r * r, H, W) -> (*, C, H * r, W * r). An image is a rectangle, so the r * r
    channels that become one go together."""
    x: Value = call.args[0]
    dim, each = x.ndim - 3, int(call.args[1]) ** 2
    kept = []
    for plane in beside(x, {x.ndim - 2, x.ndim - 1}, call, algebra):
        if dim in varying(plane):
            rows = compact(plane).unflatten(dim, (-1, each))
            plane = algebra.tie(rows, [dim + 1], call, "pixel shuffle").select(dim + 1, 0)
        # Channels that were repeated, and are one now, vary along none.
        kept.append(algebra.rectangle(simplify(compact(plane)).expand(call.shape)))
    return tuple(kept)


def pixel_unshuffle(call: Call, algebra: Algebra) -> Planes:
    """`pixel_unshuffle(x, r)`: (*, C, H * r, W * r) -> (*, C * r * r, H, W)."""
    x: Value = call.args[0]
    dim, each = x.ndim - 3, int(call.args[1]) ** 2
    kept = []
    for plane in beside(x, {x.ndim - 2, x.ndim - 1}, call, algebra):
        small = compact(plane)
        small = small.repeat_interleave(each, dim) if dim in varying(plane) else small
        kept.append(algebra.rectangle(small.expand(call.shape)))
    return tuple(kept)


def _finish(result: Any, algebra: Algebra) -> Any:
    if isinstance(result, torch.Tensor):
        return algebra.rectangle(simplify(result))
    return [algebra.rectangle(r) for r in result]


def _by_result(results: list[Any], count: int) -> Planes | list[Planes]:
    """From a list over planes to planes per result."""
    if not results:
        return () if count == 1 else [()] * count
    if isinstance(results[0], torch.Tensor):
        return tuple(results)
    return [tuple(row[i] for row in results) for i in range(count)]


def stack(call: Call, algebra: Algebra) -> Planes:
    """`stack`: the parts lose the same channels."""
    values: list[Value] = call.args[0]
    dim = int(call.arg(1, "dim", 0)) % len(call.shape)
    shape = tuple(n for d, n in enumerate(call.shape) if d != dim)
    joined = join(values, shape, call, algebra) if len(values) > 1 else values[0].planes
    return tuple(p.unsqueeze(dim).expand(call.shape) for p in joined)


def concatenate(call: Call, algebra: Algebra) -> Planes:
    """`cat`: labels along the dimension follow one another; labels along others are coupled between the parts."""
    dim = int(call.arg(1, "dim", 0)) % len(call.shape)
    values, nothing = _parts(call.args[0], dim, len(call.shape))
    lying = _lying_along(values, dim)
    values, lying = _whole_heads(values, lying, dim, call, algebra)
    apart = [tuple(p for p in v.planes if not any(p is q for q in own)) for v, own in zip(values, lying, strict=True)]
    across = [Value(v.spec, rest, v.parameter) for v, rest in zip(values, apart, strict=True)]
    lines = set.intersection(*({d for p in rest for d in varying(p)} for rest in apart)) if nothing else set()
    across += [Value(v.spec, rest, v.parameter) for v in nothing if (rest := _within(v, lines))]
    planes = list(_couple_across(across, dim, call, algebra))
    for rank in range(max(map(len, lying), default=0)):
        planes.append(_joined(values, [own[rank : rank + 1] for own in lying], dim).expand(call.shape))
    return tuple(algebra.rectangle(p) for p in planes)


def _parts(values: Sequence[Value], dim: int, ndim: int) -> tuple[list[Value], list[Value]]:
    """The parts that have elements along the dimension, and those that have none there: boxes of a detector that found
    none. Where all are empty, the first counts as one. PyTorch leaves out those of shape (0,)."""
    values = [v for v in values if v.ndim == ndim]
    there = [v for v in values if dim not in v.missing] or [*values[:1]]
    return there, [v for v in values if all(v is not u for u in there)]


def _within(value: Value, dims: set[int]) -> Planes:
    """The planes of a part that vary along these dimensions alone."""
    return tuple(p for p in value.planes if dims.issuperset(varying(p)))


def _lying_along(values: Sequence[Value], dim: int) -> list[Planes]:
    """The parts' planes that vary along the dimension, or would if the part were longer: of `x[:, :, :1]` beside
    `x[:, :, 1:]`, where the others vary along the same further dimensions."""
    found = [tuple(p for p in v.planes if dim in varying(p)) for v in values]
    further = {tuple(d for d in varying(p) if d != dim) for own in found for p in own} - {()}
    return [
        own or tuple(p for p in v.planes if v.shape[dim] == 1 and varying(p) in further)
        for v, own in zip(values, found, strict=True)
    ]


def _whole_heads(
    values: list[Value], lying: list[Planes], dim: int, call: Call, algebra: Algebra
) -> tuple[list[Value], list[Planes]]:
    """The parts and their planes along `dim`, where some have positions of their own in every head, and others, which
    are expanded to all heads, the same ones (keys, and a part with the place that all heads share). Whole heads go;
    or, as the other choice, the same positions of all."""
    heads = {d for own in lying for p in own for d in varying(p)} - {dim}

    def expanded(value: Value, own: Planes) -> bool:
        return not any(heads <= set(varying(p)) for p in own) and any(varying(p) == tuple(heads) for p in value.planes)

    if not heads or not any(expanded(v, own) for v, own in zip(values, lying, strict=True)):
        return values, lying
    whole = algebra.choose(f"{call.place}#heads", "whole") == "whole"
    found = []
    for value, own in zip(values, lying, strict=True):
        planes = [(p, heads <= set(varying(p)) and any(p is q for q in own)) for p in value.planes]
        tied = (algebra.tie(p, [dim] if whole else heads, call, "heads") if wide else p for p, wide in planes)
        found.append(replace(value, planes=tuple(tied)))
    return found, _lying_along(found, dim)


def _joined(values: Sequence[Value], own: Sequence[Planes], dim: int) -> Plane:
    """A plane of each part, one after another along `dim`; zeros where a part has none."""
    # Only the dimensions that some part varies along are written out.
    dims = {dim}.union(*(varying(p) for planes in own for p in planes))
    parts = []
    for value, planes in zip(values, own, strict=True):
        size = [n if d in dims else 1 for d, n in enumerate(value.shape)]
        parts += [p.as_strided(size, p.stride()) for p in planes] or [
            torch.zeros(size, dtype=torch.int32, device="cpu")
        ]
    return torch.cat(parts, dim)


def _couple_across(values: list[Value], dim: int, call: Call, algebra: Algebra) -> Planes:
    """Planes that do not vary along `dim`: the parts must lose the same channels."""
    if not any(v.planes for v in values):
        return ()
    flat = []
    for value in values:
        planes = tuple(compact(p.narrow(dim, 0, 1)) for p in value.planes)
        shape = tuple(1 if d == dim else n for d, n in enumerate(value.shape))
        spec = type(value.spec)(shape, value.spec.stride, value.spec.dtype, value.spec.device)
        flat.append(Value(spec, tuple(p.expand(shape) for p in planes), value.parameter))
    shape = tuple(1 if d == dim else n for d, n in enumerate(call.shape))
    return tuple(p.expand(call.shape) for p in join(flat, shape, call, algebra))


def resized(call: Call, algebra: Algebra) -> Planes:
    """`resize_(x, size)` and `resize_as_(x, other)`: to the size that it has, nothing happens; any other use is not
    understood."""
    x: Value = call.args[0]
    if x.shape == call.shape:
        return join(call.tensors(), x.shape, call, algebra)
    algebra.pin_all((x,), f"{call.where} gives memory another shape")
    return ()


def replaced(call: Call, algebra: Algebra) -> Planes:
    """`x.set_()`: x is empty from here on (reversible networks give memory back so). `x.set_(y)`: x is y. Where it is a
    part of a memory, nothing is known."""
    source = call.arg(1, "source", None)
    if source is None:
        return ()
    if isinstance(source, Value) and source.shape == call.shape:
        return source.planes
    algebra.pin_all(call.tensors(), f"{call.where} reads memory in an order of its own")
    return ()


def as_strided(call: Call, algebra: Algebra) -> Planes:
    """Pooling to 1 x 1 restates the strides of what it has; any other use is not understood."""
    x: Value = call.args[0]
    if x.shape == call.shape:
        return x.planes
    algebra.pin_all((x,), f"{call.where} reads memory in an order of its own")
    return ()


def roll(call: Call, algebra: Algebra) -> Planes | list[Planes]:
    """`roll(x, shifts, dims)`: a shift of the channels is a constant, their number is not."""
    x: Value = call.args[0]
    dims = {int(d) % x.ndim for d in call.arg(2, "dims", [])} or set(range(x.ndim))
    for plane in x.planes:
        if set(varying(plane)) & dims:
            algebra.pin(plane, f"{call.where} shifts the channels by a constant")
    # Where a plane does not vary, a shift changes nothing; without dimensions, rows are shifted into one another.
    return moved(call, algebra) if call.arg(2, "dims", []) else shape_only(call, algebra)


def channel_shuffle(call: Call, algebra: Algebra) -> Planes | list[Planes]:
    """`channel_shuffle(x, groups)`: every group keeps the same positions."""
    x: Value = call.args[0]
    for plane in x.planes:
        if 1 in varying(plane):
            algebra.tie(vector(plane, 1).reshape(int(call.args[1]), -1), [0], call, "shuffle")
    kept = [p if 1 not in varying(p) else call.overload(compact(p), *call.args[1:]) for p in x.planes]
    return tuple(algebra.rectangle(compact(p).expand(call.shape)) for p in kept)


def gated_half(call: Call, algebra: Algebra) -> Planes:
    """`glu(x, dim)`: the first half is gated by the second, so both lose the same channels."""
    x: Value = call.args[0]
    dim = int(call.arg(1, "dim", -1)) % x.ndim
    half = call.shape[dim]
    kept = []
    for plane in x.planes:
        first = plane.narrow(dim, 0, half)
        if dim in varying(plane):
            algebra.couple(first, plane.narrow(dim, half, half), call, "gate")
        kept.append(first)
    return tuple(kept)


def pair_as_complex(call: Call, algebra: Algebra) -> Planes:
    """`view_as_complex`: (*, 2) -> (*)."""
    x: Value = call.args[0]
    return tuple(p.select(-1, 0) for p in beside(x, {x.ndim - 1}, call, algebra))


def complex_as_pair(call: Call, algebra: Algebra) -> Planes:
    """`view_as_real`: (*) -> (*, 2)."""
    return tuple(p.unsqueeze(-1).expand(call.shape) for p in call.args[0].planes)


register_rule(aten.as_strided, aten.as_strided_)(as_strided)
register_rule(aten.resize_, aten.resize_as_)(resized)
register_rule(aten.set_)(replaced)
register_rule(aten.view, aten._unsafe_view, aten.reshape, aten._reshape_alias, aten.view_copy)(reshape)
register_rule(
    aten.permute,
    aten.transpose,
    aten.t,
    aten.squeeze,
    aten.unsqueeze,
    aten.expand,
    aten.unfold,
)(shape_only)
register_rule(aten.flip, aten.rot90)(moved)
register_rule(aten.repeat)(repeat)
register_rule(aten.pixel_shuffle)(pixel_shuffle)
register_rule(aten.pixel_unshuffle)(pixel_unshuffle)
register_rule(aten.roll)(roll)
register_rule(aten.channel_shuffle, aten.native_channel_shuffle)(channel_shuffle)
register_rule(aten.glu)(gated_half)
register_rule(aten.view_as_complex)(pair_as_complex)
register_rule(aten.view_as_real)(complex_as_pair)
register_rule(aten.cat)(concatenate)
register_rule(aten.stack)(stack)
