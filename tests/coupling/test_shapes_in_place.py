"""Operators that give the tensor itself another shape: what was before it keeps the one that it had."""

from __future__ import annotations

import pytest
import torch
from oracle import Net, equals_twin_closely, random_plan, randomized
from torch import nn

import halp_fx


def one(x):
    return x.unsqueeze_(1).sum(1)


def stacked(x):
    return torch.cat([x.sin().unsqueeze_(1), x.cos().unsqueeze_(1)], 1).softmax(1).prod(1)


def squeezed(x):
    return x.sin().mean((2, 3), keepdim=True).squeeze_(3).squeeze_(2)[..., None, None]


def turned(x):
    return x.sin().transpose_(1, 3).softmax(1).transpose(1, 3)


def swapped(x):
    return x.sin().swapaxes_(1, 2).cumsum(1).swapaxes(1, 2)


def matrix(x):
    return x.mean((2, 3)).t_().softmax(1).t_()[..., None, None]


@pytest.mark.parametrize("function", [one, stacked, squeezed, turned, swapped, matrix])
@pytest.mark.parametrize("layer", ["convolution", "linear"])
def test_a_shape_that_is_changed_in_place(function, layer):
    def forward(s, x):
        x = s.stem(x)
        x = x if layer == "convolution" else s.inner(x.mean((2, 3)))[..., None, None]
        return s.head(function(x).mean((2, 3)))

    model = Net(forward, stem=nn.Conv2d(3, 8, 1), inner=nn.Linear(8, 8), head=nn.Linear(8, 4))
    model, x = randomized(model).eval(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable}["inner" if layer == "linear" else "stem"] == 8
    for seed in range(2):
        equals_twin_closely(model, random_plan(coupling, seed), x, coupling)


class Reversible(nn.Module):
    """Gives back the memory of what it has read, as reversible networks do; or takes that of another tensor."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.stem, self.f, self.g = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        whole = self.stem(x)
        x1, x2 = (part.contiguous() for part in whole.chunk(2, 1))
        y1 = x1 + self.f(x2)
        y = torch.cat([y1, x2 + self.g(y1)], 1)
        if self.way == "given back":
            for tensor in (x1, x2, y1):
                tensor.set_()
            whole.data.set_()
        elif self.way == "taken":
            y = torch.zeros_like(whole).set_(y)
        return self.head(y.mean((2, 3)))


@pytest.mark.parametrize("way", ["given back", "taken"])
def test_memory_that_is_given_back(way):
    model, x = randomized(Reversible(way)).eval(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        coupling = halp_fx.channel_groups(model, x)
        assert {g.name: g.size for g in coupling.prunable} == {"stem": 8}, coupling.frozen
        for seed in range(2):
            equals_twin_closely(model, random_plan(coupling, seed), x, coupling)
