"""Operators that read or write at computed positions along one dimension: gather, scatter, index_add and their kin.

What lies along that dimension stays, for its positions are values; what lies beside it is carried on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..algebra import Algebra, Call, Plane, Planes, Value, along, compact, simplify, varying, vector
from .channels import beside
from .elementwise import join
from .registry import register_rule

aten = torch.ops.aten


def gather(call: Call, algebra: Algebra) -> Planes:
    """`gather(x, dim, index)`: x at other positions along `dim`, in the shape of `index`."""
    x, index = call.args[0], call.args[2]
    dim = int(call.args[1]) % max(x.ndim, 1)
    read = _beside(x, dim, index.shape, call, algebra)
    # Along `dim` the result follows the index alone.
    flat = replace(read, spec=replace(read.spec, shape=_with(read.shape, dim, 1)))
    flat = replace(flat, planes=tuple(compact(p).expand(flat.shape) for p in read.planes))
    return join([flat, index], call.shape, call, algebra)


def scatter(call: Call, algebra: Algebra) -> Planes:
    """`scatter(x, dim, index, src)` and its kin: x with `src`, or a number, written at positions along `dim`."""
    x = call.args[0]
    dim = int(call.args[1]) % max(x.ndim, 1)
    return _written(call, algebra, x, [v for v in call.tensors()[1:] if v.ndim == x.ndim], {dim})


def index_write(call: Call, algebra: Algebra) -> Planes:
    """`index_add(x, dim, index, source)` and its kin: as `scatter`, whole slices at a time. `index` is (n,)."""
    x: Value = call.args[0]
    dim = int(call.args[1]) % max(x.ndim, 1)
    algebra.pin_all(call.args[2:3], f"an index of {call.where}")
    sources = [v for v in call.args[3:4] if isinstance(v, Value) and v.ndim == x.ndim]
    return _written(call, algebra, x, sources, {dim})


def select_scatter(call: Call, algebra: Algebra) -> Planes:
    """`select_scatter(x, src, dim, index)`: x with one slice along `dim` replaced."""
    x, src = call.args[:2]
    dim = int(call.args[2]) % x.ndim
    spec = replace(src.spec, shape=_inserted(src.shape, dim, 1), stride=_inserted(src.spec.stride, dim, 0))
    src = replace(src, spec=spec, planes=tuple(p.unsqueeze(dim) for p in src.planes), node=None)
    return _written(call, algebra, x, [src], {dim})


def slice_scatter(call: Call, algebra: Algebra) -> Planes:
    """`slice_scatter(x, src, dim, start, end, step)`: x with a part along `dim` replaced."""
    x, src = call.args[:2]
    return _written(call, algebra, x, [src], {int(call.arg(2, "dim", 0)) % x.ndim})


def masked_scatter(call: Call, algebra: Algebra) -> Planes:
    """`masked_scatter(x, mask, source)`: the elements of `source`, one after another, at places of a mask. Where it is
    one for whole rows (features of an image among those of words), rows are written as they are, and lose the same
    channels; what else is labelled stays."""
    x, mask, source = call.args[:3]
    ndim, inner = len(call.shape), 0
    while (
        inner < min(ndim, source.ndim)
        and _whole(mask, inner + 1)
        and source.shape[-inner - 1] == call.shape[-inner - 1]
    ):
        inner += 1
    algebra.pin_all((mask,), f"a mask of {call.where}")
    shape = call.shape[ndim - inner :]
    rows = []
    for value in (x, source):
        outer = set(range(value.ndim - inner))
        kept = beside(value, outer, call, algebra)
        planes = tuple(compact(p)[(0,) * len(outer)].expand(shape) for p in kept)
        spec = replace(value.spec, shape=shape, stride=value.spec.stride[len(outer) :])
        rows.append(replace(value, spec=spec, planes=planes, node=None))
    return tuple(p.expand(call.shape) for p in join(rows, shape, call, algebra)) if inner else ()


def _whole(mask: Value, last: int) -> bool:
    """Whether a mask is the same along a dimension, counted from the last."""
    return last > mask.ndim or mask.shape[-last] == 1 or mask.spec.stride[-last] == 0


def _written(call: Call, algebra: Algebra, x: Value, others: list[Value], dims: set[int]) -> Planes:
    """Labels of `x` where `others`, of as many dimensions, are written at positions along `dims`."""
    shape = tuple(1 if d in dims else n for d, n in enumerate(x.shape))
    rows = []
    for value in (x, *others):
        kept = _beside(value, min(dims), x.shape, call, algebra)
        planes = tuple(compact(p).expand(shape) for p in kept.planes)
        rows.append(replace(value, spec=replace(value.spec, shape=shape), planes=planes))
    return tuple(compact(p).expand(x.shape) for p in join(rows, shape, call, algebra))


def _beside(value: Value, dim: int, shape: tuple[int, ...], call: Call, algebra: Algebra) -> Value:
    """`value` in `shape` (but along `dim`), with the planes that do not vary along `dim`; others are pinned, and so is
    what lies along a dimension of which only a part is read or written."""
    kept = []
    for plane in beside(value, {dim}, call, algebra):
        if any(value.shape[d] != shape[d] for d in varying(plane)):
            algebra.pin(plane, f"{call.where} cuts the channels at a constant position")
        else:
            kept.append(compact(plane).expand(_with(shape, dim, value.shape[dim])))
    spec = replace(value.spec, shape=_with(shape, dim, value.shape[dim]))
    return replace(value, spec=spec, planes=tuple(kept))


def _with(shape: tuple[int, ...], dim: int, size: int) -> tuple[int, ...]:
    return (*shape[:dim], size, *shape[dim + 1 :])


def _inserted(row: tuple[int, ...], dim: int, value: int) -> tuple[int, ...]:
    return (*row[:dim], value, *row[dim:])


def gather_along(call: Call, algebra: Algebra) -> Planes:
    """`index(x, [i, None, j])` and `index_select(x, dim, i)`: the operator runs on the planes if the indices are known.

    A labelled dimension may be indexed by constants only if the program computes them from the width; that is tried
    out later. A mask of the model's own is cut as what it picks from. Where indices are not known, what lies along
    other dimensions is carried on.
    """
    x: Value = call.args[0]
    indices = call.tensors()[1:]
    masks = _masks(call)
    algebra.pin_all((v for v in indices if all(v is not m for m in masks.values())), f"an index of {call.where}")
    plain = _known(call.args[1:])
    planes = x.planes
    for dim, mask in masks.items():
        met = [p for p in planes if dim in varying(p)]
        for plane in met:
            algebra.couple(plane, along(vector(mask.planes[0], 0), dim, x.shape), call, "mask")
        if not met:
            algebra.pin(mask.planes[0], f"{call.where} picks what cannot be removed")
    if plain is None and any(v.spec.dtype is torch.bool for v in indices):
        return _picked(call, algebra)
    if plain is None or any(v.planes and not v.parameter for v in indices):
        indexed = {i for i, v in enumerate(call.args[1]) if v is not None} if call.op == "index" else {call.args[1]}
        planes = tuple(p for p in x.planes if not indexed & set(varying(p)))
        for plane in (p for p in x.planes if indexed & set(varying(p))):
            algebra.pin(plane, f"{call.where} picks elements by values that are not known")
        plain = _zeros(call.args[1:])
    try:
        results = [call.overload(_cut_beside(p, call), *plain) for p in planes]
    except (IndexError, RuntimeError):  # In a pruned network, where the meta device does not see it.
        algebra.pin_all((x,), f"{call.where} picks elements beyond the end")
        return ()
    if not masks and (x.parameter or (x.node is not None and len(x.node.users) == 1)):
        # Of a table, other sizes of an image would pick others; and without them the same positions name others.
        for plane, result in zip(planes, results, strict=True):
            labels = compact(plane).reshape(-1).numpy()
            algebra.pin(labels[~np.isin(labels, result.numpy())], f"{call.where} does not pick them")
    picked = [algebra.rectangle(simplify(r).expand(call.shape)) for r in results]
    for dim in masks:
        # What is picked is no channel as what is left: how many stay of either, no width of both would say.
        for own in algebra.new_planes(
            call.node.name, _with((1,) * len(call.shape), dim, call.shape[dim]), transient=True
        ):
            for plane in (p for p in picked if dim in varying(p)):
                algebra.couple(plane, own.expand(call.shape), call, "mask")
    return tuple(picked)


def _picked(call: Call, algebra: Algebra) -> Planes:
    """`x[mask]` by values that are not known: how many are picked is not known either. What lies beside the mask's
    dimensions is carried on."""
    x: Value = call.args[0]
    reason = f"{call.where} picks elements by values that are not known"
    given = [(i, v) for i, v in enumerate(call.args[1]) if v is not None]
    if len(given) > 1:
        algebra.pin_all((x,), reason)
        return ()
    ((first, mask),) = given
    last, kept = first + mask.ndim - 1, []
    for plane in x.planes:
        if set(range(first, last + 1)) & set(varying(plane)):
            algebra.pin(plane, reason)
        else:
            kept.append(algebra.rectangle(compact(plane).flatten(first, last).expand(call.shape)))
    return tuple(kept)


def _masks(call: Call) -> dict[int, Value]:
    """Which dimensions are indexed by masks of the model's own, with a slot for each element."""
    given = call.args[1] if call.op == "index" else ()
    rows = {i: v for i, v in enumerate(given) if v is not None and v.spec.dtype is torch.bool and v.ndim == 1}
    return {i: v for i, v in rows.items() if v.parameter and v.data is not None and len(v.planes) == 1}


