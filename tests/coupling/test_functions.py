"""PyTorch's layers and functions, one after another between two convolutions: each either equals the zeroed twin at
half of its channels, or is frozen with a reason."""

from __future__ import annotations

import pytest
import torch
from oracle import Net, half_plan, randomized, relative_error
from torch import nn
from torch.nn import functional as F

import halp_fx


def bent(x):
    """Not zero at zero: what a removed channel holds in the twin must not count anywhere."""
    return x + x.cos()


def between(function, outputs=8, **layers):
    """A convolution `a`, then `function(self, bent(a(x)))`, then a convolution `c`."""
    return Net(lambda s, x: s.c(function(s, bent(s.a(x)))), a=nn.Conv2d(3, 8, 1), c=nn.Conv2d(outputs, 2, 1), **layers)


def layer(build, outputs=8):
    return lambda: between(lambda s, x: s.b(x), outputs, b=build())


def call(function, outputs=8, **layers):
    return lambda: between(lambda s, x: function(x), outputs)


def rows(function, outputs=8):
    """As `call`, on the pixels as tokens: (N, 36, 8)."""
    return lambda: between(
        lambda s, x: function(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (6, 6)), outputs
    )


def line(build):
    """A layer for sequences, on (N, 8, 36)."""
    return lambda: between(lambda s, x: s.b(x.flatten(2)).flatten(2)[..., :25].unflatten(2, (5, 5)), b=build())


def cube(build):
    """A layer for volumes, on (N, 8, 4, 3, 3)."""
    return lambda: between(lambda s, x: s.b(x.unflatten(2, (2, 3))).flatten(2, 3), b=build())


def positions(x, *shape):
    """Whole numbers below 6 that do not depend on the input."""
    return torch.arange(torch.Size(shape).numel()).reshape(shape) % 6


ACTIVATIONS = {
    kind.__name__: layer(kind)
    for kind in (
        *(nn.ELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardtanh, nn.Hardswish, nn.LeakyReLU, nn.LogSigmoid, nn.PReLU),
        *(nn.ReLU, nn.ReLU6, nn.RReLU, nn.SELU, nn.CELU, nn.GELU, nn.Sigmoid, nn.SiLU, nn.Mish, nn.Softplus),
        *(nn.Softshrink, nn.Softsign, nn.Tanh, nn.Tanhshrink, nn.Softmax2d, nn.Identity, nn.FeatureAlphaDropout),
    )
}
ACTIVATIONS |= {
    "Threshold": layer(lambda: nn.Threshold(0.1, 2.0)),
    "GLU": layer(lambda: nn.GLU(1), 4),
    "Softmin": layer(lambda: nn.Softmin(1)),
    "LogSoftmax": layer(lambda: nn.LogSoftmax(1)),
    "gumbel": call(lambda x: x * F.softmax(x / 0.5, 1)),
    "gelu, tanh": call(lambda x: F.gelu(x, approximate="tanh")),
    "in place": call(lambda x: F.relu_(F.elu_(x).sin_())),
    "logit, erf, sinc": call(lambda x: x.sigmoid().logit() + x.erf() + torch.special.sinc(x)),
    "xlogy, hypot, atan2": call(
        lambda x: torch.xlogy(x.abs(), 2.0) + torch.hypot(x, x.cos()) + torch.atan2(x, x.cos())
    ),
    "floor, round, frac, sign": call(lambda x: x.floor() + x.round() + x.frac() + x.sign() + x.trunc()),
    "nan_to_num, isnan, clamp": call(lambda x: x.nan_to_num().clamp(min=-1, max=2).masked_fill(x.isnan(), 0.0)),
    "heaviside, copysign, ldexp": call(lambda x: torch.heaviside(x, x.cos()) + torch.copysign(x, x.cos())),
    "remainder, fmod": call(lambda x: x.remainder(0.7) + x.fmod(0.3)),
    "maximum, fmax": call(lambda x: torch.maximum(x, x.cos()) + torch.fmax(x, x.sin())),
    "comparison": call(lambda x: (x > 0).to(x.dtype) * x + x.gt(x.cos()).to(x)),
    "float_power, rsqrt, reciprocal": call(lambda x: (x.abs() + 1).float_power(0.3) + (x.abs() + 1).rsqrt()),
    "bitwise": call(lambda x: x * ((x > 0) & ~(x > 1) | (x < -1)).to(x)),
}

