"""Shortcuts without layers: zeros fill an image up to a number that the module holds (option A of ResNets)."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_equals_twin, half_plan, random_plan, randomized
from torch import nn

import halp_fx


def shortcut(x, planes, stride):
    x = F.avg_pool2d(x, 1, stride)
    return torch.cat([x, x.new_zeros(len(x), planes - x.shape[1], *x.shape[2:])], 1)


class Shortcut(nn.Module):
    def __init__(self, planes, stride):
        super().__init__()
        self.planes, self.stride = planes, stride

    def forward(self, x):
        return shortcut(x, self.planes, self.stride)


class Block(nn.Module):
    def __init__(self, down):
        super().__init__()
        self.down = down
        self.first, self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x):
        x = self.first(x)
        return self.last((self.b(self.a(x).relu()) + self.down(x)).relu())


@pytest.mark.parametrize("down", [Shortcut(16, 2), partial(shortcut, planes=16, stride=2)], ids=["module", "partial"])
def test_both_sides_of_a_filled_shortcut_shrink(down):
    torch.manual_seed(0)
    model, x = randomized(Block(down)), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable} == {"first": 8, "a": 16, "b": 8}, coupling.frozen
    for plan in (half_plan(coupling), *(random_plan(coupling, seed) for seed in range(3))):
        small = assert_equals_twin(model, plan, x, coupling)
        if isinstance(down, partial):
            assert small.down.keywords["planes"] == small.b.out_channels
    assert down.planes == 16 if isinstance(down, Shortcut) else down.keywords["planes"] == 16


class Padded(nn.Module):
    """As PyramidNet, whose stages grow by the same number of channels block by block: at one end or at both."""

    def __init__(self, width, more, both):
        super().__init__()
        self.pad = (0, 0, 0, 0, *((more // 2, more // 2) if both else (0, more)))
        self.conv = nn.Conv2d(width, width + more, 3, padding=1)

    def forward(self, x):
        return self.conv(x).relu() + F.pad(x, self.pad)


@pytest.mark.parametrize("both", [False, True])
def test_blocks_that_are_padded_by_equal_numbers(both):
    torch.manual_seed(0)
    blocks = [Padded(8 + 4 * i, 4, both) for i in range(4)]
    model = randomized(nn.Sequential(nn.Conv2d(3, 8, 1), *blocks, nn.Conv2d(24, 4, 1)))
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    each = 2 if both else 4
    assert {g.name: g.size for g in coupling.prunable} == {"0": 8, **{f"{i}.conv": each for i in range(1, 5)}}
    for plan in (half_plan(coupling), *(random_plan(coupling, seed) for seed in range(3))):
        small = assert_equals_twin(model, plan, x, coupling)
        assert small[1].pad[5] == small[1].conv.out_channels - small[0].out_channels if not both else True
