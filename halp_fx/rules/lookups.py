"""Tables that are looked up by row."""

from __future__ import annotations

import torch

from ..algebra import Algebra, Call, Planes, Value, along, varying, vector
from .registry import register_rule


def embedding(call: Call, algebra: Algebra) -> Planes:
    """weight (rows, C), indices (*) -> (*, C). Rows are fixed."""
    weight: Value = call.args[0]
    kept = []
    for plane in weight.planes:
        if varying(plane) == (1,):
            if weight.parameter:
                algebra.mark(plane, "producer")
            kept.append(along(vector(plane, 1), len(call.shape) - 1, call.shape))
        else:
            algebra.pin(plane, f"the rows of {call.where} are fixed")
    return tuple(kept)


register_rule(torch.ops.aten.embedding)(embedding)