NORMS = {
    "BatchNorm2d": layer(lambda: nn.BatchNorm2d(8)),
    "BatchNorm2d without affine": layer(lambda: nn.BatchNorm2d(8, affine=False)),
    "InstanceNorm2d": layer(lambda: nn.InstanceNorm2d(8)),
    "InstanceNorm2d affine": layer(lambda: nn.InstanceNorm2d(8, affine=True)),
    "GroupNorm": layer(lambda: nn.GroupNorm(2, 8)),
    "GroupNorm without affine": layer(lambda: nn.GroupNorm(2, 8, affine=False)),
    "one group": layer(lambda: nn.GroupNorm(1, 8, affine=False)),
    "LocalResponseNorm": layer(lambda: nn.LocalResponseNorm(3)),
    "CrossMapLRN2d": layer(lambda: nn.CrossMapLRN2d(3)),
    "layer_norm": rows(lambda x: F.layer_norm(x, x.shape[-1:])),
    "layer_norm of two dimensions": rows(lambda x: F.layer_norm(x, x.shape[-2:])),
    "layer_norm of space": call(lambda x: F.layer_norm(x, x.shape[2:])),
    "rms_norm": rows(lambda x: F.rms_norm(x, x.shape[-1:])),
    "group_norm": call(lambda x: F.group_norm(x, 2)),
    "instance_norm": call(lambda x: F.instance_norm(x)),
    "normalize": call(F.normalize),
    "normalize, p": call(lambda x: F.normalize(x, p=1.0, dim=1)),
}

POOLS = {
    "MaxPool2d": layer(lambda: nn.MaxPool2d(3, 2, 1)),
    "AvgPool2d": layer(lambda: nn.AvgPool2d(2)),
    "LPPool2d": call(lambda x: F.lp_pool2d(x.abs() + 0.1, 3, 2)),
    "FractionalMaxPool2d": layer(lambda: nn.FractionalMaxPool2d(2, 3, _random_samples=torch.full((2, 8, 2), 0.3))),
    "AdaptiveAvgPool2d": layer(lambda: nn.AdaptiveAvgPool2d((3, 2))),
    "AdaptiveMaxPool2d": layer(lambda: nn.AdaptiveMaxPool2d((3, 2))),
    "adaptive with indices": call(lambda x: F.adaptive_max_pool2d(x, 3, return_indices=True)[0]),
    "MaxPool1d": line(lambda: nn.MaxPool1d(3, 1, 1)),
    "AvgPool1d": line(lambda: nn.AvgPool1d(3, 1, 1)),
    "LPPool1d": line(lambda: nn.LPPool1d(2.0, 3, 1)),
    "AdaptiveAvgPool1d": line(lambda: nn.AdaptiveAvgPool1d(30)),
    "AdaptiveMaxPool1d": line(lambda: nn.AdaptiveMaxPool1d(30)),
    "MaxPool3d": cube(lambda: nn.MaxPool3d(2, 1)),
    "AvgPool3d": cube(lambda: nn.AvgPool3d(2, 1)),
    "AdaptiveAvgPool3d": cube(lambda: nn.AdaptiveAvgPool3d(2)),
    "AdaptiveMaxPool3d": cube(lambda: nn.AdaptiveMaxPool3d(2)),
    "MaxUnpool2d": call(lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2)),
}

PADS = {
    kind.__name__: layer(lambda kind=kind: kind(1))
    for kind in (nn.ReflectionPad2d, nn.ReplicationPad2d, nn.ZeroPad2d, nn.CircularPad2d)
}
PADS |= {
    "ConstantPad2d": layer(lambda: nn.ConstantPad2d((1, 0, 2, -1), 0.5)),
    "ReflectionPad1d": line(lambda: nn.ReflectionPad1d(1)),
    "ReplicationPad1d": line(lambda: nn.ReplicationPad1d(1)),
    "ReplicationPad3d": cube(lambda: nn.ReplicationPad3d(1)),
}

