"""Operators that reduce or normalise along given dimensions."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..algebra import Algebra, Call, Plane, Planes, Value, compact, varying
from .channels import beside
from .elementwise import join
from .registry import register_rule

aten = torch.ops.aten


def reduction(call: Call, algebra: Algebra) -> Planes | list[Planes]:
    """`op(x, dims, keepdim)`: planes over other dimensions are carried on.

    A statistic over the channels themselves runs over those that stay: removing is not the same as zeroing there.
    """
    x: Value = call.args[0]
    dims = _dims(call.arg(1, "dim"), x.ndim)
    keepdim = call.shape != () and len(call.shape) == x.ndim
    kept = []
    for plane in x.planes:
        if set(varying(plane)) & dims:
            plane = _over_channels(plane, dims, call, algebra)
        for d in sorted(dims, reverse=True):
            plane = plane.narrow(d, 0, 1) if keepdim else plane.select(d, 0)
        if varying(plane):
            kept.append(plane)
    planes = tuple(kept)
    return planes if len(call.outputs) == 1 else [planes] * len(call.outputs)


def _over_channels(plane: Plane, dims: set[int], call: Call, algebra: Algebra) -> Plane:
    """The plane of a reduction over labelled dimensions: what is left of it varies along the other ones.

    Of parts that are each reduced to one value (correlations of groups of channels), whole ones go, so that each result
    stands for the same set of channels; or, as the other choice, the same positions of all.
    """
    others = set(varying(plane)) - dims
    if others and algebra.choose(f"{call.place}#reduced", "whole") == "whole":
        return algebra.tie(plane, dims, call, "reduction")
    algebra.restrict(call, dims)
    return algebra.tie(plane, others, call, "reduction")


def along_dimension(call: Call, algebra: Algebra) -> Planes | list[Planes]:
    """`op(x, dim)` with a result of x's shape, e.g. softmax and cumsum: mixes along `dim` only."""
    x: Value = call.args[0]
    dims = _dims(call.arg(1, "dim"), x.ndim)
    kept = []
    for plane in x.planes:
        if set(varying(plane)) & dims:
            algebra.restrict(call, dims)
        kept.append(algebra.rectangle(plane))
    planes = tuple(kept)
    return planes if len(call.outputs) == 1 else [planes] * len(call.outputs)


def running(call: Call, algebra: Algebra) -> Planes | list[Planes]:
    """`cumsum(x, dim)` and its kin. Of a constant, such as `ones_like`, they number the channels."""
    x: Value = call.args[0]
    dims = _dims(call.arg(1, "dim"), x.ndim)
    if x.data is not None:
        for plane in x.planes:
            if set(varying(plane)) & dims:
                algebra.pin(plane, f"{call.where} numbers the channels")
    return along_dimension(call, algebra)


def vector_norm(call: Call, algebra: Algebra) -> Planes | list[Planes]:
    """`linalg_vector_norm(x, ord, dim, keepdim)` and `norm(x, p, dim, keepdim)`."""
    return reduction(replace(call, args=(call.args[0], call.arg(2, "dim"))), algebra)


def renormalized(call: Call, algebra: Algebra) -> Planes | list[Planes]:
    """`renorm(x, p, dim, maxnorm)`: what lies at one place along `dim` is scaled by its norm."""
    x: Value = call.args[0]
    dims = [d for d in range(x.ndim) if d != int(call.args[2]) % x.ndim]
    return along_dimension(replace(call, args=(x, dims)), algebra)


def running_extreme(call: Call, algebra: Algebra) -> list[Planes]:
    """`cummax(x, dim)` and `cummin`: values, and where they are; that means something else when channels are gone."""
    x: Value = call.args[0]
    dims = _dims(call.arg(1, "dim"), x.ndim)
    if call.outputs[1] is None:
        return along_dimension(call, algebra)  # type: ignore[return-value]
    return [beside(x, dims, call, algebra)] * 2


