"""Results of frequent operators on meta tensors without PyTorch's own shape inference.

PyTorch runs many of them through Python decompositions that take up to 2 ms a call, more than everything else that
recording a node costs. What is not covered here takes that way, too: a rule returns None on any doubt. Rules give the
shapes, strides and dtypes of those decompositions (not of the kernels that really run, which may keep another layout),
except for convolutions: PyTorch's inference loses channels last there, and a layer must be timed in the layout it has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from ..internals import suggest_memory_format

aten = torch.ops.aten

_META = torch.device("meta")
_ONE_TENSOR = (
    *("relu", "relu_", "hardtanh", "hardtanh_", "hardswish", "hardswish_", "hardsigmoid", "hardsigmoid_"),
    *("leaky_relu", "leaky_relu_", "elu", "elu_", "silu", "silu_", "gelu", "sigmoid", "sigmoid_", "tanh", "tanh_"),
    *(
        "abs",
        "ceil",
        "cos",
        "erf",
        "exp",
        "floor",
        "log",
        "neg",
        "reciprocal",
        "round",
        "rsqrt",
        "sin",
        "sqrt",
        "softplus",
    ),
)
_Several = tuple[torch.Tensor, ...] | None
_PLAIN = (torch.float32, torch.float64)
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
_ARITHMETIC = ("add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_")


def run(func: Any, args: Any, kwargs: Any) -> Any:
    """`func(*args, **kwargs)`, of which only shapes, strides and dtypes matter if the first tensor is a meta one."""
    rule = _RULES.get(func)
    if rule is not None:
        x = args[0][0] if func in (_CAT, _STACK) and args[0] else args[func is _POWER_OF_NUMBER]
        if isinstance(x, torch.Tensor) and x.is_meta and x.is_floating_point():
            result = rule(*args, **kwargs)
            if result is not None:
                return result
    return func(*args, **kwargs)


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of a contiguous tensor; dimensions of size 1 have theirs, too."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size or 1
    return tuple(reversed(strides))


def _dense(x: torch.Tensor) -> bool:
    """Whether a tensor has elements, and these strides: `is_contiguous` leaves those of dimensions of size 1 open."""
    return x.numel() > 0 and x.stride() == _contiguous(x.shape)


def _empty(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty_strided(shape, _contiguous(shape), dtype=dtype, device=_META)


def _like(x: torch.Tensor) -> torch.Tensor | None:
    """The result of an elementwise operator on `x` alone."""
    strides = _ordered(x)
    return None if strides is None else _strided(x, strides)


def _strided(x: torch.Tensor, strides: tuple[int, ...]) -> torch.Tensor:
    return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=_META)


def _ordered(x: torch.Tensor) -> tuple[int, ...] | None:
    """Strides of an elementwise result whose first argument is `x`, of the result's shape: `x`'s without gaps.

    None where that is not all there is to it, e.g. as two strides are equal and other arguments decide.
    """
    strides, shape = x.stride(), x.shape
    if x.numel() == 0:
        return None
    if strides == _contiguous(shape):
        return strides
    if 0 in strides:  # An expanded dimension stays where it is.
        moving = [step for step in strides if step]
        return _contiguous(shape) if all(a > b for a, b in pairwise(moving)) else None
    if x.is_contiguous() or len(set(strides)) < len(strides):
        return None
    found, step = [0] * len(shape), 1
    for dim in sorted(range(len(shape)), key=strides.__getitem__):
        found[dim] = step
        step *= shape[dim]
    # PyTorch takes what looks like channels last for that, whatever the strides of dimensions of size 1 say.
    unclear = len(shape) == 4 and tuple(found) != strides and x.is_contiguous(memory_format=torch.channels_last)
    return None if unclear else tuple(found)


def _one(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor | None:
    return _like(x)


def _scaled(x: torch.Tensor, number: Any, *args: Any, **kwargs: Any) -> torch.Tensor | None:
    return _like(x) if type(number) in (int, float) else None


def _compared(x: torch.Tensor, number: Any) -> torch.Tensor | None:
    like = _scaled(x, number)
    return None if like is None else torch.empty_strided(x.shape, like.stride(), dtype=torch.bool, device=_META)


def _both(x: torch.Tensor, y: Any, **kwargs: Any) -> torch.Tensor | None:
    if not isinstance(y, torch.Tensor):
        return _scaled(x, y)
    if not y.is_meta or x.dtype != y.dtype:
        return None
    if x.shape == y.shape and x.stride() == y.stride():
        return _like(x)
    shape = _broadcast(x.shape, y.shape)
    if shape is None:
        return None
    if _dense(x) and _dense(y):
        return _empty(shape, x.dtype)
    if x.shape == y.shape and x.is_contiguous() and y.is_contiguous() and not (_channels_last(x) and _channels_last(y)):
        return _empty(shape, x.dtype)
    # The first one's strides decide, where no two of them are equal and none is 0.
    strides = _ordered(x) if shape == x.shape and len({*x.stride()} - {0}) == x.dim() else None
    return None if strides is None else _strided(x, strides)


def _channels_last(x: torch.Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def _power_of_number(number: Any, x: torch.Tensor) -> torch.Tensor | None:
    return _scaled(x, number)


def _clamp(x: torch.Tensor, low: Any = None, high: Any = None) -> torch.Tensor | None:
    return _like(x) if {type(low), type(high)} <= {int, float, type(None)} and low is not high else None


def _grid_sampler(x: torch.Tensor, grid: torch.Tensor, *args: Any) -> torch.Tensor | None:
    fits = grid.is_meta and grid.dim() == x.dim() == 4 and x.dtype == grid.dtype and x.shape[0] == grid.shape[0]
    whole = fits and grid.shape[3] == 2 and x.numel() > 0
    return _empty((*x.shape[:2], *grid.shape[1:3]), x.dtype) if whole else None


def _broadcast(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...] | None:
    """The common shape, None if there is none."""
    if len(a) < len(b):
        a, b = b, a
    shape = list(a)
    for dim, size in enumerate(b, len(a) - len(b)):
        if shape[dim] == 1:
            shape[dim] = size
        elif size not in (1, shape[dim]):
            return None
    return tuple(shape)


def _in_place(x: torch.Tensor, y: Any = 0, *args: Any, **kwargs: Any) -> torch.Tensor | None:
    if not isinstance(y, torch.Tensor):
        return x if type(y) in (int, float) else None
    return x if y.is_meta and y.dtype == x.dtype and _broadcast(x.shape, y.shape) == x.shape else None


def _activate_in_place(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor | None:
    return x


def _masked_fill(x: torch.Tensor, mask: torch.Tensor, value: Any) -> torch.Tensor | None:
    fits = mask.is_meta and type(value) in (int, float) and _dense(x) and _dense(mask)
    return _empty(x.shape, x.dtype) if fits and _broadcast(x.shape, mask.shape) == x.shape else None


def _batch_norm(x: torch.Tensor, *args: Any) -> _Several:
    """As the kernel has it: without statistics in eval mode, which PyTorch's inference would make."""
    like = _like(x)
    if args[4] and (like is None or x.dtype not in _PLAIN):
        return None
    statistic = (x.shape[1],) if args[4] else (0,)
    return torch.empty_like(x) if like is None else like, _empty(statistic, x.dtype), _empty(statistic, x.dtype)


