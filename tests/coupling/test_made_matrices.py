"""Matrices that a forward puts together from parameters: blocks along a diagonal, triangles; and masks that pick."""

from __future__ import annotations

import pytest
import torch
from oracle import Net, assert_equals_twin, equals_twin_closely, half_plan, random_plan, randomized
from torch import nn
from torch.nn import functional as F

import halp_fx


def rows(function, **layers):
    """12 channels, `function` of their means, and a classifier for so many inputs as it has."""
    made = {"a": nn.Conv2d(3, 12, 1), "b": nn.LazyLinear(4)}
    net = Net(lambda s, x: s.b(function(s, s.a(x).relu().mean((2, 3)))), **made)
    for name, layer in layers.items():
        setattr(net, name, layer)
    net(torch.rand(1, 3, 2, 2))
    return net


def blocks(*shapes):
    return nn.ParameterList(nn.Parameter(torch.randn(shape)) for shape in shapes)


def mask(*picked, size=12):
    chosen = torch.zeros(size, dtype=torch.bool)
    chosen[list(picked)] = True
    return nn.Buffer(chosen)


def symmetric(s, x):
    return x @ (s.w.triu() + s.w.triu(1).T)


def skewed(s, x):
    return F.linear(x, s.w.tril(-1) - s.w.tril(-1).T)


CASES = {
    "blocks": (lambda s, x: x @ torch.block_diag(*s.w), lambda: {"w": blocks((4, 3), (6, 8), (2, 1))}, 12 + 12),
    "blocks and a row": (lambda s, x: x @ torch.block_diag(*s.w), lambda: {"w": blocks((11, 3), (5,))}, 12 + 8),
    "symmetric": (symmetric, lambda: {"w": nn.Parameter(torch.randn(12, 12))}, 12),
    "skew-symmetric": (skewed, lambda: {"w": nn.Parameter(torch.randn(12, 12))}, 12),
    "triangular": (lambda s, x: x @ s.w.tril(), lambda: {"w": nn.Parameter(torch.randn(12, 12))}, 12),
    "picked": (lambda s, x: x[:, s.m], lambda: {"m": mask(0, 2, 3, 7, 8, 11)}, 12),
    "picked, and those left": (
        lambda s, x: torch.cat([x[:, ~s.m].tanh(), x[:, s.m]], 1),
        lambda: {"m": mask(0, 2, 3, 7, 8, 11)},
        12,
    ),
    "picked from a weight": (
        lambda s, x: F.linear(x, s.w[s.m]),
        lambda: {"w": nn.Parameter(torch.randn(8, 12)), "m": mask(1, 2, 5, 6, 7, size=8)},
        12 + 5,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_made_of_parameters_shrinks(name):
    torch.manual_seed(0)
    function, layers, free = CASES[name]
    model, x = randomized(rows(function, **layers())).eval(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert sum(g.size for g in coupling.prunable) >= free - 2, coupling.frozen
    for seed in range(4):
        equals_twin_closely(model, random_plan(coupling, seed), x, coupling)
    assert_equals_twin(model, half_plan(coupling), x, coupling)


STAY = {
    "above the diagonal": lambda s, x: x @ s.w.tril(1),
    "less than the triangle": lambda s, x: x @ s.w.triu(2),
}


@pytest.mark.parametrize("name", STAY)
def test_triangles_beside_the_diagonal_stay(name):
    model = rows(STAY[name], w=nn.Parameter(torch.randn(12, 12))).eval()
    assert "a" in halp_fx.channel_groups(model, torch.randn(2, 3, 4, 4)).frozen
