"""Fake quantisation, as models prepared for quantisation-aware training run it: elementwise, with a scale for all
elements or one per channel, and perhaps an observer that keeps the range of what it has seen."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..algebra import Algebra, Call, Planes, Value, along, varying, vector
from .elementwise import join
from .registry import register_rule

aten = torch.ops.aten


def for_all(call: Call, algebra: Algebra) -> Planes | list[Planes]:
    """`fake_quantize_per_tensor_affine(x, scale, zero_point, …)`: one scale, which stays."""
    planes: Planes = call.args[0].planes
    return planes if len(call.outputs) == 1 else [planes] * len(call.outputs)


def per_channel(call: Call, algebra: Algebra) -> Planes | list[Planes]:
    """`fake_quantize_per_channel_affine(x, scale, zero_point, axis, …)` with one scale for each place along `axis`."""
    planes = _with_ranges(call, call.args[1:3], int(call.args[3]), algebra)
    return planes if len(call.outputs) == 1 else [planes] * len(call.outputs)


def observed(call: Call, algebra: Algebra) -> list[Planes]:
    """`_fused_moving_avg_obs_fq_helper(x, …, running_min, running_max, scale, zero_point, …, ch_axis, per_row)`: the
    range is observed on the way, so the twin looks at what is kept alone."""
    x: Value = call.args[0]
    dims = {d for p in x.planes for d in varying(p)}
    if dims:
        algebra.restrict(call, dims)
    rows = call.args[3:7] if call.arg(11, "per_row_fake_quant", False) else ()
    planes = _with_ranges(call, rows, int(call.args[10]), algebra)
    return [planes] * len(call.outputs)


def _with_ranges(call: Call, rows: tuple[Value, ...], axis: int, algebra: Algebra) -> Planes:
    """Couple scales and the like, (size of x along `axis`,), with x; of another size, nothing was observed yet."""
    x: Value = call.args[0]
    axis %= x.ndim
    values = [x]
    for row in rows:
        if not isinstance(row, Value) or row.shape != (x.shape[axis],):
            continue
        for plane in row.planes:
            algebra.mark(plane, "statistic")
        shape = tuple(n if d == axis else 1 for d, n in enumerate(x.shape))
        spread = tuple(along(vector(p, 0), axis, shape) for p in row.planes)
        values.append(Value(replace(x.spec, shape=shape), spread, row.parameter))
    return join(values, x.shape, call, algebra)


register_rule(
    aten.fake_quantize_per_tensor_affine_cachemask,
    aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams,
    aten._fake_quantize_learnable_per_tensor_affine,
)(for_all)
register_rule(
    aten.fake_quantize_per_channel_affine_cachemask,
    aten._fake_quantize_learnable_per_channel_affine,
)(per_channel)
register_rule(aten._fused_moving_avg_obs_fq_helper, aten._fused_moving_avg_obs_fq_helper_functional)(observed)
