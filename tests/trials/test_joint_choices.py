"""Grouped layers in a row can shrink by whole groups or by positions in them: what suits one alone may leave nothing to
remove where they meet."""

from __future__ import annotations

import pytest
import torch
from oracle import Net, equals_twin_closely, random_plan, randomized
from torch import nn
from torch.nn import functional as F

import halp_fx


def grouped(a, b, groups, kernel=3):
    return nn.Conv2d(a, b, kernel, padding=kernel // 2, groups=groups)


class Reparametrised(nn.Module):
    """As a RepVGG block with groups before it is deployed."""

    def __init__(self, inputs, outputs, groups):
        super().__init__()
        self.identity = nn.BatchNorm2d(inputs) if inputs == outputs else None
        self.dense, self.point = grouped(inputs, outputs, groups), grouped(inputs, outputs, groups, 1)

    def forward(self, x):
        identity = 0 if self.identity is None else self.identity(x)
        return F.relu(self.dense(x) + self.point(x) + identity)


class SplitAttention(nn.Module):
    """As ResNeSt's own repository writes it."""

    def __init__(self, width, groups, radix):
        super().__init__()
        self.groups, self.radix = groups, radix
        self.conv = grouped(width, width * radix, groups * radix)
        self.squeeze, self.excite = grouped(width, 8, groups, 1), grouped(8, width * radix, groups, 1)

    def forward(self, x):
        x = F.relu(self.conv(x))
        batch, channels = x.shape[:2]
        parts = torch.split(x, channels // self.radix, 1)
        weights = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(sum(parts), 1))))
        weights = weights.view(batch, self.groups, self.radix, -1).transpose(1, 2).softmax(1).reshape(batch, -1, 1, 1)
        return sum(w * p for w, p in zip(torch.split(weights, channels // self.radix, 1), parts, strict=True))


def network(*layers, width):
    body = nn.Sequential(nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), *layers)
    return Net(lambda s, x: s.head(s.body(x).mean((2, 3))), body=body, head=nn.Linear(width, 4))


CASES = {
    "two convolutions": (lambda: (grouped(16, 32, 4), nn.SiLU(), grouped(32, 32, 4)), 32, {4, 8}),
    "three, of other numbers": (lambda: (grouped(16, 24, 4), grouped(24, 32, 2), grouped(32, 32, 2)), 32, {4, 6, 16}),
    "blocks": (lambda: (Reparametrised(16, 32, 4), Reparametrised(32, 32, 4)), 32, {4, 8}),
    "a group norm": (lambda: (grouped(16, 32, 4), nn.GroupNorm(2, 32)), 32, {4, 8}),
    "split attention": (lambda: (SplitAttention(16, 2, 2),), 16, {4, 8}),
    "split attention of one group": (lambda: (SplitAttention(16, 1, 4),), 16, {4, 8, 16}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_choice_that_leaves_one_channel_is_made_otherwise(name):
    layers, width, sizes = CASES[name]
    torch.manual_seed(0)
    model, x = randomized(network(*layers(), width=width)).eval(), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert not coupling.frozen.keys() - {"head"}
    assert {g.size for g in coupling.prunable} == sizes
    for seed in range(3):
        equals_twin_closely(model, random_plan(coupling, seed), x, coupling)


def test_a_choice_that_leaves_channels_stays():
    """A depthwise layer loses groups, and one of many groups of few channels does."""
    layers = (grouped(16, 16, 16), grouped(16, 32, 8), grouped(32, 32, 8))
    coupling = halp_fx.channel_groups(network(*layers, width=32), torch.randn(2, 3, 5, 5))
    assert {g.size for g in coupling.prunable} == {8}


class BlockGates(nn.Module):
    """Griffin's gates: a matrix for each block of channels, and a rate for every channel of all blocks."""

    def __init__(self, blocks=4, each=5):
        super().__init__()
        self.blocks, self.wide = blocks, nn.Conv2d(16, blocks * each, 1)
        self.gates = nn.Parameter(torch.randn(blocks, each, each))
        self.rates = nn.Parameter(torch.rand(blocks * each))

    def forward(self, x):
        x = self.wide(x).flatten(2).transpose(1, 2)
        gates = torch.einsum("bnhi,hij->bnhj", x.unflatten(-1, (self.blocks, -1)), self.gates).flatten(2)
        return (x * torch.exp(-gates.sigmoid() * self.rates)).transpose(1, 2)[..., None]


def test_of_two_widths_along_one_dimension_the_one_goes_that_leaves_more():
    torch.manual_seed(0)
    model = randomized(network(BlockGates(), width=20)).eval()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable} == {"body.0": 16, "body.2.wide": 4}
    for seed in range(3):
        equals_twin_closely(model, random_plan(coupling, seed), x, coupling)


class Banks(nn.Module):
    """A bank of filters for each channel of the input, which stays, and a second one for each of the first's."""

    def __init__(self, banks, deconvolution=False):
        super().__init__()
        kind = nn.ConvTranspose2d if deconvolution else nn.Conv2d
        self.first, self.norm = kind(3, 3 * banks, 3, padding=1, groups=3), nn.BatchNorm2d(3 * banks)
        self.second, self.head = nn.Conv2d(3 * banks, 6 * banks, 1, groups=3 * banks), nn.Linear(6 * banks, 4)

    def forward(self, x):
        return self.head(F.relu(self.second(F.relu(self.norm(self.first(x))))).mean((2, 3)))


@pytest.mark.parametrize(
    ("banks", "deconvolution", "free"), [(8, False, "first"), (8, True, "first"), (1, False, "second")]
)
def test_filters_of_each_channel_of_the_input_go_at_the_same_places(banks, deconvolution, free):
    torch.manual_seed(0)
    model = randomized(Banks(banks, deconvolution)).eval()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable} == {free: max(banks, 2)}
    for seed in range(3):
        small, _ = equals_twin_closely(model, random_plan(coupling, seed), x, coupling)
        assert small.first.groups == 3
    again = halp_fx.channel_groups(small, x)
    if again.prunable:
        equals_twin_closely(small, random_plan(again, 3), x, again)