RESIZES = {
    f"interpolate, {mode}": call(lambda x, mode=mode: F.interpolate(x, scale_factor=1.5, mode=mode))
    for mode in ("nearest", "nearest-exact", "bilinear", "bicubic", "area")
}
RESIZES |= {
    "antialiased": call(lambda x: F.interpolate(x, (3, 4), mode="bilinear", antialias=True)),
    "trilinear": cube(lambda: nn.Upsample(scale_factor=2, mode="trilinear")),
    "linear": line(lambda: nn.Upsample(scale_factor=2, mode="linear")),
    "nearest 1d": line(lambda: nn.Upsample(scale_factor=2)),
    "PixelUnshuffle": layer(lambda: nn.PixelUnshuffle(2), 32),
    "PixelShuffle": layer(lambda: nn.PixelShuffle(2), 2),
    "Unfold": call(lambda x: F.unfold(x, 2).unflatten(2, (5, 5)), 32),
    "Fold": call(lambda x: F.fold(F.unfold(x, 2), (6, 6), 2)),
    "affine_grid": call(
        lambda x: F.grid_sample(
            x, F.affine_grid(torch.eye(2, 3).to(x).expand(len(x), 2, 3), x.shape, align_corners=True), "nearest"
        )
    ),
    "ChannelShuffle": layer(lambda: nn.ChannelShuffle(2)),
}

