"""More budget never gives a network that costs less: over the points of a curve, and over calls of prune."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import halp_fx
from halp_fx import InfeasibleError, MacsCost

SIDE = 6

FEW = settings(max_examples=3, deadline=None, phases=[Phase.explicit, Phase.generate])
"""An example takes half a second, and a smaller one that fails says no more than its seed."""


class Random(nn.Module):
    """A few convolutions, each behind one or two of those before: added where widths agree, else concatenated."""

    def __init__(self, seed):
        super().__init__()
        draw = np.random.default_rng(seed)
        widths, self.sources = [3], []
        self.layers = nn.ModuleList()
        for _ in range(int(draw.integers(2, 5))):
            count = min(int(draw.integers(1, 3)), len(widths))
            sources = sorted(draw.choice(len(widths), count, replace=False).tolist())
            added = len({widths[s] for s in sources}) == 1
            inputs = widths[sources[0]] if added else sum(widths[s] for s in sources)
            widths.append(int(draw.choice([6, 8, 8, 12])))
            self.sources.append((sources, added))
            self.layers.append(nn.Conv2d(inputs, widths[-1], 1 if draw.random() < 0.5 else 3, padding="same"))
        self.out = nn.Linear(widths[-1], 3)

    def forward(self, x):
        made = [x]
        for layer, (sources, added) in zip(self.layers, self.sources, strict=True):
            parts = [made[s] for s in sources]
            made.append(F.relu(layer(sum(parts) if added else torch.cat(parts, 1))))
        return self.out(made[-1].mean((2, 3)))


def network(seed):
    torch.manual_seed(seed)
    return Random(seed).eval()


def scores(seed):
    """The same scores of a group in every call, whatever its size by then."""
    return lambda group: np.random.default_rng([seed, len(group.name), group.size]).gamma(0.5, 1.0, group.size)


def budgets(seed):
    return np.random.default_rng(seed).uniform(0.25, 1.0, 4).round(3).tolist()


X = torch.rand(1, 3, SIDE, SIDE)
CALL = {"latency": "macs", "round_to": 1, "progress": False}


@settings(FEW, max_examples=6)
@given(seed=st.integers(0, 10_000))
def test_prune_with_scores_that_stay(seed):
    costs = []
    for budget in sorted(budgets(seed)):
        try:
            small = halp_fx.prune(network(seed), budget, X, importance=scores(seed), solver="exact", **CALL)
        except InfeasibleError:
            assert not costs
            continue
        assert small.halp.met
        costs.append(small.halp.measured)
        assert small.halp.measured == pytest.approx(MacsCost().total(halp_fx.channel_groups(small, X)), rel=1e-12)
    assert all(less <= more * (1 + 1e-12) for less, more in pairwise(costs))


@pytest.mark.parametrize("kind", ["no data", "scores", "data"])
def test_pareto(kind):
    data = list(torch.rand(8, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).split(4))

    @settings(FEW)
    @given(seed=st.integers(0, 10_000))
    def check(seed):
        given_ = {"no data": {}, "scores": {"importance": scores(seed)}, "data": {"data": data}}[kind]
        asked = list(dict.fromkeys(budgets(seed)))
        try:
            curve = halp_fx.pareto(network(seed), asked, X, **given_, **CALL)
        except InfeasibleError:
            return
        assert [float(p.asked) for p in curve.points] == sorted(asked, reverse=True)[: len(curve.points)]
        assert all(p.met for p in curve.points)
        for wide, narrow in pairwise(curve.points):
            assert narrow.measured <= wide.measured
            assert narrow.budget < wide.budget
        for point in curve.points:
            assert point.measured <= point.budget * (1 + 1e-9)
            made = curve.network(point)
            assert point.measured == pytest.approx(MacsCost().total(halp_fx.channel_groups(made, X)), rel=1e-12)
            assert point.parameters == sum(p.numel() for p in made.parameters())

    check()
