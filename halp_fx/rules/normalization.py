"""Normalisations with parameters per channel."""

from __future__ import annotations

import torch

from ..algebra import Algebra, Call, Planes, Value, varying, vector
from .registry import register_rule

aten = torch.ops.aten


def batch_norm(call: Call, algebra: Algebra) -> list[Planes]:
    """input (N, C, ...), and weight, bias, running mean, running variance of shape (C,) or None."""
    x = call.args[0]
    channel = [p for p in x.planes if 1 in varying(p)]
    for index, role in ((1, "norm"), (2, "norm"), (3, "statistic"), (4, "statistic")):
        value = call.args[index] if index < len(call.args) else None
        if not isinstance(value, Value):
            continue
        for own in value.planes:
            algebra.mark(own, role)
            labels = vector(own, 0)
            if not channel:
                algebra.pin(own, f"{call.where} normalises channels that cannot be removed")
            for plane in channel:
                view = [1, -1] + [1] * (x.ndim - 2)
                algebra.couple(plane, labels.reshape(view).expand(x.shape), call, "norm")
    return [x.planes] + [()] * (len(call.outputs) - 1)


register_rule(
    aten.native_batch_norm,
    aten.cudnn_batch_norm,
    aten.miopen_batch_norm,
    aten._native_batch_norm_legit,
    aten._native_batch_norm_legit_no_training,
    aten._batch_norm_with_update,
    aten._batch_norm_no_update,
)(batch_norm)
