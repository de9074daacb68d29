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


def weight(*shape):
    return nn.Parameter(torch.randn(shape))


def scattered(x):
    """Rows of an image written among those of words, where a mask says (LLaVA)."""
    mask = (torch.arange(x.shape[1]) % 3 == 0).expand(len(x), -1)
    return x.masked_scatter(mask.unsqueeze(-1).expand_as(x), x.cos()[:, 5:])


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
    "divided by weights": lambda: between(
        lambda s, x: x.remainder(s.p) + x.fmod(s.p) + torch.addcdiv(x, x, s.q) + torch.floor_divide(x, s.q),
        p=weight(8, 1, 1),
        q=weight(8, 1, 1),
    ),
    "logarithms and powers of weights": lambda: between(
        lambda s, x: x + s.p.square().log() + torch.xlogy(x, s.q.abs()) + s.q.square() ** -0.5 + torch.pow(2.0, s.p),
        p=weight(8, 1, 1),
        q=weight(8, 1, 1),
    ),
    "logarithm of channels": lambda: between(lambda s, x: s.b(x).abs().log(), b=nn.Conv2d(8, 8, 1)),
    "remainder, fmod": call(lambda x: x.remainder(0.7) + x.fmod(0.3)),
    "maximum, fmax": call(lambda x: torch.maximum(x, x.cos()) + torch.fmax(x, x.sin())),
    "an operand that is a tensor": call(
        lambda x: torch.rsub(x, x.cos()) + (2 - x).masked_fill(x > 1, torch.tensor(0.5, dtype=x.dtype))
    ),
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
    "masked_scatter of rows": rows(scattered),
    "sum_to_size": call(lambda x: x + x.sum_to_size(2, 8, 1, 6)),
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

GROUPS = {
    "activation": ACTIVATIONS,
    "norm": NORMS,
    "pool": POOLS,
    "pad": PADS,
    "resize": RESIZES,
    "move": MOVES,
    "pick": PICKS,
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
    "sum_to_size": "a constant in the forward repeats its width",
    "CrossMapLRN2d": "resize_as_",
    "FractionalMaxPool2d": "no rule for operator",
    "index_fill of channels": "mixes what lies along",
    "masked_scatter": "a mask of masked_scatter",
    "gather of channels": "mixes what lies along",
    "repeat_interleave of channels by values": "no rule for operator repeat_interleave",
    "diagonal_scatter": "no rule for operator",
}


def assert_equals_twin_or_is_frozen(build, size=8, reason=None):
    torch.manual_seed(0)
    model = randomized(build()).eval()
    inputs = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, inputs)
    if reason is not None:
        assert reason in coupling.frozen["a"]
        return
    assert {g.name: g.size for g in coupling.prunable}["a"] == size, coupling.frozen
    plan = half_plan(coupling)
    with torch.no_grad():
        small = halp_fx.rewrite(model, plan, inputs, coupling=coupling)
        got, want = small(inputs), halp_fx.zero(model, plan, inputs, coupling=coupling)(inputs)
    assert small.a.out_channels == 4
    assert relative_error(got, want) <= 1e-9
    assert relative_error(model(inputs), want) > 1e-9, "the plan changed nothing: the comparison proves nothing"


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.filterwarnings("ignore")
def test_equals_its_twin_or_is_frozen(name):
    short = name.partition(": ")[2]
    assert_equals_twin_or_is_frozen(TABLE[name], UNITS.get(short, 8), FROZEN.get(short))
