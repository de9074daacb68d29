"""Operators that treat each channel alone and mix only trailing, spatial dimensions: pooling, resizing, padding."""

from __future__ import annotations

import re

import torch

from ..algebra import Algebra, Call, Planes, Value, along, compact, simplify, varying, vector
from .registry import register_rule

aten = torch.ops.aten


def spatial(call: Call, algebra: Algebra) -> Planes | list[Planes]:
    """The number of spatial dimensions is in the operator's name ("avg_pool2d"); labels along them are pinned."""
    x: Value = call.args[0]
    count = re.search(r"([123])d", call.op)
    space = set(range(x.ndim - (int(count.group(1)) if count else 2), x.ndim))
    return [_carry(x, space, spec.shape, call, algebra) if spec else () for spec in call.outputs]


def _carry(x: Value, space: set[int], shape: tuple[int, ...], call: Call, algebra: Algebra) -> Planes:
    kept = []
    for plane in x.planes:
        if set(varying(plane)) & space:
            algebra.pin(plane, f"{call.where} mixes what lies along this axis")
        else:
            kept.append(compact(plane).expand(shape))
    return tuple(kept)


def constant_pad(call: Call, algebra: Algebra) -> Planes:
    """Padding with a constant; padded channels are fixed ones."""
    x, pad = call.args[0], list(call.args[1])
    kept = []
    for plane in x.planes:
        for i in range(len(pad) // 2):
            dim = x.ndim - 1 - i
            before, after = pad[2 * i], pad[2 * i + 1]
            if before == after == 0:
                continue
            if dim in varying(plane):
                if before < 0 or after < 0:
                    algebra.pin(plane, f"{call.where} cuts at a constant position")
                plane = simplify(torch.nn.functional.pad(plane, [0, 0] * i + [before, after]))
            else:
                size = list(plane.shape)
                size[dim] += before + after
                plane = plane.narrow(dim, 0, 1).expand(size)
        kept.append(plane)
    return tuple(kept)


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
    aten._upsample_nearest_exact2d,
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
    aten.grid_sampler_2d,
    aten.grid_sampler_3d,
)(spatial)


def region_pool(call: Call, algebra: Algebra) -> Planes:
    """`roi_align(x, boxes, …)`: (N, C, H, W) -> (boxes, C, h, w)."""
    x: Value = call.args[0]
    kept = []
    for plane in x.planes:
        if varying(plane) == (1,):
            kept.append(compact(plane).expand(call.shape))
        else:
            algebra.pin(plane, f"{call.where} mixes what lies along this axis")
    return tuple(kept)


def image_to_columns(call: Call, algebra: Algebra) -> Planes:
    """`unfold`: (N, C, H, W) -> (N, C * kh * kw, positions)."""
    x: Value = call.args[0]
    kept = []
    for plane in x.planes:
        if varying(plane) == (1,) and x.ndim == 4:
            each = call.shape[1] // x.shape[1]
            kept.append(along(vector(plane, 1).repeat_interleave(each), 1, call.shape))
        else:
            algebra.pin(plane, f"{call.where} mixes what lies along this axis")
    return tuple(kept)


def columns_to_image(call: Call, algebra: Algebra) -> Planes:
    """`fold`: (N, C * kh * kw, positions) -> (N, C, H, W)."""
    x: Value = call.args[0]
    kept = []
    for plane in x.planes:
        if varying(plane) == (1,) and x.ndim == 3:
            each = vector(plane, 1).reshape(call.shape[1], -1)
            each = algebra.tie(each, [1], call, "fold")
            kept.append(along(each[:, 0], 1, call.shape))
        else:
            algebra.pin(plane, f"{call.where} mixes what lies along this axis")
    return tuple(kept)


register_rule(aten.constant_pad_nd)(constant_pad)
register_rule(aten.im2col)(image_to_columns)
register_rule(aten.col2im)(columns_to_image)
register_rule("torchvision::roi_align", "torchvision::roi_pool")(region_pool)
