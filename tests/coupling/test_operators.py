"""One small network per operator: the group around it can shrink, and the result equals the zeroed twin."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest
import torch
import torchvision
from oracle import Net, assert_equals_twin, half_plan, randomized
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import halp_fx


def grouped(x):
    """Over the standard deviation of the channels two by two, as EvoNorm takes it."""
    y = x.unflatten(1, (-1, 2))
    return x / y.var((2, 3, 4), keepdim=True).add(1).sqrt().expand(y.shape).flatten(1, 2)


def between(function, inputs=8, outputs=8, **layers):
    """A convolution `a`, then `function(self, a(x))`, then a convolution `c`."""
    return Net(lambda s, x: s.c(function(s, s.a(x))), a=nn.Conv2d(3, inputs, 1), c=nn.Conv2d(outputs, 2, 1), **layers)


def within(layer, inputs=8, outputs=8):
    return between(lambda s, x: s.b(x), inputs, outputs, b=layer)


def tokens(function, inputs=8, outputs=8, **layers):
    """A linear layer `a` on the pixels as tokens (N, 64, 3), `function(self, a(x))`, a linear layer `c`."""
    return Net(
        lambda s, x: s.c(function(s, s.a(x.flatten(2).transpose(1, 2)))),
        a=nn.Linear(3, inputs),
        c=nn.Linear(outputs, 2),
        **layers,
    )


def weight(*shape):
    return nn.Parameter(torch.randn(shape))


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    groups: Mapping[str, int]
    frozen: Mapping[str, str] = field(default_factory=dict)
    shape: tuple[int, ...] = (2, 3, 8, 8)


def conv_of(dims, **kwargs):
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    return Case(
        lambda: nn.Sequential(kind(3, 8, 3, padding=1), kind(8, 12, 3, **kwargs), nn.ReLU(), kind(12, 2, 1)),
        {"0": 8, "1": 12},
        shape=(2, 3, *(6,) * dims),
    )


def transposed_of(dims):
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    back = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    return Case(
        lambda: nn.Sequential(kind(3, 8, 1), back(8, 12, 2, 2), nn.ReLU(), kind(12, 2, 1)),
        {"0": 8, "1": 12},
        shape=(2, 3, *(4,) * dims),
    )


class WeightStandardised(nn.Conv2d):
    def forward(self, x):
        flat = self.weight.flatten(1)
        w = (self.weight - flat.mean(1).view(-1, 1, 1, 1)) / (flat.std(1).view(-1, 1, 1, 1) + 1e-3)
        return F.conv2d(x, w, self.bias)


class BatchNormStandardised(nn.Conv2d):
    """As timm's StdConv2d: the weight is normalised by a batch norm over its rows."""

    def forward(self, x):
        w = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True)
        return F.conv2d(x, w.reshape_as(self.weight), self.bias)


def by_hand(q, k, v):
    return (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v


class SelfAttention(nn.Module):
    """Heads of size 4, their number from a shape."""

    def __init__(self, fused):
        super().__init__()
        self.fused, self.qkv, self.out = fused, nn.Linear(8, 48), nn.Linear(16, 8)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, 4)).permute(2, 0, 3, 1, 4)
        attend = F.scaled_dot_product_attention if self.fused else by_hand
        mixed = attend(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


class ChannelAttention(nn.Module):
    """CBAM: gates from the mean and the maximum over space, then over channels."""

    def __init__(self, channels):
        super().__init__()
        self.mlp = nn.Sequential(nn.Conv2d(channels, 4, 1), nn.ReLU(), nn.Conv2d(4, channels, 1))
        self.space = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x):
        x = x * (self.mlp(x.mean((2, 3), True)) + self.mlp(x.amax((2, 3), True))).sigmoid()
        return x * self.space(torch.cat([x.mean(1, True), x.max(1, True)[0]], 1)).sigmoid()


