"""Structures after what users write, each at random widths against its zeroed twin."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_equals_twin, equals_twin_closely, half_plan, random_plan, randomized
from torch import nn
from torch.nn import functional as F

import halp_fx


class Experts(nn.Module):
    """A soft mixture of experts whose weights are stacked."""

    def __init__(self, width=8, hidden=12, experts=3):
        super().__init__()
        self.stem, self.gate, self.head = nn.Linear(3, width), nn.Linear(width, experts), nn.Linear(width, 4)
        self.up = nn.Parameter(torch.randn(experts, width, hidden))
        self.down = nn.Parameter(torch.randn(experts, hidden, width))
        self.bias = nn.Parameter(torch.randn(experts, hidden))

    def forward(self, x):
        x = self.stem(x)
        gates = self.gate(x.mean(1)).softmax(-1)
        hidden = F.gelu(torch.einsum("bnc,ech->benh", x, self.up) + self.bias[None, :, None])
        out = torch.einsum("benh,ehc->benc", hidden, self.down)
        return self.head((x + torch.einsum("benc,be->bnc", out, gates)).mean(1))


class Shuffled(nn.Module):
    """A convolution in groups and a shuffle with the number of groups, all in the model's own forward."""

    def __init__(self, width=16, groups=4):
        super().__init__()
        self.groups = groups
        self.stem, self.head = nn.Conv1d(3, width, 1), nn.Linear(width, 5)
        self.conv, self.mix = nn.Conv1d(width, width, 3, padding=1, groups=groups), nn.Conv1d(width, width, 1)
        self.squeeze, self.excite = nn.Linear(2 * width, 6), nn.Linear(6, width)

    def forward(self, x):
        x = self.stem(x.transpose(1, 2)).relu()
        b, c, n = x.shape
        stats = torch.cat([x.mean(2), x.std(2)], 1)
        x = x * self.excite(F.silu(self.squeeze(stats))).sigmoid().view(b, c, 1)
        y = self.conv(x).view(b, 4, c // 4, n).transpose(1, 2).reshape(b, c, n)
        return self.head((x + self.mix(y)).mean(2))


class Codes(nn.Module):
    """Soft codes by distance, whose number and width may shrink, of a sampled latent."""

    def __init__(self, latent=6, codes=10):
        super().__init__()
        self.latent = latent
        self.stats, self.code, self.up = nn.Linear(18, 2 * latent), nn.Embedding(codes, latent), nn.Linear(latent, 4)

    def forward(self, x):
        mean, spread = self.stats(x.flatten(1)).split(self.latent, 1)
        z = mean + (0.5 * spread).exp()
        return self.up(z + (-torch.cdist(z, self.code.weight)).softmax(1) @ self.code.weight)


class Kernels(nn.Module):
    """Every sample is convolved with kernels of its own, which a layer computes from it."""

    def __init__(self, width=8, size=3):
        super().__init__()
        self.size = size
        self.stem, self.kernels, self.head = nn.Linear(3, width), nn.Linear(width, width * size), nn.Linear(width, 4)

    def forward(self, x):
        x = self.stem(x).transpose(1, 2).relu()
        b, c, n = x.shape
        kernels = self.kernels(x.mean(2)).view(b * c, 1, self.size)
        y = F.conv1d(x.reshape(1, b * c, n), kernels, padding=self.size // 2, groups=b * c).view(b, c, n)
        return self.head((x + y).mean(2))


EXPECTED = {
    "kernels": (Kernels, {"stem": 8}),
    "codes": (Codes, {"stats": 6, "code": 10}),
    "stacked experts": (Experts, {"stem": 8, "up": 12}),
    "shuffled": (Shuffled, {"stem": 4, "squeeze": 6}),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_groups_and_twin(name):
    kind, groups = EXPECTED[name]
    torch.manual_seed(0)
    model, x = randomized(kind()).eval(), torch.randn(2, 6, 3, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable} == groups
    for seed in range(3):
        equals_twin_closely(model, random_plan(coupling, seed), x, coupling)
    assert_equals_twin(model, half_plan(coupling), x, coupling)
