"""Operators that treat each channel alone and mix only trailing, spatial dimensions: pooling, resizing, padding."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from ...tracing.graph import of, op
from ..algebra import Algebra, Call, Plane, Planes, Value, along, compact, simplify, varying, vector
from .channels import beside, channel_labels
from .elementwise import join
from .registry import register_rule

aten = torch.ops.aten


def spatial(call: Call, algebra: Algebra) -> Planes | list[Planes]:
    """The number of spatial dimensions is in the operator's name ("avg_pool2d"); labels along them are pinned."""
    x: Value = call.args[0]
    count = re.search(r"([123])d", call.op)
    space = set(range(x.ndim - (int(count.group(1)) if count else 2), x.ndim))
    if call.op in _ADAPTIVE and (len(call.outputs) == 1 or call.outputs[1] is None):
        # Of as many outputs each is the mean of one input: `nn.AdaptiveAvgPool2d((None, 1))`. Where it was the largest
        # is a place among all, though.
        space = {d for d in space if call.shape[d] != x.shape[d]}
    if call.op in _AVERAGES:
        slid = [_slid(plane, call, algebra) for plane in x.planes]
        rest = tuple(p for p, found in zip(x.planes, slid, strict=True) if found is None)
        passed = tuple(found for found in slid if found is not None)
        return [(*passed, *_carry(replace(x, planes=rest), space, call.shape, call, algebra))]
    return [_carry(x, space, spec.shape, call, algebra) if spec else () for spec in call.outputs]


_AVERAGES = {"avg_pool1d", "avg_pool2d", "avg_pool3d"}
_ADAPTIVE = {"_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d"}


def _slid(plane: Plane, call: Call, algebra: Algebra) -> Plane | None:
    """The plane of a mean that slides over the channels, as a local response norm has it: each place has the mean of
    its neighbours, those that stay. None where it does anything else."""
    dims = varying(plane)
    edges = _window(call.node, dims[0]) if len(dims) == 1 else None
    if edges is None or call.node in algebra.restricted:
        return None
    before, after = edges
    labels = vector(plane, dims[0])
    inner = labels[before : len(labels) - after]
    if labels[:before].any() or labels[len(labels) - after :].any() or not inner.all():
        return None
    algebra.slide_over(call, dims[0])
    return along(inner, dims[0], call.shape)


def _window(node: fx.Node, dim: int) -> tuple[int, int] | None:
    """Of a mean that slides along a dimension step by step: by how many places that were padded before it that
    dimension gets shorter at either end, so that it is as long as without them."""
    if op(node) not in _AVERAGES:
        return None
    count = int(op(node)[-2])
    shapes = [of(n).one.shape for n in (node, node.all_input_nodes[0])]
    at = dim - (len(shapes[0]) - count)
    # The kernel, steps, padding, whether the length is rounded up, whether what is padded counts, and a divisor.
    given: list[Any] = [*node.args[1:]]
    given += ([], [], [], False, True, None)[len(given) :]
    size, step, pad = (row[at if len(row) > 1 else 0] if row else 0 for row in given[:3])
    if at < 0 or size < 2 or step != 1 or not given[4] or given[5] is not None:
        return None
    # A window of even length reaches one place further back (`F.local_response_norm`).
    before, after = size // 2 - pad, (size - 1) // 2 - pad
    return (before, after) if before >= 0 and after >= 0 and shapes[1][dim] - shapes[0][dim] == before + after else None


def _carry(x: Value, space: set[int], shape: tuple[int, ...], call: Call, algebra: Algebra) -> Planes:
    return tuple(compact(p).expand(shape) for p in beside(x, space, call, algebra))


def constant_pad(call: Call, algebra: Algebra) -> Planes:
    """Padding with a constant. Channels that are padded (shortcuts into a wider stage) follow what they meet, or, as
    the other choice, their number is fixed. Equally many on both sides are one number: `(planes // 4, planes // 4)`.
    Where every head gets a further position (a row of ones, for the sum), whole heads go; or the same positions of all.
    """
    x, pad = call.args[0], list(call.args[1])
    sides = enumerate(zip(pad[::2], pad[1::2], strict=True))
    padded = {x.ndim - 1 - i: both for i, both in sides if both != (0, 0)}
    planes = (_whole_heads(plane, padded.keys(), call, algebra) for plane in x.planes)
    rows = [(plane, varying(plane)) for plane in planes]
    # A single channel has no label, but what it is padded with has.
    rows += [(torch.zeros([1] * x.ndim, dtype=torch.int32, device="cpu"), (d,)) for d in padded if x.shape[d] == 1]
    kept = []
    for plane, dims in rows:
        plane = compact(plane)
        for dim in padded.keys() & set(dims):
            before, after = padded[dim]
            if before < 0 or after < 0:
                algebra.pin(plane, f"{call.where} cuts at a constant position")
            plane = torch.nn.functional.pad(plane, [0, 0] * (x.ndim - 1 - dim) + [before, after])
            _grow(plane, dim, before, after, call, algebra)
        kept.append(simplify(plane).expand(call.shape))
    return tuple(kept)


def _whole_heads(plane: Plane, padded: Collection[int], call: Call, algebra: Algebra) -> Plane:
    """A plane of heads x positions that are padded, without the positions where whole heads go."""
    inside = [d for d in varying(plane) if d in padded]
    if not inside or len(inside) == len(varying(plane)):
        return plane
    if algebra.choose(f"{call.place}#heads", "whole") != "whole":
        return plane
    return algebra.tie(plane, inside, call, "padded heads")


