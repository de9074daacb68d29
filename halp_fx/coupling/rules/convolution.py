"""Convolutions of every dimension, grouping and direction: `aten.convolution` is all of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..algebra import Algebra, Call, Edit, Plane, Planes, Value, along, compact, varying, vector
from .channels import channel_labels, couple_labels
from .registry import register_rule
from .values import zero_where_removed


@dataclass(frozen=True, slots=True)
class _Grouped:
    """Labels of a convolution with several groups: `inputs` (C,), and along the two axes of its weight.

    `w_in` and `w_out` are (C/groups,) and (O,) or, transposed, (C,) and (O/groups,).
    """

    inputs: torch.Tensor
    w_in: torch.Tensor
    w_out: torch.Tensor
    groups: int
    transposed: bool


def convolution(call: Call, algebra: Algebra) -> Planes:
    """input (N, C, *space), weight (O, C/groups, *kernel) or, transposed, (C, O/groups, *kernel).

    With several convolution groups there are two ways to shrink: remove whole convolution groups (their input and
    output channels go together, and `groups` shrinks), or remove the same positions in every group (`groups` stays).
    The finer of the two is taken: a depthwise or a 32 x 4 convolution loses groups, one with 4 x 32 loses positions.
    """
    weight, bias = call.args[1], call.arg(2, "bias")
    transposed, groups = bool(call.arg(6, "transposed", False)), int(call.arg(8, "groups", 1))
    x, passed = _slid_over(call.args[0], call, algebra)
    inputs, carried = channel_labels(x, 1, call, algebra)
    first, second = _weight_labels(weight, call, algebra)
    w_in, w_out = (first, second) if transposed else (second, first)
    in_per_group = x.shape[1] // groups
    if groups == 1:
        couple_labels(inputs, w_in, call, algebra, "input")
        outputs = w_out
    else:
        labels = _Grouped(inputs, w_in, w_out, groups, transposed)
        finer = algebra.choose(call.place, "whole" if groups >= in_per_group else "positions")
        outputs = (_whole_groups if finer == "whole" else _positions)(labels, call, algebra)
    if groups == 1 and inputs.any() and call.node not in algebra.restricted and not zero_where_removed(weight.node):
        algebra.sum_over(call, {0: 1, 1: 0 if transposed else 1})
    # Also of a weight that is scaled by activations (modulated convolutions); of one that a layer puts out, it is that.
    algebra.mark(w_out, "producer")
    if weight.parameter:
        algebra.mark(w_in, "consumer")
    if isinstance(bias, Value):
        _add_bias(outputs, bias, call, algebra)
    return (along(outputs, 1, call.shape), *carried(call.shape), *passed)


def _slid_over(x: Value, call: Call, algebra: Algebra) -> tuple[Value, Planes]:
    """The input without the planes along a spatial dimension that keeps its length, and these for the result.

    A kernel of length 1 takes each place by itself (a layer over tokens, with the channels behind). A longer one slides
    over the channels (ECA, triplet attention): removing one is not zeroing it, for its neighbours move together.
    """
    kernel, steps = call.args[1].shape, list(call.args[3])
    passed = []
    for plane in x.planes:
        d = varying(plane)[0] if len(varying(plane)) == 1 else 0
        if d < 2 or steps[min(d - 2, len(steps) - 1)] != 1 or x.shape[d] != call.shape[d]:
            continue
        if kernel[d] > 1:
            if call.arg(6, "transposed", False) or call.node in algebra.restricted:
                continue
            algebra.slide_over(call, d)
        passed.append(plane)
    rest = tuple(p for p in x.planes if all(p is not q for q in passed))
    return replace(x, planes=rest), tuple(compact(p).expand(call.shape) for p in passed)


def _weight_labels(weight: Value, call: Call, algebra: Algebra) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels along dimensions 0 and 1 of a weight; the kernel's own dimensions are fixed. Of kernels that a layer
    computes (rows for every place of every channel) all places of a channel go together; where it has a row for every
    place of every pair of channels (CondConv), the larger side is free, and the other one stays."""
    rows: list[torch.Tensor] = [torch.zeros(weight.shape[d], dtype=torch.int32, device="cpu") for d in (0, 1)]
    for plane in _finer_first(weight, call, algebra):
        dims = varying(plane)
        if len(dims) > 1 and dims[0] < 2 and not weight.parameter:
            free = dims[0] if dims[1] > 1 else _larger_side(plane, call, algebra)
            plane = algebra.tie(plane, [d for d in dims if d != free], call, "kernel")
            dims = varying(plane)
        if len(dims) == 1 and dims[0] < 2 and not rows[dims[0]].any():
            rows[dims[0]] = vector(plane, dims[0])
        else:
            algebra.pin(plane, f"the kernel of {call.where} keeps its size")
    return rows[0], rows[1]