MOVES = {
    "unflatten": call(lambda x: x.unflatten(1, (2, -1)).flatten(1, 2)),
    "movedim": call(lambda x: x.movedim(1, -1).movedim(-1, 1)),
    "swapaxes, mT": call(lambda x: x.swapaxes(1, 2).swapaxes(1, 2).mT),
    "tensor_split": call(lambda x: torch.cat(x.tensor_split(2, 1)[::-1], 1)),
    "hsplit": call(lambda x: torch.cat(torch.hsplit(x, 2)[::-1], 1)),
    "dsplit": call(lambda x: torch.cat(torch.dsplit(x, 2)[::-1], 2)),
    "chunk of space": call(lambda x: torch.cat(x.chunk(2, 3)[::-1], 3)),
    "roll": call(lambda x: x.roll(1, 2)),
    "rot90": call(lambda x: x.rot90(1, (2, 3))),
    "rot90 twice": call(lambda x: x.rot90(2, (2, 3))),
    "fliplr": call(lambda x: x.fliplr() + x.flip((2, 3))),
    "tile": call(lambda x: x.tile(1, 1, 2, 1)),
    "hstack": call(lambda x: torch.hstack([x, x.cos()]), 16),
    "dstack": call(lambda x: torch.dstack([x, x.cos()])),
    "meshgrid": call(lambda x: x + torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")[0].to(x)),
    "diagonal": call(lambda x: x * x.diagonal(0, 2, 3)[..., None]),
    "diag_embed": call(lambda x: x + torch.diag_embed(x[..., 0])),
    "tril": call(lambda x: x.tril() + x.triu(1)),
    "squeeze": call(lambda x: x.unsqueeze(2).squeeze(2)),
    "expand_as": call(lambda x: x + x.mean((2, 3), True).expand_as(x)),
    "broadcast_to": call(lambda x: x + x[:, :, :1].broadcast_to(x.shape)),
    "narrow": call(lambda x: x.narrow(2, 1, 4)),
    "take": call(lambda x: x[:, :, [1, 2, 0]]),
    "repeat_interleave": call(lambda x: x.repeat_interleave(2, 3)),
    "combinations": call(lambda x: torch.stack([x[..., i] * x[..., j] for i in range(3) for j in range(i)], -1)),
    "as_strided view": call(lambda x: x.unfold(2, 2, 2).flatten(3)),
    "atleast, ravel": call(lambda x: torch.atleast_3d(x).reshape(x.shape)),
    "column_stack": call(lambda x: torch.column_stack([x, x.cos()]), 16),
    "permute": call(lambda x: x.permute(0, 2, 1, 3).transpose(1, 2)),
    "split of space": call(lambda x: torch.cat(x.split([2, 4], 2)[::-1], 2)),
    "a kernel, expanded": lambda: between(
        lambda s, x: F.conv2d(x, s.k.to(x).expand(x.shape[1], 1, 3, 3), groups=x.shape[1], padding=1),
        k=nn.Parameter(torch.rand(1, 1, 3, 3)),
    ),
    "a kernel, repeated": lambda: between(
        lambda s, x: F.conv2d(x, s.k.to(x).repeat(x.shape[1], 1, 1, 1), groups=x.shape[1]),
        k=nn.Parameter(torch.rand(1, 1, 3, 3)),
    ),
    "a number, expanded": lambda: between(
        lambda s, x: x * s.k.to(x).expand(x.shape[1])[:, None, None], k=nn.Parameter(torch.rand(1))
    ),
    "a mask, expanded and copied": call(
        lambda x: x * (x.mean(1, True) > 0).expand(-1, x.shape[1], -1, -1).clone().to(x)
    ),
}

PICKS = {
    "index_fill": call(lambda x: x.index_fill(2, torch.tensor([0, 3]), 0.5)),
    "index_fill of channels": call(lambda x: x.index_fill(1, torch.tensor([0, 3]), 0.5)),
    "masked_fill": call(lambda x: x.masked_fill(x > 0.5, 0.1)),
    "masked_scatter": call(lambda x: x.masked_scatter(x > 0.5, x.cos())),
    "where": call(lambda x: torch.where(x > 0, x, 0.1 * x)),
    "gather": call(lambda x: x.gather(2, positions(x, 1, 1, 6, 6).expand_as(x))),
    "gather by values": rows(lambda x: x.gather(1, x.mean(-1, keepdim=True).argsort(1).expand(-1, -1, x.shape[-1]))),
    "gather of a part": rows(lambda x: x + x.gather(1, positions(x, 2, 3, 1).expand(-1, -1, x.shape[-1])).sum(1, True)),
    "gather of channels": call(lambda x: x.gather(1, torch.zeros(2, 8, 6, 6, dtype=torch.int64))),
    "take_along_dim": call(lambda x: x.take_along_dim(positions(x, 1, 1, 1, 6), 3)),
    "scatter": call(lambda x: x.scatter(2, positions(x, 1, 1, 6, 6).expand_as(x), x.cos())),
    "scatter of a number": call(lambda x: x.scatter(2, positions(x, 1, 1, 1, 6).expand_as(x[:, :, :1]), 0.5)),
    "scatter_add": call(lambda x: torch.zeros_like(x).scatter_add(3, positions(x, 1, 1, 6, 6).expand_as(x), x)),
    "scatter_reduce": call(lambda x: x.scatter_reduce(2, positions(x, 1, 1, 6, 6).expand_as(x), x.cos(), "amax")),
    "index_add": call(lambda x: x.index_add(2, positions(x, 4), x.cos()[:, :, :4])),
    "index_copy": call(lambda x: x.index_copy(2, positions(x, 4), x.cos()[:, :, :4])),
    "index_reduce": call(lambda x: x.index_reduce(2, positions(x, 4), x.cos()[:, :, :4], "amax")),
    "index_select": call(lambda x: x.index_select(2, positions(x, 5))),
    "index_put": call(lambda x: x.index_put((torch.tensor([1]),), torch.tensor(0.5).to(x))),
    "select_scatter": call(lambda x: torch.select_scatter(x, x[:, :, 0].cos(), 2, 1)),
    "slice_scatter": call(lambda x: torch.slice_scatter(x, x[:, :, :2].cos(), 2, 1, 3)),
    "diagonal_scatter": call(lambda x: torch.diagonal_scatter(x, x[:, :, 0].cos(), 0, 2, 3)),
    "bucketize": call(lambda x: x * torch.bucketize(x, torch.linspace(-1, 1, 3).to(x)).to(x)),
    "searchsorted": call(lambda x: x * torch.searchsorted(torch.linspace(-1, 1, 3).to(x), x).to(x)),
    "topk of tokens": rows(lambda x: x + x.topk(3, 1)[0].sum(1, keepdim=True)),
    "repeat_interleave by values": call(
        lambda x: x.repeat_interleave((x.mean((0, 1, 3)) > 0.5).long() + 1, 2).mean(2, True) * x
    ),
    "repeat_interleave by a constant": call(lambda x: x.repeat_interleave(torch.tensor([2, 1, 0, 1, 1, 1]), 2)),
    "repeat_interleave of channels by values": call(
        lambda x: x.repeat_interleave((x[0, :, 0, 0] > -99).long() * 2, 1), 16
    ),
    "repeat_interleave of channels": call(lambda x: x.repeat_interleave(2, 1), 16),
    "bincount": call(lambda x: x + torch.bincount(positions(x, 6)).to(x)),
}

REDUCTIONS = {
    "cummax": call(lambda x: x.cummax(2)[0]),
    "cummin": call(lambda x: x.cummin(3)[0]),
    "cummax of channels": call(lambda x: x.cummax(1)[0]),
    "cumprod": call(lambda x: x.cos().cumprod(3)),
    "logcumsumexp": call(lambda x: x.logcumsumexp(2)),
    "diff": call(lambda x: x.diff(dim=2)),
    "diff of channels": call(lambda x: x.diff(dim=1), 7),
    "logsumexp": call(lambda x: x * x.logsumexp((1, 2), True)),
    "var, correction": call(lambda x: x * x.var((2, 3), correction=0, keepdim=True)),
    "var, all": call(lambda x: x * x.var()),
    "std": call(lambda x: x * x.std((1, 2), keepdim=True)),
    "std_mean": call(lambda x: (x - torch.std_mean(x, 1, keepdim=True)[1]) / torch.std_mean(x, 1, keepdim=True)[0]),
    "var_mean": call(lambda x: torch.var_mean(x, (2, 3), keepdim=True)[0] * x),
    "var_mean, all": call(lambda x: torch.var_mean(x)[0] * x),
    "aminmax": call(lambda x: (x - x.aminmax(dim=2, keepdim=True)[0]) / 3),
    "aminmax, all": call(lambda x: x / (x.aminmax()[1] - x.aminmax()[0])),
    "nansum, nanmean": call(lambda x: x * x.nansum(1, True) + x.nanmean((2, 3), True)),
    "count_nonzero": call(lambda x: x * (x > 0).count_nonzero(2)[:, :, None].to(x)),
    "count_nonzero, all": call(lambda x: x * (x > 0).count_nonzero().to(x)),
    "any, all": call(lambda x: x * (x > 0).any(2, True).to(x) + x * (x > -9).all(1, True).to(x)),
    "median of space": call(lambda x: x * x.median(2, True)[0]),
    "quantile": call(lambda x: x * x.quantile(0.4, 2, True)),
    "kthvalue": call(lambda x: x * x.kthvalue(2, 2, True)[0]),
    "mode": call(lambda x: x * x.round().mode(2, True)[0]),
    "argmax of space": call(lambda x: x * x.argmax(2, True).to(x)),
    "argsort of space": call(lambda x: x * x.argsort(2).to(x)),
    "msort": rows(lambda x: x.transpose(0, 1).msort().transpose(0, 1)),
    "max, all": call(lambda x: x / x.max()),
    "mean, all": call(lambda x: x - x.mean()),
    "sum, all": call(lambda x: x / x.abs().sum()),
    "prod": call(lambda x: x * x.cos().prod(2, True)),
    "trace": call(lambda x: x * torch.einsum("nchh->nc", x)[:, :, None, None]),
    "renorm": call(lambda x: x.renorm(2, 0, 1.0)),
    "trapezoid": call(lambda x: x * torch.trapezoid(x, dim=2)[:, :, None]),
    "cov": rows(lambda x: x + torch.cov(x[0].T).sum() / 100),
    "dist": call(lambda x: x / torch.dist(x, x.cos())),
}

LENGTHS = {
    f"norm, {p}": call(lambda x, p=p: x / (1 + x.norm(p, dim=1, keepdim=True)))
    for p in (0, 0.5, 1, 2, 3, float("inf"), float("-inf"), "fro")
}
LENGTHS |= {
    "norm, all": call(lambda x: x / x.norm()),
    "norm, all, p": call(lambda x: x / x.norm(p=1)),
    "norm, nuc": call(lambda x: x / x[0, 0].norm("nuc")),
    "norm, nuc of channels": call(lambda x: x / x.flatten(2).norm("nuc", dim=(1, 2))[:, None, None, None]),
    "norm, fro, dims": call(lambda x: x / x.norm("fro", dim=(2, 3), keepdim=True)),
    "vector_norm": call(lambda x: x / torch.linalg.vector_norm(x)),
    "vector_norm, keepdim": call(lambda x: x / torch.linalg.vector_norm(x, keepdim=True)),
    "vector_norm, dims": call(lambda x: x / torch.linalg.vector_norm(x, 3, (1, 3), True)),
    "vector_norm, negative": call(lambda x: x / torch.linalg.vector_norm(x, float("inf"), (-1, -3), True)),
    "vector_norm, dim by name": call(lambda x: x / torch.linalg.vector_norm(x, dim=1, keepdim=True)),
    "linalg.norm": call(lambda x: x / torch.linalg.norm(x)),
    "linalg.norm, dim": call(lambda x: x / torch.linalg.norm(x, dim=1, keepdim=True)),
    "linalg.norm, dims": call(lambda x: x / torch.linalg.norm(x, dim=(1, 2), keepdim=True)),
    **{
        f"matrix_norm, {o}": call(lambda x, o=o: x / (1 + torch.linalg.matrix_norm(x, o, (2, 3), True)))
        for o in ("fro", "nuc", 1, -1, 2, -2, float("inf"))
    },
    **{
        f"matrix_norm of channels, {o}": call(lambda x, o=o: x / (1 + torch.linalg.matrix_norm(x, o, (1, 2), True)))
        for o in ("fro", "nuc", 1, 2, float("inf"))
    },
    "pairwise_distance": rows(lambda x: x * F.pairwise_distance(x, x.cos(), keepdim=True)),
    "cosine_similarity": call(lambda x: x * F.cosine_similarity(x, x.cos())[:, None]),
    "cdist": rows(lambda x: x * torch.cdist(x, x.cos()).mean(-1, keepdim=True)),
    "cdist, p": rows(lambda x: x * torch.cdist(x, x.cos(), p=1.0).mean(-1, keepdim=True)),
    "cdist, matmul": rows(
        lambda x: x * torch.cdist(x, x.cos(), compute_mode="use_mm_for_euclid_dist").mean(-1, keepdim=True)
    ),
    "pdist": rows(lambda x: x * F.pdist(x[0]).mean()),
    "svd of space": call(lambda x: x / torch.linalg.svdvals(x)[..., :1, None]),
    "inverse of space": call(lambda x: x * torch.linalg.inv(x + 9 * torch.eye(6).to(x))),
    "det": call(lambda x: x * torch.linalg.det(x)[..., None, None]),
    "cholesky": rows(lambda x: x + torch.linalg.cholesky(x @ x.mT + 9 * torch.eye(36).to(x)).sum(-1, True)),
}

PRODUCTS = {
    "einsum, outer": call(lambda x: x * torch.einsum("nchw,nchv->nch", x, x)[..., None]),
    "einsum, gram": rows(lambda x: torch.einsum("ntc,nsc,nsd->ntd", x, x, x) / 36),
    "einsum, three": call(lambda x: torch.einsum("nchw,nhw,nc->nchw", x, x.mean(1), x.mean((2, 3)))),
    "einsum, transposed": call(lambda x: torch.einsum("nchw->ncwh", x)),
    "einsum, sum": call(lambda x: x * torch.einsum("nchw->nhw", x)[:, None]),
    "tensordot": call(lambda x: x * torch.tensordot(x, x, ([1, 2, 3], [1, 2, 3])).sum() / 1000),
    "cross": rows(lambda x: torch.cross(x.unflatten(1, (12, 3)), x.cos().unflatten(1, (12, 3)), 2).flatten(1, 2)),
    "linalg.cross of channels": rows(lambda x: x + torch.linalg.cross(x[..., :3], x[..., 3:6]).sum(-1, True)),
    "outer": call(lambda x: x * torch.outer(x[0, 0, 0], x[0, 0, 1])),
    "matmul": rows(lambda x: (x @ x.mT).softmax(-1) @ x),
    "addbmm": rows(lambda x: torch.baddbmm(x, x @ x.mT, x) / 99),
    "addmm": rows(lambda x: torch.stack([torch.addmm(x[0], x[0] @ x[0].T, x[0])] * 2) / 99),
    "chain_matmul": rows(lambda x: torch.stack([torch.linalg.multi_dot([x[0], x[0].T, x[0]])] * 2) / 99),
    "mv": rows(lambda x: x * torch.mv(x[0], x[0, 0])[:, None]),
    "dot": call(lambda x: x * torch.dot(x[0, :, 0, 0], x[0, :, 1, 1])),
    "inner": rows(lambda x: x * torch.inner(x, x[0, :1]) / 9),
    "kron": call(lambda x: x * torch.kron(x[0, 0, :2, :2], x[0, 0, :3, :3])),
    "bilinear": lambda: between(
        lambda s, x: s.b(x.movedim(1, -1).contiguous(), x.movedim(1, -1).cos()).movedim(-1, 1), b=nn.Bilinear(8, 8, 8)
    ),
    "scaled_dot_product": rows(lambda x: F.scaled_dot_product_attention(x, x, x)),
    "sdpa, causal": rows(lambda x: F.scaled_dot_product_attention(x, x.cos(), x, is_causal=True)),
    "sdpa, mask": rows(
        lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=torch.ones(36, 36, dtype=torch.bool).tril())
    ),
}