def _layer_norm(x: torch.Tensor, normalized: Any, *args: Any) -> _Several:
    """Contiguous as the kernel has it; PyTorch's inference may keep odd strides of dimensions of size 1."""
    outer = x.shape[: x.dim() - len(normalized)]
    if x.numel() == 0 or x.dtype not in _PLAIN or tuple(x.shape[len(outer) :]) != tuple(normalized):
        return None
    for t in args[:2]:
        if t is not None and (t.dtype != x.dtype or not _dense(t) or tuple(t.shape) != tuple(normalized)):
            return None
    statistic = (*outer, *(1 for _ in normalized))
    return _empty(x.shape, x.dtype), _empty(statistic, x.dtype), _empty(statistic, x.dtype)


def _softmax(x: torch.Tensor, dim: int, converted: bool = False, *, dtype: Any = None) -> torch.Tensor | None:
    fits = not converted and dtype is None and _dense(x) and -x.dim() <= dim < x.dim()
    return _empty(x.shape, x.dtype) if fits else None


def _addmm(bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **kwargs: Any) -> torch.Tensor | None:
    fits = bias.dim() == 1 and a.dtype == b.dtype == bias.dtype and a.shape[1] == b.shape[0]
    return _empty((a.shape[0], b.shape[1]), a.dtype) if fits and bias.shape[0] == b.shape[1] else None


