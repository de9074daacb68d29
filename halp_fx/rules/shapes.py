"""Operators that only move elements: the operator itself runs on the planes."""

from __future__ import annotations

from typing import Any

import torch

from ..algebra import Algebra, Call, Plane, Planes, Value, compact, simplify, varying, vector
from .channels import beside
from .elementwise import join
from .registry import register_rule

aten = torch.ops.aten


def shape_only(call: Call, algebra: Algebra) -> Planes | list[Planes]:
    """Run the operator on each plane of the first argument."""
    x: Value = call.args[0]
    results = [_finish(call.node.target(p, *call.args[1:], **call.kwargs), algebra) for p in x.planes]  # type: ignore[operator]
    return _by_result(results, len(call.outputs))


def reshape(call: Call, algebra: Algebra) -> Planes:
    """`view` and its kin. A plane need not be viewable where the tensor was, hence `reshape`."""
    return tuple(algebra.grid(_reshaped(p, call.shape)) for p in call.args[0].planes)


def _reshaped(plane: Plane, shape: tuple[int, ...]) -> Plane:
    result = plane.reshape(shape)
    # A split dimension may be constant along one of its parts.
    split = len(varying(result)) > len(varying(plane))
    return simplify(result) if split or result.data_ptr() != plane.data_ptr() else result


def _finish(result: Any, algebra: Algebra) -> Any:
    if isinstance(result, torch.Tensor):
        return algebra.grid(simplify(result))
    return [algebra.grid(r) for r in result]


def _by_result(results: list[Any], count: int) -> Planes | list[Planes]:
    """From a list over planes to planes per result."""
    if not results:
        return () if count == 1 else [()] * count
    if isinstance(results[0], torch.Tensor):
        return tuple(results)
    return [tuple(row[i] for row in results) for i in range(count)]


def cut(call: Call, algebra: Algebra) -> Planes | list[Planes]:
    """`slice`, `select`, `split`, `unbind` …: a piece of a dimension.

    A piece of a labelled dimension lies at a position that the program computed in a way not seen here. Equal parts
    are taken to follow the width, as `chunk` does: the i-th slots of all parts go together, so the parts stay equal.
    Otherwise the channels are pinned.
    """
    x: Value = call.args[0]
    dim = int(call.arg(*_DIM_ARGUMENT.get(call.op, (1, "dim")), 0)) % max(x.ndim, 1)
    for plane in x.planes:
        if dim not in varying(plane) or _covers_all(call, x.shape[dim]):
            continue
        parts = _chunks(call, plane, dim)
        if parts is not None:
            for part in parts[1:]:
                algebra.couple(parts[0], part, call, "chunk")
        elif len(varying(plane)) > 1:
            # An index along one side of a grid: every index must keep the same channels.
            algebra.tie(plane, [dim], call, "index")
        else:
            algebra.pin(plane, f"{call.where} cuts the channels at a constant position")
    return shape_only(call, algebra)


_DIM_ARGUMENT = {
    "split": (2, "dim"),
    "split_with_sizes": (2, "dim"),
    "unsafe_split": (2, "dim"),
    "unsafe_split_with_sizes": (2, "dim"),
    "slice": (1, "dim"),
    "select": (1, "dim"),
    "unbind": (1, "dim"),
}


def _covers_all(call: Call, size: int) -> bool:
    if call.op != "slice":
        return False
    start, end, step = call.arg(2, "start") or 0, call.arg(3, "end"), call.arg(4, "step", 1)
    return start == 0 and step == 1 and (end is None or end >= size)


def _chunks(call: Call, plane: Plane, dim: int) -> list[Plane] | None:
    """The parts of a split into equal parts, else None. Whether they follow the width is tried out later."""
    if call.op.removeprefix("unsafe_") not in ("split", "split_with_sizes"):
        return None
    parts = list(plane.split(call.args[1], dim))
    return parts if len({part.shape[dim] for part in parts}) == 1 else None


def stack(call: Call, algebra: Algebra) -> Planes:
    """`stack`: the parts lose the same channels."""
    values: list[Value] = call.args[0]
    dim = int(call.arg(1, "dim", 0)) % len(call.shape)
    shape = tuple(n for d, n in enumerate(call.shape) if d != dim)
    joined = join(values, shape, call, algebra) if len(values) > 1 else values[0].planes
    return tuple(p.unsqueeze(dim).expand(call.shape) for p in joined)


def gather_along(call: Call, algebra: Algebra) -> Planes:
    """`index(x, [i, None, j])` and `index_select(x, dim, i)`: the operator runs on the planes if the indices are known.

    A labelled dimension may be indexed by constants only if the program computes them from the width; that is tried
    out later.
    """
    x: Value = call.args[0]
    plain = _known(call.args[1:])
    if plain is None or any(v.planes for v in call.tensors()[1:]):
        algebra.pin_all(call.tensors(), f"{call.where} picks elements by values that are not known")
        return ()
    return tuple(algebra.grid(simplify(call.node.target(p, *plain))) for p in x.planes)  # type: ignore[operator]


