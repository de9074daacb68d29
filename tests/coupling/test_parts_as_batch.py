"""Parts of the channels as further images of the batch: layers for all parts alike leave the same channels in each."""

from __future__ import annotations

import pytest
import torch
from oracle import Net, equals_twin_closely, half_plan, random_plan, randomized
from torch import nn

import halp_fx

PARTS = 4


def folded(function):
    """A function of (N * parts, C / parts, H, W)."""

    def forward(s, x):
        b, _, h, w = x.shape
        return function(s, x.reshape(b * PARTS, -1, h, w)).reshape(b, -1, h, w)

    return forward


def halves(s, x):
    """One half of each part beside the normalised other."""
    first, second = x.chunk(2, 1)
    return torch.cat([first * first.mean((2, 3), keepdim=True).sigmoid(), s.norm(second)], 1)


def gated_halves(s, x):
    """The same, with gates of learnt gains and offsets (shuffle attention, SA-Net)."""
    first, second = x.chunk(2, 1)
    means = first.mean((2, 3), keepdim=True)
    return torch.cat([first * (s.a * means + s.b).sigmoid(), second * (s.c * s.norm(second) + s.d).sigmoid()], 1)


def gates():
    return {n: nn.Parameter(torch.rand(1, 4, 1, 1)) for n in "abcd"}


CASES = {
    "gated halves of parts": (gated_halves, lambda: {"norm": nn.GroupNorm(4, 4), **gates()}, 4),
    "a gain a channel": (lambda s, x: x * s.a, lambda: {"a": nn.Parameter(torch.rand(1, 8, 1, 1))}, 8),
    "halves of parts": (halves, lambda: {"norm": nn.GroupNorm(4, 4)}, 4),
    "a norm a channel": (lambda s, x: s.norm(x), lambda: {"norm": nn.GroupNorm(8, 8)}, 8),
    "one of several": (lambda s, x: s.norm(x), lambda: {"norm": nn.GroupNorm(2, 8)}, 4),
    "one of all": (lambda s, x: s.norm(x), lambda: {"norm": nn.GroupNorm(1, 8)}, 8),
    "one of all, no affine": (lambda s, x: s.norm(x), lambda: {"norm": nn.GroupNorm(1, 8, affine=False)}, 8),
    "batch norm": (lambda s, x: s.norm(x), lambda: {"norm": nn.BatchNorm2d(8)}, 8),
    "instance norm": (lambda s, x: s.norm(x), lambda: {"norm": nn.InstanceNorm2d(8, affine=True)}, 8),
}


@pytest.mark.parametrize("name", CASES)
def test_parts_of_the_channels_as_images(name):
    function, layers, size = CASES[name]
    torch.manual_seed(0)
    run = folded(function)
    model = Net(lambda s, x: s.head(run(s, s.stem(x)).relu().mean((2, 3))), stem=nn.Conv2d(3, 32, 1), **layers())
    model.head = nn.Linear(32, 4)
    model, x = randomized(model).eval(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable} == {"stem": size}
    for plan in (half_plan(coupling), random_plan(coupling, 1), halp_fx.Plan({"stem": (size - 1,)})):
        equals_twin_closely(model, plan, x, coupling)