def _grow(plane: Plane, dim: int, before: int, after: int, call: Call, algebra: Algebra) -> None:
    """Give what was padded along a dimension slots of its own, in place."""
    count = before if before == after else before + after
    if any(_window(user, dim) == (before, after) for user in call.node.users):
        return  # Of zeros at both ends there are as many at any width.
    if min(before, after) < 0 or count < 2 or algebra.choose(f"{call.place}#padded", "follow") != "follow":
        return
    (new,) = algebra.new_planes(call.node.name, [1] * dim + [count], transient=True)
    new = new.reshape([count if d == dim else 1 for d in range(plane.dim())])
    plane.narrow(dim, 0, before).copy_(new.narrow(dim, 0, before))
    plane.narrow(dim, plane.shape[dim] - after, after).copy_(new.narrow(dim, count - after, after))


register_rule(
    aten.avg_pool1d,
    aten.avg_pool2d,
    aten.avg_pool3d,
    aten.max_pool2d_with_indices,
    aten.max_pool3d_with_indices,
    aten.adaptive_avg_pool1d,
    aten._adaptive_avg_pool2d,
    aten._adaptive_avg_pool3d,
    aten.adaptive_max_pool2d,
    aten.adaptive_max_pool3d,
    aten.upsample_nearest1d,
    aten.upsample_nearest2d,
    aten.upsample_nearest3d,
    aten._upsample_nearest_exact1d,
    aten._upsample_nearest_exact2d,
    aten._upsample_nearest_exact3d,
    aten.upsample_bilinear2d,
    aten._upsample_bilinear2d_aa,
    aten.upsample_bicubic2d,
    aten._upsample_bicubic2d_aa,
    aten.upsample_trilinear3d,
    aten.upsample_linear1d,
    aten.reflection_pad1d,
    aten.reflection_pad2d,
    aten.reflection_pad3d,
    aten.replication_pad1d,
    aten.replication_pad2d,
    aten.replication_pad3d,
)(spatial)


def region_pool(call: Call, algebra: Algebra) -> Planes:
    """`roi_align(x, boxes, …)`: (N, C, H, W) -> (boxes, C, h, w)."""
    labels, _ = channel_labels(call.args[0], 1, call, algebra, batch=False)
    return (along(labels, 1, call.shape),)


def image_to_columns(call: Call, algebra: Algebra) -> Planes:
    """`unfold`: (N, C, H, W) -> (N, C * kh * kw, positions), or both without N."""
    x: Value = call.args[0]
    dim = x.ndim - 3
    labels, carried = channel_labels(x, dim, call, algebra)
    each = call.shape[dim] // x.shape[dim]
    return (along(labels.repeat_interleave(each), dim, call.shape), *carried(call.shape))


def columns_to_image(call: Call, algebra: Algebra) -> Planes:
    """`fold`: (N, C * kh * kw, positions) -> (N, C, H, W), or both without N."""
    x: Value = call.args[0]
    dim = x.ndim - 2
    labels, carried = channel_labels(x, dim, call, algebra)
    each = algebra.tie(labels.reshape(call.shape[dim], -1), [1], call, "fold")
    return (along(each[:, 0], dim, call.shape), *carried(call.shape))


def unpool(call: Call, algebra: Algebra) -> Planes:
    """`max_unpool2d(x, indices, size)`: channel by channel."""
    x, indices = call.args[:2]
    both = replace(x, planes=join([x, indices], x.shape, call, algebra))
    count = 3 if call.op.endswith("3d") else 2
    return _carry(both, set(range(x.ndim - count, x.ndim)), call.shape, call, algebra)


def fourier(call: Call, algebra: Algebra) -> Planes:
    """`_fft_r2c(x, dim, …)` and its kin: mix what lies along `dim`."""
    x: Value = call.args[0]
    return _carry(x, {int(d) % x.ndim for d in call.args[1]}, call.shape, call, algebra)


def grid_sample(call: Call, algebra: Algebra) -> Planes:
    """`grid_sampler(x, grid, …)`: (N, C, *) and (N, *places, 2 or 3) -> (N, C, *places). What lies along places of the
    grid lies there in the result; coordinates stay."""
    x, grid = call.args[:2]
    space = range(2, x.ndim)
    corner = tuple(slice(0, 1) if d in space else slice(None) for d in range(x.ndim))
    planes = tuple(p[corner] for p in beside(x, {*space}, call, algebra))
    spec = replace(x.spec, shape=(*x.shape[:2], *(1 for _ in space)))
    images = replace(x, spec=spec, planes=planes, node=None)
    planes = tuple(p[..., 0].unsqueeze(1) for p in beside(grid, {grid.ndim - 1}, call, algebra))
    spec = replace(grid.spec, shape=(grid.shape[0], 1, *grid.shape[1:-1]))
    return join([images, replace(grid, spec=spec, planes=planes, node=None)], call.shape, call, algebra)


def affine_grid(call: Call, algebra: Algebra) -> Planes:
    """`affine_grid_generator(theta, size, align)`: (N, 2, 3) -> (N, H, W, 2), or so in three dimensions. Channels may
    be laid into N."""
    kept = (p[:, 0, 0] for p in beside(call.args[0], {1, 2}, call, algebra))
    return tuple(p.reshape(-1, *(1,) * (len(call.shape) - 1)).expand(call.shape) for p in kept)


register_rule(aten.grid_sampler_2d, aten.grid_sampler_3d)(grid_sample)
register_rule(aten.affine_grid_generator)(affine_grid)
register_rule(aten.constant_pad_nd)(constant_pad)
register_rule(aten.im2col)(image_to_columns)
register_rule(aten.col2im)(columns_to_image)
register_rule("torchvision::roi_align", "torchvision::roi_pool")(region_pool)
register_rule(aten.max_unpool2d, aten.max_unpool3d)(unpool)
register_rule(aten._fft_r2c, aten._fft_c2r, aten._fft_c2c)(fourier)
