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

import halp_fx


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


def contracted(x):
    """A gate from a sum over pixels."""
    return torch.einsum("nchw,nchw->nc", x, x.sin())[:, :, None, None] * x


def assert_right(case):
    """Groups as the case says; half of their channels gone equals the zeroed twin."""
    torch.manual_seed(0)
    model = randomized(case.build())
    inputs = torch.randn(case.shape, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, inputs)
    assert {g.name: g.size for g in coupling.prunable} == case.groups, coupling.frozen
    for group, words in case.frozen.items():
        assert words in coupling.frozen[group]
    if case.groups:
        assert_equals_twin(model, half_plan(coupling), inputs, coupling)


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
    "group norm: whole groups": Case(lambda: within(nn.GroupNorm(6, 12), 12, 12), {"a": 6}),
    "group norm of every channel": Case(lambda: within(nn.GroupNorm(8, 8)), {"a": 8}),
    "group norm of every channel, no affine": Case(lambda: within(nn.GroupNorm(8, 8, affine=False)), {"a": 8}),
    "group norm, pairs beside fours": Case(
        lambda: between(lambda s, x: s.two(x) + s.four(x), 32, 32, two=nn.GroupNorm(16, 32), four=nn.GroupNorm(8, 32)),
        {"a": 8},
    ),
    "group norm, whole groups beside positions": Case(
        lambda: between(lambda s, x: s.two(x) + s.four(x), two=nn.GroupNorm(4, 8), four=nn.GroupNorm(2, 8)), {"a": 2}
    ),
    "group norm over a concatenation": Case(
        lambda: between(
            lambda s, x: s.n(torch.cat([x, s.b(x)], 1)), 8, 16, b=nn.Conv2d(8, 8, 1), n=nn.GroupNorm(8, 16)
        ),
        {"a": 4, "b": 4},
    ),
    "instance norm": Case(lambda: within(nn.InstanceNorm2d(8, affine=True)), {"a": 8}),
    "instance norm with statistics": Case(
        lambda: within(nn.InstanceNorm2d(8, affine=True, track_running_stats=True)), {"a": 8}
    ),
    "instance norm without parameters": Case(lambda: within(nn.InstanceNorm2d(8)), {"a": 8}),
    "rms norm": Case(lambda: tokens(lambda s, x: s.n(x), n=nn.RMSNorm(8)), {"a": 8}),
    "frozen batch norm": Case(lambda: within(torchvision.ops.FrozenBatchNorm2d(8)), {"a": 8}),
    "local response norm": Case(lambda: within(nn.LocalResponseNorm(3)), {"a": 8}),
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
}


@pytest.mark.parametrize("name", CASES)
def test_operator(name):
    assert_right(CASES[name])
