"""The widths that trials have tell groups apart that do not follow each other."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import halp_fx
from halp_fx.trials.plans import drawn, shares


@pytest.mark.parametrize("width", [4, 5, 8, 24])
def test_no_two_groups_have_equal_shares_in_both_trials(width):
    """As many as there can be of them: three shares, and three other widths of four channels."""
    layers = [nn.Linear(width, width) for _ in range(9)]
    coupling = halp_fx.channel_groups(nn.Sequential(*layers, nn.Linear(width, 2)), torch.rand(1, width))
    assert len(coupling.prunable) == 9
    plans = [shares(coupling), drawn(coupling)]
    for a, b in itertools.combinations(coupling.prunable, 2):
        assert any(len(plan[a.name]) != len(plan[b.name]) for plan in plans), (a.name, b.name)