def _cut_beside(plane: Plane, call: Call) -> Plane:
    """The plane with length 1 where it does not vary and is not indexed."""
    if call.op == "index":
        sizes = ((v.ndim if v.spec.dtype is torch.bool else 1, v) for v in call.args[1] if v is not None)
        if any(n > 1 for n, _ in sizes):
            return plane  # A mask over several dimensions.
        used = {i for i, v in enumerate(call.args[1]) if v is not None}
    else:
        used = {int(call.args[1]) % plane.dim()}
    dims = set(varying(plane)) | used
    return plane[tuple(slice(None) if d in dims else slice(0, 1) for d in range(plane.dim()))]


def _zeros(args: Any) -> list[Any]:
    """Arguments with zeros for the values of tensors."""
    return [
        _zeros(a)
        if isinstance(a, list | tuple)
        else torch.zeros(a.shape, dtype=torch.int64, device="cpu")
        if isinstance(a, Value)
        else a
        for a in args
    ]


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


register_rule(aten.index, aten.index_select)(gather_along)
register_rule(aten.gather)(gather)
register_rule(aten.scatter, aten.scatter_add, aten.scatter_reduce)(scatter)
register_rule(aten.index_add, aten.index_copy, aten.index_reduce, aten.index_fill)(index_write)
register_rule(aten.masked_scatter)(masked_scatter)
register_rule(aten.select_scatter)(select_scatter)
register_rule(aten.slice_scatter)(slice_scatter)
