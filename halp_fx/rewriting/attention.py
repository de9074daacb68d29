"""attention: a call of `F.multi_head_attention_forward` -> the linear layers that it is made of.

`nn.MultiheadAttention` hands its weights to one function, which projects queries, keys and values, attends, and
projects what comes of it. What the last projection gets is what the function returns with an identity in its place.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional as F

from .layers import LayerCall

_ARGUMENTS = inspect.signature(F.multi_head_attention_forward)


def projections(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[torch.Tensor, int, LayerCall]]:
    """The linear layers of a call, in the order in which they run; none if it is another function, or drops values at
    random. Each is made when it is asked for: what is done to those before it, it sees.

    Yields:
        The weight that the caller passed, which of the layers in it this is (queries, keys, values), and its call. Its
        weight and bias are views of what was passed.
    """
    if func is not F.multi_head_attention_forward:
        return
    bound = _ARGUMENTS.bind(*args, **kwargs)
    bound.apply_defaults()
    a = bound.arguments
    if a["training"] and a["dropout_p"] > 0:
        return
    bias = a["in_proj_bias"]
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    inputs = [a[side] for side in ("query", "key", "value")]
    if a["use_separate_proj_weight"]:
        for x, side, shift in zip(inputs, "qkv", biases, strict=True):
            yield a[f"{side}_proj_weight"], 0, LayerCall(x, a[f"{side}_proj_weight"], shift)
    else:
        whole = a["in_proj_weight"]
        for part, (x, weight, shift) in enumerate(zip(inputs, whole.chunk(3), biases, strict=True)):
            yield whole, part, LayerCall(x, weight, shift)
    out = a["out_proj_weight"]
    alone = torch.eye(out.shape[1], dtype=out.dtype, device=out.device)
    found = func(**a | {"out_proj_weight": alone, "out_proj_bias": None, "need_weights": False})
    yield out, 0, LayerCall(found[0], out, a["out_proj_bias"])
