"""Means that slide over channels (local response norms): each has the mean of those of its neighbours that stay."""

from __future__ import annotations

import pytest
import torch
from oracle import Net, assert_equals_twin, equals_twin_closely, half_plan, random_plan, randomized
from torch import nn
from torch.nn import functional as F

import halp_fx


def caffe(x, size=5):
    """As AlexNet in Caffe has it: the mean pads by itself."""
    mean = F.avg_pool3d(x.pow(2).unsqueeze(1), (size, 1, 1), 1, (size // 2, 0, 0)).squeeze(1)
    return x / mean.mul(0.5).add(1).pow(0.75)


SLID = {
    "two": nn.LocalResponseNorm(2, 0.5, 0.75, 1.0),
    "three": nn.LocalResponseNorm(3, 0.5, 0.75, 1.0),
    "four": nn.LocalResponseNorm(4, 0.5, 0.75, 1.0),
    "five": nn.LocalResponseNorm(5, 0.5, 0.75, 1.0),
    "caffe": caffe,
    "plane": lambda x: F.avg_pool2d(x.flatten(2).unsqueeze(1), (3, 1), 1, (1, 0)).squeeze(1).unflatten(2, x.shape[2:]),
}

STAY = {
    "shorter": lambda x: F.avg_pool3d(x[:, None], (3, 1, 1), 1)[:, 0],
    "steps": lambda x: F.avg_pool3d(x[:, None], (2, 1, 1), (2, 1, 1))[:, 0],
    "at one end": lambda x: F.avg_pool3d(F.pad(x[:, None], (0, 0, 0, 0, 0, 2)), (3, 1, 1), 1)[:, 0],
    "ends do not count": lambda x: F.avg_pool3d(x[:, None], (3, 1, 1), 1, (1, 0, 0), count_include_pad=False)[:, 0],
    "a divisor": lambda x: F.avg_pool3d(x[:, None], (3, 1, 1), 1, (1, 0, 0), divisor_override=2)[:, 0],
    "largest": lambda x: F.max_pool3d(x[:, None], (3, 1, 1), 1, (1, 0, 0))[:, 0],
}


def network(function):
    def forward(m, x):
        return m.head(m.second(function(m.first(x).relu())).relu().mean((2, 3)))

    torch.manual_seed(0)
    with torch.no_grad():
        width = function(torch.zeros(1, 16, 4, 4)).shape[1]
    layers = {"first": nn.Conv2d(3, 16, 3), "second": nn.Conv2d(width, 12, 3), "head": nn.Linear(12, 4)}
    model, x = randomized(Net(forward, **layers)).eval(), torch.randn(2, 3, 10, 10, dtype=torch.float64)
    return model, x, halp_fx.channel_groups(model, x)


@pytest.mark.parametrize("name", SLID)
def test_means_of_neighbours(name):
    model, x, coupling = network(SLID[name])
    assert {g.name: g.size for g in coupling.prunable} == {"first": 16, "second": 12}
    for seed in range(0 if name == "caffe" else 4):
        equals_twin_closely(model, random_plan(coupling, seed), x, coupling)
    assert_equals_twin(model, half_plan(coupling), x, coupling)


@pytest.mark.parametrize("name", STAY)
def test_other_windows_hold_their_channels(name):
    _, _, coupling = network(STAY[name])
    assert coupling.frozen["first"].endswith("mixes what lies along this axis")


def test_a_window_that_is_wider_than_what_is_left():
    """PyTorch refuses it where the mean pads by itself."""
    model, x, coupling = network(SLID["caffe"])
    with pytest.raises(halp_fx.RewriteError, match="smaller than kernel size"):
        halp_fx.rewrite(model, {"first": [0, 1, 2, 3]}, x, coupling=coupling)
    equals_twin_closely(model, halp_fx.Plan({"first": (0, 2, 5, 9, 11)}), x, coupling)


def test_of_what_stays_in_the_twin():
    """The twin's mean at each channel is that of the pruned network: by hand."""
    model, x, coupling = network(SLID["five"])
    plan = half_plan(coupling)
    kept = list(plan["first"])
    seen = {}
    twin = halp_fx.zero(model, plan, x, coupling=coupling)
    twin.second.register_forward_pre_hook(lambda _, args: seen.update(twin=args[0].detach().clone()))
    twin(x)
    expected = SLID["five"](model.first(x).relu()[:, kept])
    torch.testing.assert_close(seen["twin"][:, kept], expected)
    gone = [c for c in range(16) if c not in kept]
    assert not seen["twin"][:, gone].any()
