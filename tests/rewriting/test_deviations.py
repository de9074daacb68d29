"""Deviations of what is left, of which a single element has none."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import halp_fx

X = torch.randn(2, 3, 8, 8, dtype=torch.float64)


def by_std(w):
    return (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)


def by_unbiased_variance(w):
    flat = w.flatten(1)
    return ((flat - flat.mean(1, keepdim=True)) / (flat.var(1, unbiased=True)[:, None] + 1e-5).sqrt()).view_as(w)


def by_both_at_once(w):
    var, mean = torch.var_mean(w, (1, 2, 3), correction=1, keepdim=True)
    return (w - mean) * (var + 1e-5).rsqrt()


def without_correction(w):
    return (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), correction=0, keepdim=True) + 1e-5)


class Standardised(nn.Conv2d):
    def __init__(self, standardise, *args):
        super().__init__(*args)
        self.standardise = standardise

    def forward(self, x):
        return F.conv2d(x, self.standardise(self.weight), self.bias)


def network(standardise):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), Standardised(standardise, 6, 8, 1), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8 * 36, 4)).double().eval()


CORRECTED = [by_std, by_unbiased_variance, by_both_at_once]


@pytest.mark.parametrize("standardise", CORRECTED)
def test_a_plan_that_leaves_one_element_is_refused(standardise):
    model = network(standardise)
    with pytest.raises(halp_fx.RewriteError, match=r"'2' .* is over a single element"):
        halp_fx.rewrite(model, {"0": (1,)}, X)
    assert halp_fx.rewrite(model, {"0": (1, 4)}, X)(X).isfinite().all()


@pytest.mark.parametrize("standardise", CORRECTED)
def test_prune_keeps_two(standardise):
    options = {"latency": "macs", "min_keep": 1, "round_to": 1, "progress": False}
    worth = {"0": 1e-6, "2": 1.0}
    small = halp_fx.prune(
        network(standardise), 0.4, X, importance=lambda g: torch.full((g.size,), worth[g.name]), **options
    )
    assert small[0].out_channels == 2
    assert small(X).isfinite().all()
    assert any("keeps two channels" in note for note in small.halp.notes)


def test_without_a_correction_one_is_enough():
    model = network(without_correction)
    assert halp_fx.rewrite(model, {"0": (1,)}, X)(X).isfinite().all()