def _known(args: Any) -> list[Any] | None:
    """Arguments with tensors for values; None if one is not known."""
    found: list[Any] = []
    for arg in args:
        value = _known(arg) if isinstance(arg, list | tuple) else arg
        if isinstance(value, Value):
            # Shapes are verified on the meta device, where an index computed from a shape has no values.
            value = None if value.data is None or value.data.is_meta else value.data
        if value is None and arg is not None:
            return None
        found.append(value)
    return found


def concatenate(call: Call, algebra: Algebra) -> Planes:
    """`cat`: labels along the dimension follow one another; labels along others are coupled between the parts."""
    values: list[Value] = [v for v in call.args[0] if v.shape != (0,)]
    ndim = len(call.shape)
    dim = int(call.arg(1, "dim", 0)) % ndim
    across = [Value(v.spec, tuple(p for p in v.planes if dim not in varying(p)), v.parameter) for v in values]
    planes = list(_couple_across(across, dim, call, algebra))
    for rank in range(max((_count_along(v, dim) for v in values), default=0)):
        planes.append(_joined(values, rank, dim, call, algebra))
    return tuple(algebra.grid(p) for p in planes)


def _count_along(value: Value, dim: int) -> int:
    return sum(dim in varying(p) for p in value.planes)


def _joined(values: list[Value], rank: int, dim: int, call: Call, algebra: Algebra) -> Plane:
    """The parts' `rank`-th planes along `dim`, one after another; zeros where a part has none."""
    own = [[p for p in v.planes if dim in varying(p)] for v in values]
    # Only the dimensions that some part varies along are written out.
    dims = {d for planes in own for p in planes[rank : rank + 1] for d in varying(p)}
    parts = []
    for value, planes in zip(values, own, strict=True):
        size = [n if d in dims or d == dim else 1 for d, n in enumerate(value.shape)]
        if rank < len(planes):
            index = tuple(slice(0, n) for n in size)
            parts.append(planes[rank][index].expand(size))
        else:
            parts.append(torch.zeros(size, dtype=torch.int32))
    return torch.cat(parts, dim).expand(call.shape)


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
    return shape_only(call, algebra)


def channel_shuffle(call: Call, algebra: Algebra) -> Planes | list[Planes]:
    """`channel_shuffle(x, groups)`: every group keeps the same positions."""
    x: Value = call.args[0]
    for plane in x.planes:
        if 1 in varying(plane):
            algebra.tie(vector(plane, 1).reshape(int(call.args[1]), -1), [0], call, "shuffle")
    return shape_only(call, algebra)


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


def triangle(call: Call, algebra: Algebra) -> Planes:
    """`tril` and `triu`: what is kept of the last two dimensions follows their positions."""
    x: Value = call.args[0]
    return beside(x, {x.ndim - 2, x.ndim - 1}, call, algebra)


def pair_as_complex(call: Call, algebra: Algebra) -> Planes:
    """`view_as_complex`: (*, 2) -> (*)."""
    x: Value = call.args[0]
    return tuple(p.select(-1, 0) for p in beside(x, {x.ndim - 1}, call, algebra))


def complex_as_pair(call: Call, algebra: Algebra) -> Planes:
    """`view_as_real`: (*) -> (*, 2)."""
    return tuple(p.unsqueeze(-1).expand(call.shape) for p in call.args[0].planes)


register_rule(aten.as_strided, aten.as_strided_)(as_strided)
register_rule(aten.view, aten._unsafe_view, aten.reshape, aten._reshape_alias, aten.view_copy)(reshape)
register_rule(
    aten.permute,
    aten.transpose,
    aten.t,
    aten.squeeze,
    aten.unsqueeze,
    aten.expand,
    aten.repeat,
    aten.flip,
    aten.pixel_shuffle,
    aten.pixel_unshuffle,
    aten.diagonal,
    aten.unfold,
)(shape_only)
register_rule(
    aten.slice,
    aten.select,
    aten.split,
    aten.split_with_sizes,
    aten.unsafe_split,
    aten.unsafe_split_with_sizes,
    aten.unbind,
)(cut)
register_rule(aten.roll)(roll)
register_rule(aten.channel_shuffle, aten.native_channel_shuffle)(channel_shuffle)
register_rule(aten.glu)(gated_half)
register_rule(aten.tril, aten.triu)(triangle)
register_rule(aten.view_as_complex)(pair_as_complex)
register_rule(aten.view_as_real)(complex_as_pair)
register_rule(aten.cat)(concatenate)
register_rule(aten.stack)(stack)
register_rule(aten.index, aten.index_select)(gather_along)