def loss(call: Call, algebra: Algebra) -> Planes:
    """`mse_loss(x, target, reduction)` and its kin, `dist(x, y, p)`: elementwise, then the sum or mean of all."""
    tensors = call.tensors()
    shape = torch.broadcast_shapes(*(v.shape for v in tensors))
    planes = join(tensors, shape, call, algebra)
    if call.shape == shape:
        return planes
    for value in tensors:
        dims = {d for p in value.planes for d in varying(p)}
        if dims:
            algebra.restrict(call, dims)
    return ()


def index_of_extreme(call: Call, algebra: Algebra) -> Planes | list[Planes]:
    """`argmax` and its kin: an index into the channels means something else when some are gone."""
    x: Value = call.args[0]
    dims = _dims(call.arg(1, "dim"), x.ndim)
    over = [p for p in x.planes if set(varying(p)) & dims]
    for plane in over:
        algebra.pin(plane, f"{call.where} gives an index of a channel")
    rest = tuple(p for p in x.planes if not set(varying(p)) & dims)
    return reduction(replace(call, args=(replace(x, planes=rest), *call.args[1:])), algebra)


def extreme(call: Call, algebra: Algebra) -> Planes | list[Planes]:
    """`max(x, dim, keepdim)` and `min`: values, and, if the network reads them, where they are."""
    located = len(call.outputs) > 1 and call.outputs[1] is not None
    return (index_of_extreme if located else reduction)(call, algebra)


def ordered(call: Call, algebra: Algebra) -> Planes | list[Planes]:
    """`sort(x, dim)`, `topk(x, k, dim)`, `median(x, dim)` …: the order along `dim` is one of values, not channels."""
    x: Value = call.args[0]
    dim = _ORDER_ARGUMENT.get(call.op, 1)
    whole = call.op in ("median", "nanmedian") and len(call.args) == 1
    dims = _dims(call.arg(dim, "dim", None if whole else -1), x.ndim)
    kept = []
    for plane in beside(x, dims, call, algebra):
        if len(call.shape) < x.ndim:
            for d in sorted(dims, reverse=True):
                plane = plane.select(d, 0)
        kept.append(compact(plane).expand(call.shape))
    planes = tuple(kept)
    return planes if len(call.outputs) == 1 else [planes] * len(call.outputs)


_ORDER_ARGUMENT = {"topk": 2, "kthvalue": 2}


def _dims(dims: object, ndim: int) -> set[int]:
    if dims is None or isinstance(dims, bool):
        return set(range(ndim))
    if isinstance(dims, int):
        dims = [dims]
    chosen = {int(d) % max(ndim, 1) for d in dims}  # type: ignore[attr-defined]
    return chosen or set(range(ndim))


register_rule(
    aten.mean,
    aten.sum,
    aten.amax,
    aten.amin,
    aten.prod,
    aten.var,
    aten.std,
    aten.var_mean,
    aten.std_mean,
    aten.logsumexp,
    aten.aminmax,
    aten.nansum,
    aten.count_nonzero,
    aten.any,
    aten.all,
)(reduction)
register_rule(aten.linalg_vector_norm, aten.norm)(vector_norm)
register_rule(aten.renorm)(renormalized)
register_rule(aten.cummax, aten.cummin)(running_extreme)
register_rule(
    aten.mse_loss,
    aten.smooth_l1_loss,
    aten.huber_loss,
    aten.soft_margin_loss,
    aten.binary_cross_entropy,
    aten.binary_cross_entropy_with_logits,
    aten.dist,
)(loss)
register_rule(aten.argmax, aten.argmin)(index_of_extreme)
register_rule(aten.max, aten.min)(extreme)
register_rule(aten._softmax, aten._safe_softmax, aten._log_softmax)(along_dimension)
register_rule(aten.cumsum, aten.cumprod, aten.logcumsumexp)(running)
register_rule(aten.sort, aten.topk, aten.kthvalue, aten.median, aten.nanmedian, aten.mode)(ordered)