TABLES = {
    "one_hot": call(lambda x: x * F.one_hot(positions(x, 6), 6)[:1].to(x)),
    "Embedding": lambda: between(lambda s, x: x + s.e(positions(x, 6)).T[:, :, None].to(x), e=nn.Embedding(6, 8)),
    "Embedding, padding": lambda: between(
        lambda s, x: x + s.e(positions(x, 6)).T[:, :, None], e=nn.Embedding(6, 8, padding_idx=0)
    ),
    **{
        f"EmbeddingBag, {mode}": lambda mode=mode: between(
            lambda s, x: x + s.e(positions(x, 6, 2)).T[:, :, None], e=nn.EmbeddingBag(6, 8, mode=mode)
        )
        for mode in ("sum", "mean", "max")
    },
}

LOSSES = {
    name: call(lambda x, f=f: x * f(x, x.cos().detach()))
    for name, f in {
        "mse_loss": F.mse_loss,
        "l1_loss": F.l1_loss,
        "smooth_l1_loss": F.smooth_l1_loss,
        "huber_loss": F.huber_loss,
        "soft_margin_loss": F.soft_margin_loss,
        "poisson_nll_loss": F.poisson_nll_loss,
        "kl_div": lambda x, y: F.kl_div(x, y.softmax(1), reduction="batchmean"),
        "bce": lambda x, y: F.binary_cross_entropy(x.sigmoid(), y.sigmoid()),
        "bce with logits": lambda x, y: F.binary_cross_entropy_with_logits(x, y.sigmoid()),
        "gaussian_nll_loss": lambda x, y: F.gaussian_nll_loss(x, y, y.abs() + 0.1),
        "cross_entropy, soft": lambda x, y: F.cross_entropy(x, y.softmax(1)),
        "triplet": lambda x, y: F.triplet_margin_loss(x, y, y + 1),
        "hinge": lambda x, y: F.hinge_embedding_loss(x, y.sign()),
        "margin": lambda x, y: F.margin_ranking_loss(x, y, y.sign()),
    }.items()
}
LOSSES |= {
    "nll_loss": call(lambda x: x * F.nll_loss(x.log_softmax(1), torch.ones(2, 6, 6, dtype=torch.int64))),
    "multi_margin": rows(lambda x: x * F.multi_margin_loss(x[0], torch.ones(36, dtype=torch.int64))),
    "cosine_embedding": rows(lambda x: x * F.cosine_embedding_loss(x[0], x[0].cos(), torch.ones(36).to(x))),
    "ctc": rows(
        lambda x: (
            x
            * F.ctc_loss(
                x.transpose(0, 1).log_softmax(-1),
                torch.ones(2, 3, dtype=torch.int64),
                torch.tensor([36, 36]),
                torch.tensor([3, 3]),
            )
        )
    ),
}

