"""Convolutions of every dimension, grouping and direction: `aten.convolution` is all of them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..algebra import Algebra, Call, Edit, Plane, Planes, Value, along, varying, vector
from .registry import register_rule


def convolution(call: Call, algebra: Algebra) -> Planes:
    """input (N, C, *space), weight (O, C/groups, *kernel) or, transposed, (C, O/groups, *kernel).

    With several convolution groups there are two ways to shrink: remove whole convolution groups (their input and
    output channels go together, and `groups` shrinks), or remove the same positions in every group (`groups` stays).
    The finer of the two is taken: a depthwise or a 32 x 4 convolution loses groups, one with 4 x 32 loses positions.
    """
    x, weight, bias = call.args[0], call.args[1], call.arg(2, "bias")
    transposed, groups = bool(call.arg(6, "transposed", False)), int(call.arg(8, "groups", 1))
    inputs, carried = channel_labels(x, 1, call, algebra)
    first, second = _weight_labels(weight, call, algebra)
    w_in, w_out = (first, second) if transposed else (second, first)
    in_per_group = x.shape[1] // groups
    if groups == 1:
        _couple(inputs, w_in, call, algebra, "input")
        outputs = w_out
    elif algebra.choose(call.place, "whole" if groups >= in_per_group else "positions") == "whole":
        outputs = _whole_groups(inputs, w_in, w_out, groups, transposed, call, algebra)
    else:
        outputs = _positions(inputs, w_in, w_out, groups, transposed, call, algebra)
    if weight.parameter:
        algebra.mark(w_out, "producer")
        algebra.mark(w_in, "consumer")
    if isinstance(bias, Value):
        labels, _ = channel_labels(bias, 0, call, algebra)
        _couple(outputs, labels, call, algebra, "bias")
        algebra.mark(labels, "bias")
    return (along(outputs, 1, call.shape), *(p for p in carried(call.shape)))


def channel_labels(
    x: Value, dim: int, call: Call, algebra: Algebra
) -> tuple[torch.Tensor, Callable[[tuple[int, ...]], Planes]]:
    """The labels along `dim` of a tensor, shape (size,), 0 where there are none.

    Labels that also vary elsewhere are tied along those dimensions. Planes over the batch are carried on (second
    result: shape -> planes); others are pinned, for a convolution mixes what lies along them.
    """
    labels = torch.zeros(x.shape[dim], dtype=torch.int32)
    batch = []
    found = False
    for plane in x.planes:
        dims = varying(plane)
        if dim in dims and not found:
            plane = algebra.tie(plane, [d for d in dims if d != dim], call, "position")
            labels, found = vector(plane, dim), True
        elif dims == (0,) and dim != 0:
            batch.append(vector(plane, 0))
        else:
            algebra.pin(plane, f"{call.where} mixes what lies along this axis")
    return labels, lambda shape: tuple(along(b, 0, shape) for b in batch)


def _weight_labels(weight: Value, call: Call, algebra: Algebra) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels along dimensions 0 and 1 of a weight; the kernel's own dimensions are fixed."""
    rows: list[torch.Tensor] = [torch.zeros(weight.shape[d], dtype=torch.int32) for d in (0, 1)]
    for plane in weight.planes:
        dims = varying(plane)
        if len(dims) == 1 and dims[0] < 2 and not rows[dims[0]].any():
            rows[dims[0]] = vector(plane, dims[0])
        else:
            algebra.pin(plane, f"the kernel of {call.where} keeps its size")
    return rows[0], rows[1]


def _couple(a: torch.Tensor, b: torch.Tensor, call: Call, algebra: Algebra, kind: str) -> None:
    if len(a) > 1:
        algebra.couple(a, b, call, kind)


def _whole_groups(
    inputs: torch.Tensor,
    w_in: torch.Tensor,
    w_out: torch.Tensor,
    groups: int,
    transposed: bool,
    call: Call,
    algebra: Algebra,
) -> torch.Tensor:
    kind = "depthwise" if len(inputs) == groups else "grouped"
    by_group: Plane = inputs.reshape(groups, -1)
    if transposed:
        # weight is (C, O/groups): only its first dimension has a slot per convolution group.
        _couple(inputs, w_in, call, algebra, "input")
        algebra.pin(w_out, f"shared by every convolution group of {call.where}")
        leaders = algebra.tie(by_group, [1], call, kind)[:, :1]
        outputs = leaders.expand(groups, len(w_out)).reshape(-1)
    else:
        algebra.pin(w_in, f"shared by every convolution group of {call.where}")
        out_by_group = w_out.reshape(groups, -1)
        leaders = algebra.tie(by_group, [1], call, kind)[:, :1]
        algebra.couple(leaders.expand_as(out_by_group), out_by_group, call, kind)
        outputs = w_out
    algebra.edits.append(Edit(call.module, "groups", call.node, 1, len(outputs) // groups))
    return outputs


def _positions(
    inputs: torch.Tensor,
    w_in: torch.Tensor,
    w_out: torch.Tensor,
    groups: int,
    transposed: bool,
    call: Call,
    algebra: Algebra,
) -> torch.Tensor:
    if transposed:
        _couple(inputs, w_in, call, algebra, "input")
        algebra.tie(w_in.reshape(groups, -1), [0], call, "grouped")
        return w_out.repeat(groups)
    algebra.couple(inputs.reshape(groups, -1), w_in.expand(groups, -1), call, "grouped")
    algebra.tie(w_out.reshape(groups, -1), [0], call, "grouped")
    return w_out


register_rule(torch.ops.aten.convolution, torch.ops.aten._convolution)(convolution)