def _mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor | None:
    fits = b.is_meta and a.dim() == b.dim() == 2 and a.shape[1] == b.shape[0] and a.dtype == b.dtype
    return _empty((a.shape[0], b.shape[1]), a.dtype) if fits else None


def _bmm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor | None:
    fits = a.shape[0] == b.shape[0] and a.shape[2] == b.shape[1] and a.dtype == b.dtype
    return _empty((a.shape[0], a.shape[1], b.shape[2]), a.dtype) if fits else None


def _convolution(
    x: torch.Tensor, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, *args: Any
) -> torch.Tensor | None:
    dims = x.dim() - 2
    layout = _layout_of_convolution(x, weight)
    if layout is not None:
        settings = (bias, stride, padding, dilation, transposed, *args)
        plain = aten.convolution.default(x.contiguous(), weight.contiguous(), *settings)
        return torch.empty_like(plain, memory_format=layout)
    if transposed or not weight.is_meta or x.dtype != weight.dtype or weight.dim() != x.dim():
        return None
    if weight.shape[1] * args[1] != x.shape[1]:
        return None
    if not len(stride) == len(padding) == len(dilation) == dims or min(stride) < 1 or x.numel() == 0:
        return None
    sizes = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    inner = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes]
    return _empty((x.shape[0], weight.shape[0], *inner), x.dtype) if min(inner) > 0 and weight.shape[0] else None


def _layout_of_convolution(x: torch.Tensor, weight: torch.Tensor) -> torch.memory_format | None:
    """Channels last, if the input or the weight says so, as the libraries of CPU and GPU have it."""
    if _dense(x) and _dense(weight):
        return None
    formats = [suggest_memory_format(t) for t in (x, weight) if t.dim() in (4, 5)]
    return next((f for f in formats if f is not torch.contiguous_format), None)