FOURIER = {
    "fft2": call(lambda x: torch.fft.fft2(x).real),
    "rfft2": call(lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * 2)),
    "fftn of channels": call(lambda x: torch.fft.fft(x, dim=1).abs()),
    "fftshift": call(lambda x: torch.fft.fftshift(torch.fft.fft2(x), (2, 3)).abs()),
    "polar": call(lambda x: torch.polar(x.abs(), x).real),
    "angle, conj": call(lambda x: torch.fft.fft2(x).conj().angle()),
    "view_as_real": call(lambda x: torch.view_as_real(torch.fft.rfft2(x)).sum(-1)),
}

GROUPS = {
    "activation": ACTIVATIONS,
    "norm": NORMS,
    "pool": POOLS,
    "pad": PADS,
    "resize": RESIZES,
    "move": MOVES,
    "pick": PICKS,
    "reduce": REDUCTIONS,
    "length": LENGTHS,
    "product": PRODUCTS,
    "table": TABLES,
    "loss": LOSSES,
    "fourier": FOURIER,
}
TABLE = {f"{kind}: {name}": build for kind, rows_ in GROUPS.items() for name, build in rows_.items()}

# Fewer channels than eight, each of several slots.
UNITS = {
    "GLU": 4,
    "GroupNorm": 4,
    "GroupNorm without affine": 4,
    "group_norm": 4,
    "PixelShuffle": 2,
    "ChannelShuffle": 4,
    "unflatten": 4,
    "tensor_split": 4,
    "hsplit": 4,
    "fliplr": 4,
}