def _finer_first(weight: Value, call: Call, algebra: Algebra) -> list[Plane]:
    """The planes of a weight; of two that lie along one dimension (blocks, and places in each of them: a Kronecker
    product) the one with more channels first, and when the network has been pruned it stays that one."""
    planes = list(weight.planes)
    for dim in (0, 1):
        along_it = [i for i, plane in enumerate(planes) if varying(plane) == (dim,)]
        if len(along_it) == 2:
            first, second = (len(vector(planes[i], dim).unique()) for i in along_it)
            default = "first" if first >= second else "second"
            if algebra.choose(f"{call.place}#side {dim}", default) == "second":
                i, j = along_it
                planes[i], planes[j] = planes[j], planes[i]
    return planes


def _larger_side(plane: Plane, call: Call, algebra: Algebra) -> int:
    """Which of dimensions 0 and 1 of a computed weight has more channels. The first one may have those of every image
    of a batch, one after another; and when the network has been pruned it stays that side."""
    first, second = (len(compact(plane).transpose(0, d)[:, 0].flatten(1)[:, 0].unique()) for d in (0, 1))
    return 0 if algebra.choose(f"{call.place}#kernel", "rows" if first >= second else "columns") == "rows" else 1


def _add_bias(outputs: torch.Tensor, bias: Value, call: Call, algebra: Algebra) -> None:
    labels, _ = channel_labels(bias, 0, call, algebra)
    couple_labels(outputs, labels, call, algebra, "bias")
    algebra.mark(labels, "bias")


def _whole_groups(labels: _Grouped, call: Call, algebra: Algebra) -> torch.Tensor:
    """Couple what lies in one convolution group; returns the labels of the result's channels."""
    inputs, w_in, w_out, groups = labels.inputs, labels.w_in, labels.w_out, labels.groups
    kind = "depthwise" if len(inputs) == groups else "grouped"
    by_group: Plane = inputs.reshape(groups, -1)
    if labels.transposed:
        # weight is (C, O/groups): only its first dimension has a slot per convolution group.
        couple_labels(inputs, w_in, call, algebra, "input")
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


def _positions(labels: _Grouped, call: Call, algebra: Algebra) -> torch.Tensor:
    """Couple equal positions of all convolution groups; returns the labels of the result's channels."""
    inputs, w_in, w_out, groups = labels.inputs, labels.w_in, labels.w_out, labels.groups
    if labels.transposed:
        couple_labels(inputs, w_in, call, algebra, "input")
        algebra.tie(w_in.reshape(groups, -1), [0], call, "grouped")
        return w_out.repeat(groups)
    algebra.couple(inputs.reshape(groups, -1), w_in.expand(groups, -1), call, "grouped")
    algebra.tie(w_out.reshape(groups, -1), [0], call, "grouped")
    return w_out


def deformable(call: Call, algebra: Algebra) -> Planes:
    """`torchvision::deform_conv2d(input, weight, offset, mask, bias, …, groups, offset_groups, use_mask)`.

    Groups as of a convolution. Offsets and masks are counted by the kernel: where all channels share them they stay.
    Where groups of channels have their own there are two ways again: whole groups go with their offsets, or every one
    keeps the same positions.
    """
    x, weight, offset, mask, bias = call.args[:5]
    groups, offset_groups, masked = call.args[11:14]
    inputs, carried = channel_labels(x, 1, call, algebra)
    w_out, w_in = _weight_labels(weight, call, algebra)
    if groups == 1:
        couple_labels(inputs, w_in, call, algebra, "input")
        outputs = w_out
    else:
        finer = algebra.choose(call.place, "whole" if groups >= len(w_in) else "positions")
        labels = _Grouped(inputs, w_in, w_out, groups, False)
        outputs = (_whole_groups if finer == "whole" else _positions)(labels, call, algebra)
    by_group = inputs.reshape(offset_groups, -1)
    whole = algebra.choose(f"{call.place}#offsets", "whole" if offset_groups >= by_group.shape[1] else "positions")
    if offset_groups == 1 or whole == "positions":
        algebra.tie(by_group, [0], call, "offsets")
        algebra.pin_all((offset, mask), f"{call.where} has an offset for every element of its kernel")
    else:
        leaders = algebra.tie(by_group, [1], call, "offsets")[:, :1]
        for value in (offset, mask) if masked else (offset,):
            rows = channel_labels(value, 1, call, algebra)[0].reshape(offset_groups, -1)
            algebra.couple(leaders.expand_as(rows), rows, call, "offsets")
    if weight.parameter:
        algebra.mark(w_out, "producer")
        algebra.mark(w_in, "consumer")
    _add_bias(outputs, bias, call, algebra)
    return (along(outputs, 1, call.shape), *carried(call.shape))


register_rule(torch.ops.aten.convolution, torch.ops.aten._convolution)(convolution)
register_rule("torchvision::deform_conv2d")(deformable)