class Floats(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = torch.ao.nn.quantized.FloatFunctional()

    def forward(self, x):
        return self.f.mul(self.f.add_relu(x, x.cos()), self.f.mul_scalar(self.f.cat([x, x], 0)[: len(x)], 2.0))


def shuffle(x, groups):
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def contracted(x):
    """A gate from a sum over pixels."""
    return torch.einsum("nchw,nchw->nc", x, x.sin())[:, :, None, None] * x


def written(x):
    """A fresh tensor of x's shape that x is written into."""
    y = x.new_zeros(x.shape)
    y[:, :, ::2] = x[:, :, ::2]
    return y


def masked(x):
    mask = torch.zeros_like(x, dtype=torch.bool)
    mask[..., 3:] = True
    return x.masked_fill(mask, 0.5).where(x > -1, torch.zeros_like(x))


def tied():
    """Two convolutions with one weight, and so the same channels on both sides."""
    model = between(
        lambda s, x: s.b2(s.a2(s.b(x).relu())),
        b=nn.Conv2d(8, 6, 1),
        a2=nn.Conv2d(6, 8, 1),
        b2=nn.Conv2d(8, 6, 1),
        outputs=6,
    )
    model.b2.weight = model.b.weight
    return model


def eca(s, x):
    gate = s.k(x.mean((2, 3)).unsqueeze(1)).squeeze(1)
    return x * gate.sigmoid()[:, :, None, None]


def affine(s, x):
    theta = torch.eye(2, 3, dtype=x.dtype).expand(len(x), 2, 3) * 0.9
    return F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), align_corners=False)


def deform(s, x):
    return torchvision.ops.deform_conv2d(x, s.o(x), s.w, s.bias, padding=1)


def regions(s, x):
    boxes = torch.tensor([[0, 1.0, 1, 6, 6], [1, 0, 0, 4, 5]], dtype=x.dtype)
    return torchvision.ops.roi_align(x, boxes, 4)