def _cat(tensors: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor | None:
    first = tensors[0]
    axis = dim % first.dim() if first.dim() else 0
    for a, b in pairwise(tensors):
        if a.dtype != b.dtype or a.dim() != b.dim() or not b.is_meta or b.numel() == 0:
            return None
        if a.shape[:axis] != b.shape[:axis] or a.shape[axis + 1 :] != b.shape[axis + 1 :]:
            return None
    if not -first.dim() <= dim < first.dim() or first.numel() == 0:
        return None
    if all(suggest_memory_format(t) is not torch.contiguous_format for t in tensors):
        return None
    return _empty((*first.shape[:axis], sum(t.shape[axis] for t in tensors), *first.shape[axis + 1 :]), first.dtype)


def _stack(tensors: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor | None:
    first = tensors[0]
    if any(t.shape != first.shape or not t.is_meta for t in tensors) or not -first.dim() - 1 <= dim <= first.dim():
        return None
    if any(suggest_memory_format(t) is not torch.contiguous_format for t in tensors):
        return None
    return _cat([t.unsqueeze(dim) for t in tensors], dim % (first.dim() + 1))


def _mean(x: torch.Tensor, dims: Any, keepdim: bool = False, *, dtype: Any = None) -> torch.Tensor | None:
    if dtype is not None or not dims or not _dense(x) or not all(-x.dim() <= d < x.dim() for d in dims):
        return None
    gone = {d % x.dim() for d in dims}
    if len(gone) < len(dims):
        return None
    if keepdim:
        return _empty([1 if d in gone else n for d, n in enumerate(x.shape)], x.dtype)
    return _empty([n for d, n in enumerate(x.shape) if d not in gone], x.dtype)


def _vector_norm(
    x: torch.Tensor, order: Any = 2, dims: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> torch.Tensor | None:
    return _mean(x, dims, keepdim, dtype=dtype) if order in (1, 2) else None


def _clone(x: torch.Tensor, *, memory_format: Any = torch.preserve_format) -> torch.Tensor | None:
    if memory_format is torch.contiguous_format or (memory_format is torch.preserve_format and _dense(x)):
        return _empty(x.shape, x.dtype)
    return None


def _roll(x: torch.Tensor, shifts: Any, dims: Any = ()) -> torch.Tensor | None:
    fits = len(shifts) == len(dims) > 0 and all(-x.dim() <= d < x.dim() for d in dims)
    return _empty(x.shape, x.dtype) if fits and _dense(x) else None


def _unsafe_view(x: torch.Tensor, size: Any) -> torch.Tensor | None:
    return x.view(size)


def _recurrent(
    gates: int,
    x: torch.Tensor,
    states: Any,
    params: Sequence[torch.Tensor],
    biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> _Several:
    """`rules.recurrent` says what the arguments are. PyTorch's inference goes through every time step."""
    states = tuple(states) if isinstance(states, list | tuple) else (states,)
    out, hidden = states[0].shape[-1], states[-1].shape[-1]
    cells = layers * (2 if bidirectional else 1)
    each = len(params) // cells
    width, batch = out * cells // layers, x.shape[0 if batch_first else 1]
    if x.dim() != 3 or x.numel() == 0 or any(t.dtype != x.dtype for t in (*states, *params)):
        return None
    if any(tuple(s.shape) != (cells, batch, n) for s, n in zip(states, (out, hidden), strict=False)):
        return None
    for index in range(cells):
        w_ih, w_hh, *rest = params[index * each : (index + 1) * each]
        read = x.shape[2] if index < cells // layers else width
        shapes = [(gates * hidden, read), (gates * hidden, out), *(2 if biases else 0) * [(gates * hidden,)]]
        shapes += [(out, hidden)] if len(rest) % 2 else []
        if [tuple(p.shape) for p in (w_ih, w_hh, *rest)] != shapes:
            return None
    steps = x.shape[1 if batch_first else 0]
    result = _empty((steps, batch, width), x.dtype)
    return result.transpose(0, 1) if batch_first else result, *(_empty(s.shape, s.dtype) for s in states)


_CAT, _STACK, _POWER_OF_NUMBER = aten.cat.default, aten.stack.default, aten.pow.Scalar
_RULES: dict[Any, Callable[..., Any]] = {
    **{getattr(aten, name).default: _activate_in_place if name[-1] == "_" else _one for name in _ONE_TENSOR},
    **{getattr(aten, name).Tensor: _in_place if name[-1] == "_" else _both for name in _ARITHMETIC},
    **{getattr(aten, name).Scalar: _in_place if name[-1] == "_" else _scaled for name in _ARITHMETIC},
    **{getattr(aten, name).Scalar: _compared for name in _COMPARISONS},
    aten.clamp_min.default: _scaled,
    aten.clamp.default: _clamp,
    aten.pow.Tensor_Scalar: _scaled,
    _POWER_OF_NUMBER: _power_of_number,
    aten.grid_sampler_2d.default: _grid_sampler,
    aten.masked_fill.Scalar: _masked_fill,
    aten.native_batch_norm.default: _batch_norm,
    aten.native_layer_norm.default: _layer_norm,
    aten._softmax.default: _softmax,
    aten._safe_softmax.default: _softmax,
    aten.addmm.default: _addmm,
    aten.mm.default: _mm,
    aten.bmm.default: _bmm,
    aten.convolution.default: _convolution,
    _CAT: _cat,
    _STACK: _stack,
    aten.mean.dim: _mean,
    aten.linalg_vector_norm.default: _vector_norm,
    aten.clone.default: _clone,
    aten.roll.default: _roll,
    aten._unsafe_view.default: _unsafe_view,
    aten.lstm.input: partial(_recurrent, 4),
    aten.gru.input: partial(_recurrent, 3),
    aten.rnn_tanh.input: partial(_recurrent, 1),
    aten.rnn_relu.input: partial(_recurrent, 1),
}
