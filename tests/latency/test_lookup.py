"""Costs from tables, one at a time and along one group."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import halp_fx
from halp_fx.latency.lookup import cost_at, costs_along


def test_along_a_group_as_one_at_a_time():
    """Also where both widths of a layer follow the group (depthwise), or neither does."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=16), nn.ReLU(), nn.Conv2d(16, 8, 1), nn.Conv2d(8, 4, 1)
    )
    coupling = halp_fx.channel_groups(model, torch.rand(1, 3, 12, 12))
    group = coupling.prunable[0]
    tables = halp_fx.MacsCost().tables(coupling, {g.name: (1, g.size // 2, g.size) for g in coupling.prunable})
    widths = coupling.widths()
    for table in tables:
        wanted = [cost_at(table, {**widths, group.name: w}) for w in (1, 5, 16)]
        assert costs_along(table, widths, group.name, (1, 5, 16)).tolist() == pytest.approx(wanted)
    assert len({len(set(map(float, costs_along(t, widths, group.name, (1, 5, 16))))) for t in tables}) == 2
