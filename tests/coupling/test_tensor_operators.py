"""One small network per operator on tensors, as `test_operators` has one per layer."""

from __future__ import annotations

import pytest
import torch
import torchvision
from test_operators import Case, assert_right, between, tokens, weight, within
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations


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


def grouped(x):
    """Over the standard deviation of the channels two by two, as EvoNorm takes it."""
    y = x.unflatten(1, (-1, 2))
    return x / y.var((2, 3, 4), keepdim=True).add(1).sqrt().expand(y.shape).flatten(1, 2)


def shuffle(x, groups):
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


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


def deformed(groups, offset_groups, masked=False):
    """Offsets, masks and weights of several groups, and a layer behind."""
    layers = {"o": nn.Conv2d(8, 18 * offset_groups, 3, padding=1), "w": weight(8, 8 // groups, 3, 3), "bias": weight(8)}
    if masked:
        layers["m"] = nn.Conv2d(8, 9 * offset_groups, 3, padding=1)

    def forward(s, x):
        mask = s.m(x).sigmoid() if masked else None
        return torchvision.ops.deform_conv2d(x, s.o(x), s.w, s.bias, padding=1, mask=mask)

    return lambda: between(forward, **layers)


def deform(s, x):
    return torchvision.ops.deform_conv2d(x, s.o(x), s.w, s.bias, padding=1)


def regions(s, x):
    boxes = torch.tensor([[0, 1.0, 1, 6, 6], [1, 0, 0, 4, 5]], dtype=x.dtype)
    return torchvision.ops.roi_align(x, boxes, 4)


CASES = {
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
    "largest over channels": Case(lambda: between(lambda s, x: x * x.max(1, True)[0] + x.min(1, True)[0]), {"a": 8}),
    "which channel is the largest": Case(
        lambda: between(lambda s, x: x * x.max(1, True)[1]), {}, {"a": "gives an index"}
    ),
    "where in space it is the largest": Case(lambda: between(lambda s, x: x * x.max(2, True)[1]), {"a": 8}),
    "a hard choice of channels": Case(
        lambda: between(lambda s, x: x * F.one_hot(x.min(1)[1], 8).movedim(-1, 1)), {}, {"a": "gives an index"}
    ),
    "numbers of the channels": Case(
        lambda: between(lambda s, x: x * torch.ones_like(x).cumsum(1)), {}, {"a": "numbers the channels"}
    ),
    "numbers of the rows": Case(lambda: between(lambda s, x: x * torch.ones_like(x).cumsum(2)), {"a": 8}),
    "median": Case(lambda: between(lambda s, x: x * x.median(1, True)[0]), {}, {"a": ""}),
    "fft over space": Case(lambda: between(lambda s, x: torch.fft.irfft2(torch.fft.rfft2(x).abs())), {"a": 8}),
    "complex": Case(lambda: between(lambda s, x: torch.complex(x, x.cos()).abs()), {"a": 8}),
    "view_as_complex": Case(
        lambda: between(lambda s, x: torch.view_as_complex(torch.stack([x, x.cos()], -1)).abs()), {"a": 8}
    ),
    "grid_sample, affine_grid": Case(lambda: between(affine), {"a": 8}),
    "deform_conv2d, depthwise": Case(deformed(8, 1), {"a": 8}, {"o": "an offset for every"}),
    "deform_conv2d, groups": Case(deformed(2, 1), {"a": 4, "w": 4}, {"o": "an offset for every"}),
    "deform_conv2d, two offsets": Case(deformed(1, 2, True), {"a": 4, "w": 8}, {"o": "an offset", "m": "an offset"}),
    "deform_conv2d, four offsets": Case(deformed(1, 4, True), {"a": 4, "w": 8}),
    "deform_conv2d, groups and offsets": Case(deformed(4, 4), {"a": 4}),
    "deform_conv2d, every channel": Case(deformed(8, 8, True), {"a": 8}),
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
def test_tensor_operator(name):
    assert_right(CASES[name])


@pytest.mark.parametrize("mode", ["warn", "error"])
def test_resizing_where_algorithms_are_to_be_deterministic(mode):
    """PyTorch writes bilinear resizing out in other operators then, but on a CPU."""
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode(mode)
    try:
        assert_right(CASES["interpolation"])
        assert torch.get_deterministic_debug_mode() == {"warn": 1, "error": 2}[mode]
    finally:
        torch.set_deterministic_debug_mode(before)
