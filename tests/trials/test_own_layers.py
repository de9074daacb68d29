"""Layers that users derive from PyTorch's: what these add to the attributes may stand for a width, as in any module."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_equals_twin, half_plan, random_plan, randomized
from torch import nn
from torch.nn import functional as F

import halp_fx


class Octave(nn.Conv2d):
    """Octave convolution: one weight, cut where fine and coarse channels meet."""

    def __init__(self, inputs, outputs, mode, coarse):
        super().__init__(inputs, outputs, 3, padding=1, bias=False)
        self.fine_in = inputs if mode == "first" else inputs - inputs // coarse
        self.fine_out = outputs if mode == "last" else outputs - outputs // coarse
        self.mode = mode

    def part(self, x, rows, columns):
        return F.conv2d(x, self.weight[rows, columns], None, padding=self.padding)

    def forward(self, fine, coarse=None):
        upper, lower = slice(0, self.fine_out), slice(self.fine_out, None)
        left, right = slice(0, self.fine_in), slice(self.fine_in, None)
        y, z = self.part(fine, upper, left), None
        if self.mode != "last":
            z = self.part(F.avg_pool2d(fine, 2), lower, left)
        if self.mode == "first":
            return y.relu(), z.relu()
        y = y + F.interpolate(self.part(coarse, upper, right), scale_factor=2)
        return (y.relu(), (z + self.part(coarse, lower, right)).relu()) if z is not None else y.relu()


class OctaveNet(nn.Module):
    def __init__(self, coarse):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        widths = ((8, 20, "first"), (20, 20, "norm"), (20, 28, "norm"), (28, 6, "last"))
        self.layers = nn.ModuleList(Octave(*layer, coarse) for layer in widths)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        found = (self.stem(x).relu(),)
        for layer in self.layers:
            found = layer(*found)
        return self.head(found.mean((2, 3)))


class Halved(nn.Linear):
    """A gated layer that knows where its gates begin."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, 2 * outputs)
        self.begin = outputs

    def forward(self, x):
        y = super().forward(x)
        return y[:, : self.begin] * y[:, self.begin :].sigmoid()


class Grouped(nn.BatchNorm1d):
    """A norm that looks at its channels in groups of a width that it holds."""

    def __init__(self, width, each):
        super().__init__(width)
        self.each = each

    def forward(self, x):
        y = super().forward(x)
        return y.view(len(x), -1, self.each).softmax(1).view(len(x), -1)


def checked(model, x, sizes, seeds=3):
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable} == sizes, coupling.frozen
    for plan in (half_plan(coupling), *(random_plan(coupling, seed) for seed in range(seeds))):
        assert_equals_twin(model, plan, x, coupling)


@pytest.mark.parametrize(
    ("coarse", "sizes"),
    [
        (2, {"stem": 8, "layers.0": 10, "layers.2": 14, "layers.3": 6}),
        (4, {"stem": 8, "layers.0": 5, "layers.2": 7, "layers.3": 6}),
    ],
)
def test_a_convolution_that_cuts_its_own_weight(coarse, sizes):
    torch.manual_seed(0)
    checked(randomized(OctaveNet(coarse)), torch.randn(1, 3, 8, 8, dtype=torch.float64), sizes)


def test_a_layer_that_cuts_its_own_result():
    torch.manual_seed(0)
    model = randomized(nn.Sequential(nn.Linear(6, 8), Halved(8, 12), nn.Linear(12, 4)))
    checked(model, torch.randn(5, 6, dtype=torch.float64), {"0": 8, "1": 12})


def test_a_norm_that_holds_the_width_of_its_groups():
    torch.manual_seed(0)
    model = randomized(nn.Sequential(nn.Linear(6, 12), Grouped(12, 4), nn.Linear(12, 4))).eval()
    checked(model, torch.randn(5, 6, dtype=torch.float64), {"0": 4}, seeds=0)
