"""Results of frequent operators on meta tensors without PyTorch's own shape inference.

PyTorch runs many of them through Python decompositions that take up to 2 ms a call, more than everything else that
recording a node costs. What is not covered here takes that way.
"""

from __future__ import annotations

from typing import Any

import torch

aten = torch.ops.aten

_ONE_TENSOR = (
    *("relu", "relu_", "hardtanh", "hardtanh_", "hardswish", "hardswish_", "hardsigmoid", "hardsigmoid_"),
    *("leaky_relu", "leaky_relu_", "elu", "elu_", "silu", "silu_", "gelu", "sigmoid", "sigmoid_", "tanh", "tanh_"),
)
_LIKE_FIRST = frozenset(getattr(aten, name).default for name in _ONE_TENSOR)
_LIKE_BOTH = frozenset(
    getattr(aten, name).Tensor for name in ("add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_")
)


def run(func: Any, args: Any, kwargs: Any) -> Any:
    """`func(*args, **kwargs)`, of which only shapes, strides and dtypes matter if the first tensor is a meta one."""
    x = args[0] if args else None
    if isinstance(x, torch.Tensor) and x.is_meta and x.is_floating_point():
        if func in _LIKE_FIRST or (func in _LIKE_BOTH and _alike(x, args[1])):
            return x if func._schema.is_mutable else torch.empty_like(x)
        rule = _RULES.get(func)
        result = rule(*args, **kwargs) if rule is not None else None
        if result is not None:
            return result
    return func(*args, **kwargs)


def _batch_norm(x: torch.Tensor, *args: Any) -> Any:
    return None if args[4] else (torch.empty_like(x), x.new_empty(0), x.new_empty(0))


def _layer_norm(x: torch.Tensor, normalized: Any, *args: Any) -> Any:
    outer = x.shape[: x.dim() - len(normalized)]
    if tuple(x.shape[len(outer) :]) != tuple(normalized) or not x.is_contiguous():
        return None
    statistic = x.new_empty((*outer, *(1 for _ in normalized)))
    return torch.empty_like(x), statistic, torch.empty_like(statistic)


def _addmm(bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **kwargs: Any) -> Any:
    fits = bias.dim() == 1 and a.dtype == b.dtype == bias.dtype and a.shape[1] == b.shape[0]
    return a.new_empty((a.shape[0], b.shape[1])) if fits and bias.shape[0] == b.shape[1] else None


def _bmm(a: torch.Tensor, b: torch.Tensor) -> Any:
    fits = a.shape[0] == b.shape[0] and a.shape[2] == b.shape[1] and a.dtype == b.dtype
    return a.new_empty((a.shape[0], a.shape[1], b.shape[2])) if fits else None


# None: not a case for the shortcut, among them all shapes that do not fit.
_RULES: dict[Any, Any] = {
    aten.native_batch_norm.default: _batch_norm,
    aten.native_layer_norm.default: _layer_norm,
    aten.addmm.default: _addmm,
    aten.bmm.default: _bmm,
}


def _alike(x: torch.Tensor, y: Any) -> bool:
    """Whether an elementwise operator on both gives a tensor like the first."""
    if not isinstance(y, torch.Tensor) or not y.is_meta:
        return False
    return x.dtype == y.dtype and x.shape == y.shape and x.stride() == y.stride()
