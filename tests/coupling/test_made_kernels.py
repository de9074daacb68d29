"""Kernels that a layer puts out for every pair of channels: one side of them may go, and where a number that the
program repeats stands for both, neither does."""

from __future__ import annotations

import pytest
import torch
from oracle import Net, equals_twin_closely, half_plan, random_plan, randomized
from torch import nn
from torch.nn import functional as F

import halp_fx


def literal(s, x):
    return s.maker(x.mean((2, 3)).mean(0)).view(8, 8, 3, 3)


def attribute(s, x):
    return s.maker(x.mean((2, 3)).mean(0)).view(s.width, s.width, 3, 3)


def two_attributes(s, x):
    return s.maker(x.mean((2, 3)).mean(0)).view(s.out, s.width, 3, 3)


def from_the_input(s, x):
    return s.maker(x.mean((2, 3)).mean(0)).view(-1, x.shape[1], 3, 3)


def transposed(s, x):
    return s.maker(x.mean((2, 3)).mean(0)).view(s.width, s.width, 3, 3).transpose(0, 1)


@pytest.mark.parametrize(
    ("kernel", "free"),
    [(literal, False), (attribute, False), (two_attributes, True), (from_the_input, True), (transposed, False)],
)
def test_a_kernel_for_every_pair_of_channels(kernel, free):
    def forward(s, x):
        x = s.stem(x).relu()
        return s.head(F.conv2d(x, kernel(s, x), padding=1).mean((2, 3)))

    torch.manual_seed(0)
    model = Net(forward, stem=nn.Conv2d(3, 8, 1), maker=nn.Linear(8, 8 * 8 * 9), head=nn.Linear(8, 4))
    model.width, model.out = 8, 8
    model, x = randomized(model).eval(), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    sizes = {g.name: g.size for g in coupling.prunable}
    assert sizes == ({"maker": 8} if free else {})
    if free:
        equals_twin_closely(model, half_plan(coupling), x, coupling)
        equals_twin_closely(model, random_plan(coupling, 1), x, coupling)