CASES = {
    "conv1d": conv_of(1),
    "conv2d": conv_of(2, dilation=2),
    "conv3d": conv_of(3, stride=2),
    "transposed conv1d": transposed_of(1),
    "transposed conv2d": transposed_of(2),
    "transposed conv3d": transposed_of(3),
    "depthwise conv1d": Case(
        lambda: nn.Sequential(nn.Conv1d(3, 8, 1), nn.Conv1d(8, 8, 3, groups=8), nn.Conv1d(8, 2, 1)),
        {"0": 8},
        shape=(2, 3, 8),
    ),
    "depthwise conv3d": Case(
        lambda: nn.Sequential(nn.Conv3d(3, 8, 1), nn.Conv3d(8, 8, 3, groups=8), nn.Conv3d(8, 2, 1)),
        {"0": 8},
        shape=(2, 3, 4, 4, 4),
    ),
    "depth multiplier": Case(lambda: within(nn.Conv2d(8, 16, 3, groups=8), 8, 16), {"a": 8}),
    "groups == out < in": Case(lambda: within(nn.Conv2d(16, 8, 3, groups=8), 16, 8), {"a": 8}),
    "groups, as many in as out": Case(lambda: within(nn.Conv2d(16, 16, 3, groups=2), 16, 16), {"a": 8, "b": 8}),
    "transposed depthwise": Case(lambda: within(nn.ConvTranspose2d(8, 8, 2, 2, groups=8)), {"a": 8}),
    "transposed groups: whole": Case(lambda: within(nn.ConvTranspose2d(16, 16, 2, 2, groups=8), 16, 16), {"a": 8}),
    "transposed groups: positions": Case(
        lambda: within(nn.ConvTranspose2d(16, 12, 2, 2, groups=2), 16, 12), {"a": 8, "b": 6}
    ),
    "linear": Case(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 6), nn.Linear(6, 2)),
        {"1": 8, "3": 6},
    ),
    "linear after flatten": Case(
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 2)), {"0": 8}
    ),
    "bilinear": Case(lambda: tokens(lambda s, x: s.b(x, x.cos()), outputs=6, b=nn.Bilinear(8, 8, 6)), {"a": 8, "b": 6}),
    "batch norm": Case(lambda: within(nn.BatchNorm2d(8)), {"a": 8}),
    "batch norm without parameters": Case(lambda: within(nn.BatchNorm2d(8, affine=False)), {"a": 8}),
    "layer norm": Case(lambda: tokens(lambda s, x: s.n(x), n=nn.LayerNorm(8)), {"a": 8}),
    "group norm": Case(lambda: within(nn.GroupNorm(2, 8)), {"a": 4}),
    "instance norm": Case(lambda: within(nn.InstanceNorm2d(8, affine=True)), {"a": 8}),
    "instance norm with statistics": Case(
        lambda: within(nn.InstanceNorm2d(8, affine=True, track_running_stats=True)), {"a": 8}
    ),
    "instance norm without parameters": Case(lambda: within(nn.InstanceNorm2d(8)), {"a": 8}),
    "rms norm": Case(lambda: tokens(lambda s, x: s.n(x), n=nn.RMSNorm(8)), {"a": 8}),
    "frozen batch norm": Case(lambda: within(torchvision.ops.FrozenBatchNorm2d(8)), {"a": 8}),
    "local response norm": Case(lambda: within(nn.LocalResponseNorm(3)), {}, {"a": "mixes what lies along"}),
    "prelu": Case(lambda: within(nn.PReLU(8)), {"a": 8}),
    "prelu with one slope": Case(lambda: within(nn.PReLU()), {"a": 8}),
    "embedding": Case(
        lambda: Net(lambda s, x: s.c(s.e((x > 0).long()).relu()), e=nn.Embedding(2, 8), c=nn.Linear(8, 2)),
        {"e": 8},
    ),
    "embedding bag": Case(
        lambda: Net(
            lambda s, x: s.c(s.e((x > 0).long().flatten(1)).relu()), e=nn.EmbeddingBag(2, 8), c=nn.Linear(8, 2)
        ),
        {"e": 8},
    ),
    "attention by hand": Case(
        lambda: tokens(lambda s, x: s.t(x), t=SelfAttention(False)), {"a": 8, "t.qkv": 4, "t.out": 8}
    ),
    "attention, fused": Case(
        lambda: tokens(lambda s, x: s.t(x), t=SelfAttention(True)), {"a": 8, "t.qkv": 4, "t.out": 8}
    ),
    "multi-head attention": Case(
        lambda: tokens(
            lambda s, x: s.m(x, x, x)[0], m=nn.MultiheadAttention(8, 2, batch_first=True), inputs=8, outputs=8
        ),
        {"a": 2, "m.out_proj": 8},
    ),
    "transformer layer": Case(
        lambda: tokens(lambda s, x: s.m(x), m=nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)),
        {"a": 2, "m.linear1": 16},
    ),
    "einsum": Case(lambda: between(lambda s, x: contracted(x)), {"a": 8}),
    "einsum with a parameter": Case(
        lambda: between(lambda s, x: torch.einsum("nchw,cd->ndhw", x, s.w), w=weight(8, 8)), {"a": 8, "w": 8}
    ),
    "matmul": Case(lambda: tokens(lambda s, x: x @ s.w, w=weight(8, 8)), {"a": 8, "w": 8}),
    "bmm": Case(lambda: tokens(lambda s, x: torch.bmm(torch.bmm(x, x.transpose(1, 2)), x)), {"a": 8}),
    "lstm": Case(
        lambda: tokens(lambda s, x: s.r(x)[0], outputs=6, r=nn.LSTM(8, 6, batch_first=True)), {"a": 8, "r": 6}
    ),
    "lstm, last state": Case(
        lambda: tokens(lambda s, x: s.r(x)[1][0][-1], outputs=6, r=nn.LSTM(8, 6, batch_first=True)), {"a": 8, "r": 6}
    ),
    "lstm, two layers": Case(
        lambda: tokens(lambda s, x: s.r(x)[0], outputs=6, r=nn.LSTM(8, 6, 2, batch_first=True)), {"a": 8, "r": 6}
    ),
    "lstm, bidirectional": Case(
        lambda: tokens(lambda s, x: s.r(x)[0], outputs=12, r=nn.LSTM(8, 6, bidirectional=True)), {"a": 8, "r": 6}
    ),
    "lstm, projected": Case(
        lambda: tokens(lambda s, x: s.r(x)[0], outputs=4, r=nn.LSTM(8, 6, proj_size=4)), {"a": 8, "r": 4, "r:1": 6}
    ),
    "lstm cell": Case(lambda: tokens(lambda s, x: s.r(x[:, 0])[0], outputs=6, r=nn.LSTMCell(8, 6)), {"a": 8, "r": 6}),
    "gru": Case(lambda: tokens(lambda s, x: s.r(x)[0], outputs=6, r=nn.GRU(8, 6, batch_first=True)), {"a": 8, "r": 6}),
    "rnn": Case(lambda: tokens(lambda s, x: s.r(x)[0], outputs=6, r=nn.RNN(8, 6, batch_first=True)), {"a": 8, "r": 6}),
    "a single channel meets a split dimension": Case(
        lambda: between(lambda s, x: (x.unflatten(1, (-1, 2)) * s.m(x)[:, None]).flatten(1, 2), m=nn.Conv2d(8, 1, 1)),
        {"a": 4},
    ),
    "a statistic per group, expanded": Case(lambda: between(lambda s, x: grouped(x)), {"a": 4}),
    "layer scale": Case(lambda: between(lambda s, x: x * s.g, g=weight(8, 1, 1)), {"a": 8}),
    "layer scale with all dimensions": Case(lambda: between(lambda s, x: x * s.g, g=weight(1, 8, 1, 1)), {"a": 8}),
    "layer scale, a vector": Case(lambda: between(lambda s, x: x * s.g[:, None, None], g=weight(8)), {"a": 8}),
    "layer scale on tokens": Case(lambda: tokens(lambda s, x: x * s.g, g=weight(8)), {"a": 8}),
    "positional embedding": Case(lambda: tokens(lambda s, x: x + s.p, p=weight(1, 64, 8)), {"a": 8}),
    "positional embedding, an image": Case(lambda: between(lambda s, x: x + s.p, p=weight(1, 8, 8, 8)), {"a": 8}),
    "class token": Case(
        lambda: tokens(lambda s, x: torch.cat([s.t.expand(len(x), -1, -1), x], 1)[:, 0] + x.mean(1), t=weight(1, 1, 8)),
        {"a": 8},
    ),
    "where": Case(lambda: between(lambda s, x: torch.where(x > 0, x, s.g * x), g=weight(8, 1, 1)), {"a": 8}),
    "cat": Case(
        lambda: between(lambda s, x: torch.cat([x, s.b(x), x], 1), 8, 20, b=nn.Conv2d(8, 4, 1)), {"a": 8, "b": 4}
    ),
    "stack": Case(lambda: between(lambda s, x: torch.stack([x, x.cos()], 1).sum(1)), {"a": 8}),
    "stack and flatten": Case(
        lambda: between(lambda s, x: torch.stack([x, x.cos()], 2).flatten(1, 2), 8, 16), {"a": 8}
    ),
    "split": Case(lambda: between(lambda s, x: torch.add(*x.split(x.shape[1] // 2, 1)), 8, 4), {"a": 4}),
    "split at constants": Case(lambda: between(lambda s, x: x.split([2, 6], 1)[1], 8, 6), {}, {"a": "constant"}),
    "chunk": Case(lambda: between(lambda s, x: torch.mul(*x.chunk(2, 1)), 8, 4), {"a": 4}),
    "unbind": Case(lambda: between(lambda s, x: sum(x.unflatten(1, (2, -1)).unbind(1)), 8, 4), {"a": 4}),
    "slice at a constant": Case(lambda: between(lambda s, x: x[:, 2:6], 8, 4), {}, {"a": "constant"}),
    "slice of the batch": Case(lambda: between(lambda s, x: x[1:]), {"a": 8}),
    "strided slice of the channels": Case(lambda: between(lambda s, x: x[:, ::2], 8, 4), {"a": 4}),
    "strided slice of space": Case(lambda: between(lambda s, x: x[..., ::2, 1::2]), {"a": 8}),
    "index_select": Case(
        lambda: between(lambda s, x: x.index_select(1, torch.tensor([3, 1])), 8, 2), {}, {"a": "index"}
    ),
    "index by positions": Case(lambda: between(lambda s, x: x[:, :, torch.tensor([3, 1])]), {"a": 8}),
    "flip of channels": Case(lambda: between(lambda s, x: x.flip(1)), {"a": 8}),
    "roll of channels": Case(lambda: between(lambda s, x: x.roll(2, 1)), {}, {"a": "roll"}),
    "roll of space": Case(lambda: between(lambda s, x: x.roll((2, 1), (2, 3))), {"a": 8}),
    "channel shuffle": Case(lambda: between(lambda s, x: shuffle(x, 2)), {"a": 4}),
    "channel shuffle, a layer": Case(lambda: within(nn.ChannelShuffle(2)), {"a": 4}),
    "pixel shuffle": Case(lambda: within(nn.PixelShuffle(2), 8, 2), {"a": 2}),
    "pixel unshuffle": Case(lambda: within(nn.PixelUnshuffle(2), 8, 32), {"a": 8}),
    "padding": Case(lambda: between(lambda s, x: F.pad(x, (1, 0, 2, 1))), {"a": 8}),
    "padding by reflection": Case(lambda: between(lambda s, x: F.pad(x, (1, 1, 1, 1), "reflect")), {"a": 8}),
    "circular padding": Case(lambda: between(lambda s, x: F.pad(x, (1, 1, 1, 1), "circular")), {"a": 8}),
    "padding of channels": Case(lambda: between(lambda s, x: F.pad(x, (0, 0, 0, 0, 2, 2)), 8, 12), {"a": 8}),
    "unfold and fold": Case(
        lambda: between(lambda s, x: F.fold(F.unfold(x, 2, stride=2), (8, 8), 2, stride=2)), {"a": 8}
    ),
    "tensor unfold": Case(lambda: between(lambda s, x: x.unfold(2, 3, 1).sum(-1)), {"a": 8}),
    "repeat": Case(lambda: between(lambda s, x: x.repeat(1, 2, 1, 1), 8, 16), {"a": 8}),
    "repeat_interleave": Case(lambda: between(lambda s, x: x.repeat_interleave(2, 1), 8, 16), {"a": 8}),
    "repeat_interleave of space": Case(lambda: between(lambda s, x: x.repeat_interleave(2, 2)), {"a": 8}),
    "tile": Case(lambda: between(lambda s, x: x.tile(1, 2, 1, 1), 8, 16), {"a": 8}),
    "glu": Case(lambda: between(lambda s, x: F.glu(x, 1), 8, 4), {"a": 4}),
    "maxout": Case(lambda: between(lambda s, x: x.unflatten(1, (-1, 2)).amax(2), 8, 4), {"a": 4}),
    "cbam": Case(lambda: within(ChannelAttention(8)), {"a": 8, "b.mlp.0": 4}),
    "squeeze-excite": Case(lambda: within(torchvision.ops.SqueezeExcitation(8, 4)), {"a": 8, "b.fc1": 4}),
    "eca": Case(lambda: between(eca, k=nn.Conv1d(1, 1, 3, padding=1)), {"a": 8}),
    "interpolation": Case(lambda: between(lambda s, x: F.interpolate(x, scale_factor=2, mode="bilinear")), {"a": 8}),
    "interpolation, bicubic": Case(
        lambda: between(lambda s, x: F.interpolate(x, (5, 7), mode="bicubic", antialias=True)), {"a": 8}
    ),
    "pooling": Case(
        lambda: between(
            lambda s, x: (
                F.max_pool2d(x, 2) + F.avg_pool2d(x, 2) + F.adaptive_avg_pool2d(x, 4) + F.adaptive_max_pool2d(x, 4)
            )
        ),
        {"a": 8},
    ),
    "fractional and p-norm pooling": Case(lambda: between(lambda s, x: F.lp_pool2d(x.abs() + 0.1, 2, 2)), {"a": 8}),
    "pooling with indices": Case(
        lambda: between(lambda s, x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2)), {"a": 8}
    ),
    "FloatFunctional": Case(lambda: within(Floats()), {"a": 8}),
    "functional calls": Case(
        lambda: between(lambda s, x: F.conv2d(x, s.w, s.bias), w=weight(8, 8, 3, 3), bias=weight(8)), {"a": 8, "w": 8}
    ),
    "called twice": Case(lambda: between(lambda s, x: s.b(s.b(x).relu()), b=nn.Conv2d(8, 8, 1)), {"a": 8}),
    "tied weights": Case(tied, {"a": 8, "b": 6}),
    "weight norm": Case(
        lambda: within(parametrizations.weight_norm(nn.Conv2d(8, 8, 3))), {"a": 8, "b.parametrizations.weight": 8}
    ),
    "spectral norm": Case(
        lambda: within(parametrizations.spectral_norm(nn.Conv2d(8, 8, 3))), {"a": 8, "b.parametrizations.weight": 8}
    ),
    "old weight norm": Case(lambda: within(torch.nn.utils.weight_norm(nn.Conv2d(8, 8, 3))), {"a": 8, "b": 8}),
    "old spectral norm": Case(lambda: within(torch.nn.utils.spectral_norm(nn.Conv2d(8, 8, 3))), {"a": 8, "b": 8}),
    "orthogonal": Case(
        lambda: tokens(lambda s, x: s.b(x), b=parametrizations.orthogonal(nn.Linear(8, 8))),
        {"b.parametrizations.weight.0": 8},
        {"a": "does not shrink along"},
    ),
    "weight-standardised": Case(lambda: within(WeightStandardised(8, 8, 3)), {"a": 8, "b": 8}),
    "weight-standardised by batch norm": Case(lambda: within(BatchNormStandardised(8, 8, 3)), {"a": 8, "b": 8}),
    "new_zeros": Case(lambda: between(lambda s, x: written(x)), {"a": 8}),
    "zeros of a shape": Case(lambda: between(lambda s, x: x + torch.ones(x.shape[1], 1, 1, dtype=x.dtype)), {"a": 8}),
    "zeros_like and masks": Case(lambda: between(lambda s, x: masked(x)), {"a": 8}),
    "index_put_": Case(
        lambda: between(lambda s, x: x.clone().index_put_((torch.tensor([0]),), torch.tensor(1.0, dtype=x.dtype))),
        {"a": 8},
    ),
    "cumsum over space": Case(lambda: between(lambda s, x: x.cumsum(2)), {"a": 8}),
    "cumsum over channels": Case(lambda: between(lambda s, x: x.cumsum(1)), {"a": 8}),
    "sort over channels": Case(lambda: between(lambda s, x: x.sort(1)[0]), {}, {"a": "sort"}),
    "sort over space": Case(lambda: between(lambda s, x: x.sort(2)[0]), {"a": 8}),
    "topk over channels": Case(lambda: between(lambda s, x: x.topk(2, 1)[0], 8, 2), {}, {"a": "topk"}),
    "softmax over channels": Case(lambda: between(lambda s, x: x.softmax(1)), {"a": 8}),
    "softmin and log_softmax": Case(lambda: between(lambda s, x: F.softmin(x, 1) + x.log_softmax(1)), {"a": 8}),
    "norm": Case(lambda: between(lambda s, x: x / x.norm(dim=1, keepdim=True)), {"a": 8}),
    "normalize": Case(lambda: between(lambda s, x: F.normalize(x, dim=1)), {"a": 8}),
    "cosine similarity": Case(lambda: between(lambda s, x: x * F.cosine_similarity(x, x.cos(), 1)[:, None]), {"a": 8}),
    "var and std": Case(lambda: between(lambda s, x: x * x.var(1, keepdim=True) + x.std(1, keepdim=True)), {"a": 8}),
    "logsumexp, prod": Case(lambda: between(lambda s, x: x * x.logsumexp(1, True) * x.cos().prod(1, True)), {"a": 8}),
    "argmax over channels": Case(lambda: between(lambda s, x: x * x.argmax(1, True)), {}, {"a": "argmax"}),
    "median": Case(lambda: between(lambda s, x: x * x.median(1, True)[0]), {}, {"a": ""}),
    "fft over space": Case(lambda: between(lambda s, x: torch.fft.irfft2(torch.fft.rfft2(x).abs())), {"a": 8}),
    "complex": Case(lambda: between(lambda s, x: torch.complex(x, x.cos()).abs()), {"a": 8}),
    "view_as_complex": Case(
        lambda: between(lambda s, x: torch.view_as_complex(torch.stack([x, x.cos()], -1)).abs()), {"a": 8}
    ),
    "grid_sample, affine_grid": Case(lambda: between(affine), {"a": 8}),
    "deform_conv2d": Case(
        lambda: between(deform, o=nn.Conv2d(8, 18, 3, padding=1), w=weight(8, 8, 3, 3), bias=weight(8)),
        {"a": 8, "w": 8},
    ),
    "roi_align": Case(lambda: between(regions), {"a": 8}),
    "dropout": Case(lambda: within(nn.Sequential(nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout())), {"a": 8}),
    "cdist": Case(
        lambda: tokens(lambda s, x: x * torch.cdist(x.cos(), x).sum(-1, keepdim=True)),
        {"a": 8},
    ),
    "scatter": Case(
        lambda: between(lambda s, x: x.scatter_add(1, torch.zeros(2, 8, 8, 8, dtype=torch.int64), x)),
        {},
        {"a": "scatter"},
    ),
    "gather": Case(
        lambda: between(lambda s, x: x.gather(1, torch.zeros(2, 8, 8, 8, dtype=torch.int64))), {}, {"a": "gather"}
    ),
    "movedim and swapaxes": Case(lambda: between(lambda s, x: x.movedim(1, -1).swapaxes(-1, 1)), {"a": 8}),
    "diff, tril": Case(lambda: between(lambda s, x: x.tril().diff(dim=-1)), {"a": 8}),
    "clamp, pow, lerp, addcmul": Case(
        lambda: between(lambda s, x: torch.addcmul(x.clamp(0), x, x).lerp(x.pow(2), 0.3)), {"a": 8}
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_operator(name):
    case = CASES[name]
    torch.manual_seed(0)
    model = randomized(case.build())
    inputs = torch.randn(case.shape, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, inputs)
    assert {g.name: g.size for g in coupling.prunable} == case.groups, coupling.frozen
    for group, words in case.frozen.items():
        assert words in coupling.frozen[group]
    if case.groups:
        assert_equals_twin(model, half_plan(coupling), inputs, coupling)
