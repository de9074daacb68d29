"""Normalisations: with parameters per channel, and with statistics over the channels."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..algebra import Algebra, Call, Edit, Planes, Value, along, varying, vector
from .elementwise import join
from .registry import register_rule

aten = torch.ops.aten


def batch_norm(call: Call, algebra: Algebra) -> list[Planes]:
    """input (N, C, ...), and weight, bias, running mean, running variance of shape (C,) or None.

    A weight that is standardised by its own statistics has labels along the other dimensions, too.
    """
    x = call.args[0]
    labelled = {d for p in x.planes for d in varying(p)}
    if labelled - {1} and _of_the_batch(call):
        algebra.restrict(call, labelled)
    for index, role in ((1, "norm"), (2, "norm"), (3, "statistic"), (4, "statistic")):
        value = call.args[index] if index < len(call.args) else None
        if isinstance(value, Value):
            _couple_affine(x, value, 1, role, call, algebra)
    return _results(x, call, algebra)


def _results(x: Value, call: Call, algebra: Algebra) -> list[Planes]:
    """Of a norm. The statistics that some return, too, nobody reads but a backward pass; where the forward does, what
    they are of stays."""
    if any(spec is not None for spec in call.outputs[1:]):
        algebra.pin_all((x,), f"the forward reads the statistics of {call.where}")
    return [x.planes] + [()] * (len(call.outputs) - 1)


def _of_the_batch(call: Call) -> bool:
    """Whether a batch norm computes its statistics instead of taking those it is given."""
    names = [a.name for a in call.overload._schema.arguments]
    if "training" in names:
        return bool(call.arg(names.index("training"), "training"))
    return call.op == "_batch_norm_with_update"


def weight_norm(call: Call, algebra: Algebra) -> list[Planes]:
    """`_weight_norm_interface(v, g, dim)` -> v * g / |v| and |v|: the norm runs over all dimensions but `dim`."""
    v, g, dim = call.args[0], call.args[1], int(call.arg(2, "dim", 0))
    if any(varying(p) != (dim,) for p in v.planes):
        algebra.restrict(call, set(range(v.ndim)))
    return [join([v, g], v.shape, call, algebra), g.planes]


def _couple_affine(x: Value, affine: Value, first: int, role: str, call: Call, algebra: Algebra) -> None:
    """Couple a tensor with the channels of x, whose dimension `first` is its dimension 0."""
    for own in affine.planes:
        if affine.parameter:
            algebra.mark(own, role)
        dims = [first + d for d in varying(own)]
        channel = [p for p in x.planes if set(dims) & set(varying(p))]
        if not channel or len(dims) > 1:
            algebra.pin(own, f"{call.where} normalises channels that cannot be removed")
        for plane in channel if len(dims) < 2 else ():
            labels = vector(own, dims[0] - first)
            if varying(plane) == (dims[0],):
                algebra.couple(vector(plane, dims[0]), labels, call, "norm")
            else:
                algebra.couple(plane, along(labels, dims[0], x.shape), call, "norm")


def layer_norm(call: Call, algebra: Algebra) -> list[Planes]:
    """input (*, normalized_shape), weight and bias of normalized_shape or None: statistics over the last dimensions.

    Where all heads share weight and bias (a norm of queries and keys), whole heads go; or, as the other choice, the
    same positions of all.
    """
    x, first = call.args[0], call.args[0].ndim - len(call.args[1])
    dims = set(range(first, x.ndim))
    affine = [value for value in call.args[2:4] if isinstance(value, Value) and value.planes]
    planes = []
    for plane in x.planes:
        inside = set(varying(plane)) & dims
        if affine and inside and inside < set(varying(plane)):
            whole = algebra.choose(f"{call.place}#sides", "whole") == "whole"
            plane = algebra.tie(plane, inside, call, "side") if whole else plane
        planes.append(plane)
    x = replace(x, planes=tuple(planes))
    if any(set(varying(p)) & dims for p in x.planes):
        algebra.restrict(call, dims)
    for value in affine:
        _couple_affine(x, value, first, "norm", call, algebra)
    return _results(x, call, algebra)


def group_norm(call: Call, algebra: Algebra) -> list[Planes]:
    """input (N, C, *), weight, bias (C,), N, C, HxW, groups: statistics over each group of channels.

    There are two ways to shrink, and the finer one is taken: whole groups go, and what is left has the statistics that
    it had; or every group keeps the same positions, so that the groups stay equally wide. Where parts of the channels
    are images of the batch, each part keeps the same.
    """
    x, groups = call.args[0], int(call.args[6])
    each = x.shape[1] // groups
    whole = groups > 1 and algebra.choose(call.place, "whole" if groups >= each else "positions") == "whole"
    x = replace(x, planes=_of_every_image(x.planes, call, algebra))
    for plane in x.planes:
        if varying(plane) == (1,):
            if not whole:
                algebra.restrict(call, {1})
            if groups > 1:
                algebra.tie(vector(plane, 1).reshape(groups, -1), [1 if whole else 0], call, "group norm")
        elif varying(plane) != (0,):
            algebra.pin(plane, f"{call.where} mixes what lies along this axis")
    for value in call.args[1:3]:
        if isinstance(value, Value):
            _couple_affine(x, value, 1, "norm", call, algebra)
    if whole:
        algebra.edits.append(Edit(call.module, "num_groups", call.node.all_input_nodes[0], 1, each))
    return _results(x, call, algebra)


def _of_every_image(planes: Planes, call: Call, algebra: Algebra) -> Planes:
    """Planes of parts x channels, the same channels of every part. Of parts of which one channel is left, too, but not
    where labels lie along the images alone from the start."""
    if not any(varying(p)[:1] == (0,) for p in planes):
        return planes
    parts = algebra.choose(f"{call.place}#parts", "alike" if (0, 1) in map(varying, planes) else "free")
    if parts == "free":
        return planes
    return tuple(algebra.tie(p, [0], call, "group norm") if varying(p) in ((0,), (0, 1)) else p for p in planes)


def rms_norm(call: Call, algebra: Algebra) -> Planes | list[Planes]:
    """`_fused_rms_norm(x, normalized_shape, weight, eps)`: as layer norm without mean and bias."""
    planes = layer_norm(call, algebra)
    return planes if len(call.outputs) > 1 else planes[0]


register_rule(
    aten.native_batch_norm,
    aten.cudnn_batch_norm,
    aten.miopen_batch_norm,
    aten._native_batch_norm_legit,
    aten._native_batch_norm_legit_no_training,
    aten._batch_norm_with_update,
    aten._batch_norm_no_update,
)(batch_norm)
register_rule(aten._weight_norm_interface)(weight_norm)
register_rule(aten.native_layer_norm)(layer_norm)
register_rule(aten.native_group_norm)(group_norm)
register_rule(*(getattr(aten, name) for name in ("_fused_rms_norm",) if hasattr(aten, name)))(rms_norm)