# What cannot shrink, and words of the reason.
FROZEN = {
    "LocalResponseNorm": "mixes what lies along",
    "CrossMapLRN2d": "meets a tensor of fixed shape",
    "FractionalMaxPool2d": "no rule for operator",
    "index_fill of channels": "mixes what lies along",
    "masked_scatter": "no rule for operator",
    "gather of channels": "mixes what lies along",
    "repeat_interleave of channels by values": "no rule for operator repeat_interleave",
    "diagonal_scatter": "no rule for operator",
    "diff of channels": "at a constant position",
    "norm, nuc": "at a constant position",
    "norm, nuc of channels": "_linalg_svd",
    "matrix_norm of channels, nuc": "_linalg_svd",
    "matrix_norm of channels, 2": "_linalg_svd",
    "linalg.cross of channels": "mixes what lies along",
    "outer": "at a constant position",
    "kron": "at a constant position",
    "scaled_dot_product": "mul at",
    "sdpa, causal": "mul at",
    "sdpa, mask": "mul at",
    "nll_loss": "no rule for operator",
    "multi_margin": "no rule for operator",
    "ctc": "no rule for operator",
    "fftn of channels": "mixes what lies along",
}


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.filterwarnings("ignore")
def test_equals_its_twin_or_is_frozen(name):
    torch.manual_seed(0)
    model = randomized(TABLE[name]()).eval()
    inputs = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, inputs)
    short = name.partition(": ")[2]
    if short in FROZEN:
        assert FROZEN[short] in coupling.frozen["a"]
        return
    assert {g.name: g.size for g in coupling.prunable}["a"] == UNITS.get(short, 8), coupling.frozen
    plan = half_plan(coupling)
    with torch.no_grad():
        small = halp_fx.rewrite(model, plan, inputs, coupling=coupling)
        got, want = small(inputs), halp_fx.zero(model, plan, inputs, coupling=coupling)(inputs)
    assert small.a.out_channels == 4
    assert relative_error(got, want) <= 1e-9
    assert relative_error(model(inputs), want) > 1e-9, "the plan changed nothing: the comparison proves nothing"
